package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// Stream is one connection inside a session: a net.Conn that can be closed in
// one direction, and aborted. Reads may be called from one goroutine at a
// time, and so may writes; everything else from anywhere.
type Stream struct {
	session *Session
	mux     *yamux.Stream
	ledger  *ledger

	closed        atomic.Bool  // by Close or Abort
	ended         atomic.Int32 // set with wire.mu held
	readDeadline  atomic.Int64 // nanoseconds since the epoch, 0 for none
	writeDeadline atomic.Int64

	mu      sync.Mutex
	isOver  bool
	whenEnd func()
}

// How a stream ended, if not by itself.
const (
	wasReset   = 1 + iota // by the other end
	wasOverrun            // reset by this end for want of memory
	wasLost               // with the session
)

// newStream returns nil if the stream has been reset before it was handed out.
func newStream(s *Session, mux *yamux.Stream) *Stream {
	st := &Stream{session: s, mux: mux}
	st.ledger = s.wire.attach(st)
	if st.ledger == nil {
		return nil
	}
	return st
}

// Session is the session the stream belongs to.
func (s *Stream) Session() *Session { return s.session }

// Read reads what the other end has written. The error, once everything was
// read, is io.EOF when the other end has closed its direction, ErrReset when
// it has aborted the stream, and ErrLost when the session ended before.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return s.read(p)
}

// wait returns once there is something to read.
func (s *Stream) wait() error {
	_, err := s.read(nil)
	return err
}

func (s *Stream) read(p []byte) (int, error) {
	if err := s.usable(&s.readDeadline); err != nil {
		return 0, err
	}
	if s.ended.Load() == wasOverrun {
		return 0, ErrOverrun // what yamux still has of it is not all there was
	}
	n, err := s.mux.Read(p)
	if n > 0 {
		// With bytes there can only come an error about credit that could not
		// be sent, and then the session is at its end.
		s.session.wire.consume(s.ledger, n)
		return n, nil
	}
	if err == nil {
		return 0, nil
	}
	if s.isComplete() {
		return 0, io.EOF
	}
	return 0, s.explain(err)
}

// waiting is how many bytes can be read without waiting, more or less.
func (s *Stream) waiting() int64 {
	w := s.session.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	return s.ledger.received - s.ledger.consumed
}

// isComplete tells whether everything the other end had to say was read,
// whatever came after it.
func (s *Stream) isComplete() bool {
	w := s.session.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	return s.ledger.finSeen && s.ledger.received == s.ledger.consumed && !s.closed.Load()
}

// maxBody is the most that is sent in one frame: with its header, four TLS
// records. Whatever waits behind a frame waits no longer than that.
const maxBody = 4*16384 - headerSize

// Write sends p. It returns when everything is on its way; whether it arrives
// is for the other end to say.
func (s *Stream) Write(p []byte) (int, error) {
	sent := 0
	for {
		if err := s.usable(&s.writeDeadline); err != nil {
			return sent, err
		}
		if s.ended.Load() != 0 {
			return sent, s.explain(nil)
		}
		if sent == len(p) {
			return sent, nil
		}
		n, err := s.mux.Write(p[sent:min(sent+maxBody, len(p))])
		sent += n
		if err != nil {
			return sent, s.explain(err)
		}
	}
}

// usable makes a call fail that yamux would let succeed: yamux looks at a
// deadline only when it has to wait.
func (s *Stream) usable(deadline *atomic.Int64) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	if d := deadline.Load(); d != 0 && time.Now().UnixNano() >= d {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// explain turns an error of yamux's into what has happened.
func (s *Stream) explain(err error) error {
	w := s.session.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	l := s.ledger
	switch {
	case s.closed.Load():
		return net.ErrClosed
	case l.resetSent:
		return ErrOverrun
	case l.resetSeen:
		return ErrReset
	case w.err != nil:
		return lost(w.err)
	case errors.Is(err, yamux.ErrStreamClosed):
		return syscall.EPIPE // after CloseWrite, as for a socket
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	}
	return err
}

// CloseWrite tells the other end that nothing more comes. Reading goes on.
func (s *Stream) CloseWrite() error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	return s.mux.Close() // in yamux, to close is to close one direction
}

// Close closes both directions. What was written still arrives. What was
// received and not read is lost, and the other end learns of that by a reset,
// as it does when it goes on writing. Closing twice is allowed.
func (s *Stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	w := s.session.wire
	if w.unread(s.ledger) {
		s.Abort()
		return nil
	}
	s.mux.Close()
	w.abandon(s.ledger)
	s.wake()
	return nil
}

// Abort ends the stream at once. The other end gets ErrReset, after what has
// been written; what it has written and was not read is lost. After Close it
// hurries up what is not over yet. Abort does not wait.
func (s *Stream) Abort() {
	s.closed.Store(true)
	if s.session.wire.abort(s.ledger) {
		s.session.spawn(func() { s.mux.Close() })
	}
	s.wake()
}

// wake ends calls that wait.
func (s *Stream) wake() { s.mux.SetDeadline(longAgo) }

var longAgo = time.Unix(1, 0)

// AfterReset has call called when the other end has aborted the stream, or the
// session is lost: at once if that has happened. There may still be something
// to read. call must not wait. Without it, whoever waits for something else
// than the stream does not notice.
func (s *Stream) AfterReset(call func()) {
	s.mu.Lock()
	s.whenEnd = call
	isOver := s.isOver
	s.mu.Unlock()
	if isOver {
		call()
	}
}

// over is called by the wire when the stream is reset, or lost.
func (s *Stream) over() {
	if s == nil {
		return // it was not handed out yet
	}
	switch s.ended.Load() {
	case wasReset:
		s.mux.SetWriteDeadline(longAgo) // a reader is told by yamux, once it has everything
	case wasOverrun:
		s.wake()
	}
	s.mu.Lock()
	s.isOver = true
	call := s.whenEnd
	s.mu.Unlock()
	if call != nil {
		call()
	}
}

// LocalAddr and RemoteAddr are those of the session's connection.
func (s *Stream) LocalAddr() net.Addr  { return s.session.LocalAddr() }
func (s *Stream) RemoteAddr() net.Addr { return s.session.RemoteAddr() }

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (s *Stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline bounds reads, also one that is under way. Zero is no bound.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.readDeadline.Store(nanoseconds(t))
	return s.mux.SetReadDeadline(t)
}

// SetWriteDeadline bounds writes, also one that waits for the other end to
// read. It does not end the wait for the transport.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.writeDeadline.Store(nanoseconds(t))
	return s.mux.SetWriteDeadline(t)
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.UnixNano(), 1)
}

var _ net.Conn = (*Stream)(nil)
