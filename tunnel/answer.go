package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// Status is how a request was answered.
type Status uint8

const (
	OK          Status = 0
	Denied      Status = 1  // by policy
	NoSource    Status = 2  // there is no such source, or none that is to be known of
	Down        Status = 3  // the source does not run
	NoPort      Status = 4  // the source does not expose the port
	Refused     Status = 5  // the source refused the connection
	Unreachable Status = 6  // there is no way to the source
	TimedOut    Status = 7  // the source did not answer in time
	Busy        Status = 8  // a limit was reached
	Unsupported Status = 9  // the version or the kind of the request is not known
	Malformed   Status = 10 // the request makes no sense
	Failed      Status = 11 // something else
)

func (s Status) String() string {
	texts := [...]string{"ok", "denied", "no such source", "source down", "port not exposed", "refused",
		"unreachable", "timed out", "busy", "unsupported", "malformed", "failed"}
	if int(s) < len(texts) {
		return texts[s]
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Refusal is an answer other than OK. What it unwraps to is the error that a
// connection refused for the same reason would have.
type Refusal struct {
	Status Status
	Text   string // for a person; may be empty
}

func (r *Refusal) Error() string {
	if r.Text == "" {
		return r.Status.String()
	}
	return r.Status.String() + ": " + r.Text
}

func (r *Refusal) Unwrap() error {
	switch r.Status {
	case Denied:
		return syscall.EACCES
	case NoSource, Down, NoPort, Refused:
		return syscall.ECONNREFUSED
	case Unreachable:
		return syscall.EHOSTUNREACH
	case TimedOut:
		return os.ErrDeadlineExceeded
	case Busy:
		return syscall.EAGAIN
	}
	return nil
}

// StatusOf is the status that a failure to connect is answered with.
func StatusOf(err error) Status {
	var r *Refusal
	switch {
	case err == nil:
		return OK
	case errors.As(err, &r):
		return r.Status
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return Refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return TimedOut
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ENETDOWN), errors.Is(err, syscall.EACCES):
		return Unreachable
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		return Busy
	}
	return Failed
}

// The answer is a version, a status, and a text with its length before it. Its
// form stays the same in all versions.
const maxText = 1024

func appendAnswer(b []byte, s Status, text string) []byte {
	text = text[:min(len(text), maxText)]
	b = append(b, requestVersion, byte(s))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

func readAnswer(r io.Reader) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint16(head[2:])
	if n > maxText {
		return violation(fmt.Sprintf("an answer of %d bytes", n))
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	if s := Status(head[1]); s != OK {
		return &Refusal{s, printable(text)}
	}
	return nil
}

// printable makes a line of what a peer sent.
func printable(text []byte) string {
	return string(bytes.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return '?'
	}, text))
}

// answerTime is how long the two sides have for request and answer, apart from
// what the connecting itself takes.
const answerTime = 10 * time.Second

// Ask opens a stream and sends a request. The answer has to be read with
// Answer before anything else is read. Writing need not wait for it: what is
// written is dropped if the request is refused. The caller closes the stream.
func (s *Session) Ask(ctx context.Context, r Request) (*Stream, error) {
	b, err := r.append(nil)
	if err != nil {
		return nil, fmt.Errorf("asking for %q: %w", r.Source, err)
	}
	st, err := s.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for %q: %w", r.Source, err)
	}
	if _, err := st.Write(b); err != nil {
		st.Abort()
		if errors.Is(err, ErrReset) {
			err = errNoMore() // the peer was faster
		}
		return nil, fmt.Errorf("asking for %q: %w", r.Source, err)
	}
	return st, nil
}

// Answer reads the answer to the request of Ask: nil is yes, a *Refusal is no.
// A peer that takes no more streams at all resets the stream, which is an
// answer too. The wait ends after timeout.
func (s *Stream) Answer(timeout time.Duration) error {
	s.SetReadDeadline(time.Now().Add(timeout))
	err := readAnswer(s)
	s.SetReadDeadline(time.Time{})
	var refusal *Refusal
	switch {
	case err == nil, errors.As(err, &refusal):
		return err
	case err == ErrReset:
		return errNoMore()
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("waiting for the peer's answer: %w", err)
}

// errNoMore is what it means that a stream was reset before it was answered.
func errNoMore() error { return &Refusal{Busy, "the peer takes no more streams"} }

// Incoming is a stream that the peer has opened, and its request. It is
// answered with Grant or Refuse.
type Incoming struct {
	Request
	Stream *Stream
}

// Serve reads the requests of the streams that the peer opens, and calls
// handle for each in a goroutine of its own. handle owns the stream. Serve
// returns when the session has ended and all handlers have returned.
func (s *Session) Serve(handle func(*Incoming)) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		st, err := s.Accept()
		if err != nil {
			return err
		}
		handlers.Go(func() { serve(st, handle) })
	}
}

func serve(st *Stream, handle func(*Incoming)) {
	st.SetReadDeadline(time.Now().Add(answerTime))
	r, err := readRequest(st)
	st.SetReadDeadline(time.Time{})
	in := &Incoming{r, st}
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		in.Refuse(refusal.Status, refusal.Text)
	case err != nil:
		st.Abort()
	default:
		handle(in)
	}
}

// Grant answers yes.
func (in *Incoming) Grant() error {
	_, err := in.Stream.Write(appendAnswer(nil, OK, ""))
	return err
}

// Refuse answers no and closes the stream. It waits for the peer to have read
// the answer.
func (in *Incoming) Refuse(s Status, text string) {
	st := in.Stream
	defer st.Abort()
	if _, err := st.Write(appendAnswer(nil, s, text)); err != nil {
		return
	}
	st.CloseWrite()
	// The peer aborts once it knows. What it has sent meanwhile is for nobody.
	st.SetReadDeadline(time.Now().Add(answerTime))
	io.Copy(io.Discard, struct{ io.Reader }{st})
}
