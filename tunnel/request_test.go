package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var requests = []Request{
	{Kind: TCP, Port: 5432, Source: "db", Recipient: "web", From: netip.MustParseAddrPort("172.17.0.3:41000")},
	{Kind: UDP, Port: 53, Source: "dns", Recipient: "web", From: netip.MustParseAddrPort("[fd00::3]:5353")},
	{Kind: Watch, Source: strings.Repeat("s", 255), Recipient: strings.Repeat("r", 255)},
	{Kind: Renew},
	{Kind: 99, Port: 65535},
}

func TestRequestRoundTrip(t *testing.T) {
	for _, want := range requests {
		b, err := want.append(nil)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(append(b, "the first bytes"...))
		if got, err := readRequest(r); got != want || err != nil {
			t.Errorf("read %+v, %v, want %+v", got, err, want)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "the first bytes" {
			t.Errorf("%q is left, want what came after the request", rest)
		}
	}
}

func TestRequestsOfVersionsToCome(t *testing.T) {
	b, _ := requests[0].append(nil)
	longer := append(b, 1, 2, 3)
	longer[3] += 3
	if got, err := readRequest(bytes.NewReader(longer)); got != requests[0] || err != nil {
		t.Errorf("read %+v, %v, want %+v", got, err, requests[0])
	}
	b[0] = 2
	_, err := readRequest(bytes.NewReader(b))
	if want := "unsupported: requests of version 2 are not understood, only 1"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestMalformedRequests(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "reading a request: EOF",
		"\x01\x01\x00":             "reading a request: unexpected EOF",
		"\x01\x01\x04\x01":         "malformed: a request of 1025 bytes is too long",
		"\x01\x01\x00\x02a":        "reading a request: unexpected EOF",
		"\x01\x01\x00\x00":         "malformed: a request is too short",
		"\x01\x01\x00\x04ab\x05xx": "malformed: a request is too short",
		"\x01\x01\x00\x08ab\x01\n\x00\x00\x00\x00":                                                               "malformed: a name has at most 255 printable characters",
		"\x01\x01\x00\x08ab\x00\x01\xff\x00\x00\x00":                                                             "malformed: a name has at most 255 printable characters",
		"\x01\x01\x00\x0aab\x00\x00\x03abc\x00\x00":                                                              "malformed: a request has no proper address",
		"\x01\x01\x00\x17ab\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01\x00\x00": "malformed: a request has no proper address",
	} {
		if _, err := readRequest(strings.NewReader(in)); err == nil || err.Error() != want {
			t.Errorf("reading %q gives %v, want %s", in, err, want)
		}
	}
	for _, r := range []Request{{Source: "a b"}, {Recipient: "a\nb"}, {Source: strings.Repeat("x", 256)}, {Source: "ä"}} {
		if _, err := r.append(nil); err != errName {
			t.Errorf("sending %+v gives %v, want %v", r, err, errName)
		}
	}
}

func TestAnswers(t *testing.T) {
	for status, want := range map[Status]struct {
		text string
		is   error
	}{
		Denied:      {"denied: no policy allows it", syscall.EACCES},
		NoSource:    {"no such source: no policy allows it", syscall.ECONNREFUSED},
		Down:        {"source down: no policy allows it", syscall.ECONNREFUSED},
		NoPort:      {"port not exposed: no policy allows it", syscall.ECONNREFUSED},
		Refused:     {"refused: no policy allows it", syscall.ECONNREFUSED},
		Unreachable: {"unreachable: no policy allows it", syscall.EHOSTUNREACH},
		TimedOut:    {"timed out: no policy allows it", os.ErrDeadlineExceeded},
		Busy:        {"busy: no policy allows it", syscall.EAGAIN},
		Unsupported: {"unsupported: no policy allows it", nil},
		Malformed:   {"malformed: no policy allows it", nil},
		Failed:      {"failed: no policy allows it", nil},
		77:          {"status 77: no policy allows it", nil},
	} {
		err := readAnswer(bytes.NewReader(appendAnswer(nil, status, "no policy allows it")))
		if err == nil || err.Error() != want.text || want.is != nil && !errors.Is(err, want.is) {
			t.Errorf("status %d gives %v, want %q", status, err, want.text)
		}
		if got := StatusOf(fmt.Errorf("wrapped: %w", err)); got != status {
			t.Errorf("StatusOf(%v) = %v, want %v", err, got, status)
		}
	}
	if err := readAnswer(bytes.NewReader(appendAnswer(nil, OK, ""))); err != nil {
		t.Errorf("OK gives %v", err)
	}
	// What a peer says ends up in a log.
	err := readAnswer(bytes.NewReader(appendAnswer(nil, Failed, "a\nb\x1b[31m\xff"+strings.Repeat("x", 2000))))
	if got := err.Error(); !strings.HasPrefix(got, "failed: a?b?[31m?xxx") || len(got) > maxText+100 {
		t.Errorf("got %q", got)
	}
	if err := readAnswer(strings.NewReader("\x01\x01\xff\xff")); !errors.Is(err, ErrViolation) {
		t.Errorf("a long text gives %v, want %v", err, ErrViolation)
	}
}

func TestStatusOf(t *testing.T) {
	for err, want := range map[error]Status{
		nil:                      OK,
		syscall.ECONNREFUSED:     Refused,
		syscall.EHOSTUNREACH:     Unreachable,
		syscall.EMFILE:           Busy,
		os.ErrDeadlineExceeded:   TimedOut,
		context.DeadlineExceeded: TimedOut,
		errors.New("what is it"): Failed,
		os.NewSyscallError("connect", syscall.ENETUNREACH): Unreachable,
	} {
		if got := StatusOf(err); got != want {
			t.Errorf("StatusOf(%v) = %v, want %v", err, got, want)
		}
	}
}

// serving answers the requests that come over s until the test is over.
func serving(t testing.TB, s *Session, handle func(*Incoming)) {
	var served sync.WaitGroup
	served.Go(func() { s.Serve(handle) })
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
}

// A stream that never says what it is for is no reason for the others to wait.
func TestServeDoesNotWaitForASlowRequest(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{})
	serving(t, b, func(in *Incoming) {
		in.Grant()
		in.Stream.Close()
	})
	slow, err := a.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	slow.Write([]byte{1})
	for range 20 {
		st, err := a.Ask(context.Background(), requests[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Answer(patience); err != nil {
			t.Error(err)
		}
		st.Close()
	}
	slow.Abort()
}

func TestRefusals(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{MaxStreams: 1})
	serving(t, b, func(in *Incoming) { in.Refuse(Denied, "not "+in.Recipient) })
	for range 10 {
		st, err := a.Ask(context.Background(), requests[0])
		if err != nil {
			t.Fatal(err)
		}
		// It is told although there is more on its way than the answer waits for.
		go st.Write(make([]byte, 1<<20))
		if err := st.Answer(patience); err == nil || err.Error() != "denied: not web" {
			t.Errorf("the answer is %v", err)
		}
		if _, err := a.Ask(context.Background(), Request{Source: "a b"}); !errors.Is(err, errName) {
			t.Errorf("asking for what has no name gives %v", err)
		}
		st.Abort()
		until(t, "the stream to end", func() bool { return b.Stats().Open == 0 })
	}
	for _, raw := range []string{"\x02\x01\x00\x00", "\x01\x01\x00\x00"} {
		st, err := a.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		st.Write([]byte(raw))
		var refusal *Refusal
		if err := st.Answer(patience); !errors.As(err, &refusal) {
			t.Errorf("the answer to %q is %v", raw, err)
		}
		st.Abort()
		until(t, "the stream to end", func() bool { return b.Stats().Open == 0 })
	}
}

func TestNoAnswer(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{MaxStreams: 1})
	st, err := a.Ask(context.Background(), requests[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Answer(10 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the answer is %v", err)
	}
	full, err := a.Ask(context.Background(), requests[0])
	if err == nil { // and the reset is not there yet
		err = full.Answer(patience)
	}
	if !errors.Is(err, syscall.EAGAIN) || !strings.HasSuffix(err.Error(), "busy: the peer takes no more streams") {
		t.Errorf("the answer is %v", err)
	}
	go func() {
		if y, err := b.Accept(); err == nil {
			readRequest(y)
			y.Close()
		}
	}()
	if err := st.Answer(patience); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the answer is %v", err)
	}
}

func FuzzReadRequest(f *testing.F) {
	for _, r := range requests {
		b, _ := r.append(nil)
		f.Add(b)
	}
	f.Add([]byte("\x01\x01\x00\x04ab\x05xx"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := readRequest(bytes.NewReader(in))
		if err != nil {
			return
		}
		b, err := r.append(nil)
		if err != nil {
			t.Fatalf("%+v was read and cannot be sent: %v", r, err)
		}
		again, err := readRequest(bytes.NewReader(b))
		if err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, Denied, "no"))
	f.Add([]byte("\x01\x01\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if err := readAnswer(bytes.NewReader(in)); err != nil && strings.ContainsAny(err.Error(), "\n\r\x1b") {
			t.Fatalf("%q makes a log of more than a line", err)
		}
	})
}
