//go:build linux

package netns_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns/netnstest"
)

// Whoever comes from another host is seen at an address that no rule of a
// server's trusts.
func TestDialAsNobody(t *testing.T) {
	n, _ := pair(t)
	serveAddrs(t, n, "10.77.0.2:5432")
	s := source(t, prepare(t, n), netip.Addr{}, sourceAddr)
	defer s.Close()
	c, err := s.Dial(t.Context(), 5432)
	if err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "192.0.0.8 10.77.0.2" || err != nil {
		t.Errorf("the server says %q, %v", got, err)
	}
	c.Close()
}

func TestDialRefused(t *testing.T) {
	n, _ := pair(t)
	s := source(t, prepare(t, n), netip.Addr{}, sourceAddr)
	defer s.Close()
	_, err := s.Dial(t.Context(), 5432)
	if want := "connecting to 10.77.0.2:5432/tcp: connection refused"; !errors.Is(err, unix.ECONNREFUSED) || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

// A server that does not answer costs no more than the time given.
func TestDialTimesOut(t *testing.T) {
	n, _ := pair(t)
	netnstest.Do(t, n, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: sourceAddr.As4(), Port: 5432}); err != nil {
			return err
		}
		return unix.Listen(fd, 0) // room for one that nobody accepts
	})
	s := source(t, prepare(t, n), netip.Addr{}, sourceAddr)
	defer s.Close()
	first, err := s.Dial(t.Context(), 5432)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if c, err := s.Dial(ctx, 5432); !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		t.Errorf("connected to %v, %v", c, err)
	}
	gone, giveUp := context.WithCancelCause(t.Context())
	bored := errors.New("bored")
	giveUp(bored)
	if _, err := s.Dial(gone, 5432); !errors.Is(err, bored) {
		t.Errorf("error %v, want %v", err, bored)
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestDialPackets(t *testing.T) {
	n, _ := pair(t)
	var server net.PacketConn
	netnstest.Do(t, n, func() (err error) {
		server, err = net.ListenPacket("udp4", "10.77.0.2:53")
		return err
	})
	defer server.Close()
	server.SetDeadline(time.Now().Add(10 * time.Second))
	s := source(t, prepare(t, n), netip.Addr{}, sourceAddr)
	defer s.Close()
	c, err := s.DialPackets(t.Context(), 53)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	size, from, err := server.ReadFrom(buf)
	if err != nil || string(buf[:size]) != "question" || from.(*net.UDPAddr).AddrPort().Addr().Unmap() != strangerAddr {
		t.Fatalf("%q from %v, %v", buf[:size], from, err)
	}
	if _, err := server.WriteTo([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if size, err = c.Read(buf); err != nil || string(buf[:size]) != "answer" {
		t.Errorf("%q, %v", buf[:size], err)
	}
}
