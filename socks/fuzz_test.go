package socks

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// talk sends a server some bytes over a socket pair, in pieces, and returns what it answers,
// what it was asked to connect to and what was left for the source.
func talk(pieces [][]byte) (answer, asked, left []byte, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	client := os.NewFile(uintptr(pair[0]), "client")
	defer client.Close()
	client.SetDeadline(time.Now().Add(soon))
	rest := make(chan []byte, 1)
	s := &Server{
		Log: slog.New(slog.NewTextHandler(failOnPanic{}, nil)),
		Connect: func(_ context.Context, host string, port uint16) (Way, error) {
			asked = fmt.Appendf(nil, "%s %d", host, port)
			return drain(rest), nil
		},
	}
	s.Handle(pair[1], nil)
	for _, p := range pieces {
		// It may have refused already.
		client.Write(p)
	}
	unix.Shutdown(pair[0], unix.SHUT_WR)
	answer, err = io.ReadAll(client)
	s.Close()
	if asked != nil {
		left = <-rest
	}
	return answer, asked, left, err
}

// failOnPanic is a log that nothing but a panic is written to.
type failOnPanic struct{}

func (failOnPanic) Write(p []byte) (int, error) { panic(string(p)) }

// drain is a Way to a source that takes all it gets, and says what it was.
type drain chan<- []byte

func (d drain) Carry(fd int) {
	f := os.NewFile(uintptr(fd), "client")
	got, _ := io.ReadAll(f)
	f.Close()
	d <- got
}

func (d drain) Close() error {
	d <- nil
	return nil
}

// model reads what a client sends as RFC 1928 says.
func model(sent []byte) (answer, asked, left []byte) {
	take := func(n int) []byte {
		if n > len(sent) {
			sent = nil
			return nil
		}
		p := sent[:n]
		sent = sent[n:]
		return p
	}
	head := take(2)
	if head == nil || head[0] != 5 {
		return nil, nil, nil
	}
	methods := take(int(head[1]))
	if methods == nil && head[1] > 0 {
		return nil, nil, nil
	}
	if !bytes.ContainsRune(methods, 0) {
		return []byte("\x05\xff"), nil, nil
	}
	answer = []byte(accepted)
	head = take(4)
	if head == nil || head[0] != 5 {
		return answer, nil, nil
	}
	var host string
	switch head[3] {
	case 1, 4:
		ip := take(4 * int(head[3]))
		if ip == nil {
			return answer, nil, nil
		}
		addr, _ := netip.AddrFromSlice(ip)
		host = addr.Unmap().String()
	case 3:
		n := take(1)
		if n == nil {
			return answer, nil, nil
		}
		name := take(int(n[0]))
		if name == nil {
			return answer, nil, nil
		}
		host = strings.TrimSuffix(string(name), ".")
		if addr, err := netip.ParseAddr(host); err == nil {
			host = addr.Unmap().String()
		}
	default:
		return append(answer, refusal(8)...), nil, nil
	}
	port := take(2)
	switch {
	case port == nil:
		return answer, nil, nil
	case head[1] != 1:
		return append(answer, refusal(commandNotSupported)...), nil, nil
	case host == "":
		return append(answer, refusal(notAllowed)...), nil, nil
	}
	asked = fmt.Appendf(nil, "%s %d", host, int(port[0])<<8|int(port[1]))
	return append(answer, connected...), asked, append([]byte{}, sent...)
}

func compare(sent []byte, pieces [][]byte) error {
	answer, asked, left, err := talk(pieces)
	wantAnswer, wantAsked, wantLeft := model(sent)
	if err != nil || !bytes.Equal(answer, wantAnswer) || !bytes.Equal(asked, wantAsked) || !bytes.Equal(left, wantLeft) {
		return fmt.Errorf("%q is answered %q (%v), asks for %q and leaves %q\nwant %q, %q, %q",
			sent, answer, err, asked, left, wantAnswer, wantAsked, wantLeft)
	}
	return nil
}

func FuzzHandshake(f *testing.F) {
	for _, s := range []string{
		"", "\x05", "\x05\x00", greeting, "\x04\x01\x00\x50\x7f\x4d\x00\x02\x00",
		greeting + connect + ipv4 + "more",
		greeting + connect + named("webdb", 80),
		greeting + connect + named("", 80),
		greeting + connect + named("::1%lo", 80),
		greeting + "\x05\x03\x00" + ipv4,
		greeting + connect + "\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x4d\x00\x02\x00\x50",
		greeting + connect + "\x02",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) > 1<<12 {
			return
		}
		if err := compare(sent, [][]byte{sent}); err != nil {
			t.Fatal(err)
		}
	})
}

// However a good or a bad handshake is cut into pieces, it says the same.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := []byte(rapid.SampledFrom([]string{greeting, "\x05\x02\x02\x00", "\x05\x01\x02", "\x05"}).Draw(t, "greeting") +
			rapid.SampledFrom([]string{connect, "\x05\x02\x00", "\x05\x01\x07", "\x04\x01\x00"}).Draw(t, "command") +
			rapid.OneOf(rapid.Just(ipv4), rapid.Map(rapid.StringMatching(`[a-z0-9.:%]{0,20}`), func(s string) string { return named(s, 80) }),
				rapid.StringN(0, 30, 30)).Draw(t, "address") +
			rapid.StringN(0, 50, 200).Draw(t, "payload"))
		var pieces [][]byte
		for rest := sent; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		if err := compare(sent, pieces); err != nil {
			t.Fatal(err)
		}
	})
}
