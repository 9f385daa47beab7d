// Package tunnel carries links between hosts and between processes: sessions
// with many streams over one connection, what a stream is for, and the pumps
// between streams and sockets. It decides nothing about who may connect where,
// makes no certificate, and knows no Docker.
package tunnel

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// Config is what a session keeps to. The zero value is ready to use.
type Config struct {
	// MaxStreams is how many streams the peer may have open. More are refused.
	// 0 is 4096.
	MaxStreams int
	// MaxOpening is how many streams of this side may be on their way to the
	// peer; Open waits above it. 0 is 256.
	MaxOpening int
	// Memory is shared by the sessions with one peer. nil is one of the
	// session's own.
	Memory *Memory
	// DeadAfter is how long the peer may be silent, although it is asked, until
	// the session is given up. 0 is 8 s.
	DeadAfter time.Duration
	// Expires is when the proof of who the peer is runs out; zero is never. The
	// session does not look at it, see Peer.
	Expires time.Time
	// Sockets has the session take sockets that the peer hands over, see
	// Stream.TakeSocket. The connection has to be a unix socket.
	Sockets bool
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.MaxStreams = cmp.Or(c.MaxStreams, 4096)
	c.MaxOpening = cmp.Or(c.MaxOpening, 256)
	c.DeadAfter = cmp.Or(c.DeadAfter, 8*time.Second)
	if c.Memory == nil {
		c.Memory = new(Memory)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Session is one connection to a peer, and the streams in it. Either side
// opens streams. It is safe for concurrent use.
type Session struct {
	mux     *yamux.Session
	wire    *wire
	numbers atomic.Uint32 // streams this side has opened
	silent  atomic.Int64  // nanoseconds, see Silent

	mu      sync.Mutex
	closed  bool // workers takes no more
	workers sync.WaitGroup
}

// Client starts a session at the side that has dialed, Server at the side that
// has accepted. The session owns conn from then on: a TLS connection after its
// handshake, a unix socket, or anything else that delivers bytes in order.
// Closing conn has to end a Read and a Write that are under way. The caller
// closes the session, also after it has died.
func Client(conn net.Conn, c Config) *Session { return newSession(conn, c, true) }

// Server is the other end of Client.
func Server(conn net.Conn, c Config) *Session { return newSession(conn, c, false) }

func newSession(conn net.Conn, c Config, client bool) *Session {
	c = c.withDefaults()
	s := &Session{wire: newWire(conn, c, client)}
	start := yamux.Server
	if client {
		start = yamux.Client
	}
	var err error
	if s.mux, err = start(s.wire, yamuxConfig(c)); err != nil {
		panic(err) // the configuration is ours and constant
	}
	s.workers.Go(s.write)
	s.workers.Go(s.keepAlive)
	return s
}

// yamuxConfig turns off what the wire does better, and what ends a session, or
// a stream that is closed to one side, by a clock.
func yamuxConfig(c Config) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:       max(c.MaxStreams, c.MaxOpening) + 1,
		KeepAliveInterval:   time.Hour, // not enabled; it has to be positive
		MaxStreamWindowSize: yamuxWindow,
		// A write that waits is not dead as long as the peer answers. If it
		// does not, the session ends long before.
		ConnectionWriteTimeout: time.Hour,
		Logger:                 &yamuxLog{c.Log},
	}
}

// Open opens a stream. It waits while MaxOpening streams are on their way. The
// caller closes the stream.
func (s *Session) Open(ctx context.Context) (*Stream, error) {
	st, err := s.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	return st, nil
}

// maxNumbers is a quarter of the streams that yamux has numbers for.
const maxNumbers = 1 << 29

func (s *Session) open(ctx context.Context) (*Stream, error) {
	if s.numbers.Add(1) > maxNumbers {
		return nil, ErrExhausted
	}
	select {
	case s.wire.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.mux.CloseChan():
		return nil, s.Err()
	}
	// yamux waits for the frame to be written and knows no contexts.
	type result struct {
		st  *Stream
		err error
	}
	done := make(chan result, 1)
	started := s.spawn(func() {
		mux, err := s.mux.OpenStream()
		if err != nil {
			s.wire.giveSlotBack()
			done <- result{nil, s.explainOpen(err)}
			return
		}
		st := newStream(s, mux)
		if st == nil {
			done <- result{nil, s.explainOpen(ErrReset)}
			return
		}
		done <- result{st, nil}
	})
	if !started {
		return nil, ErrClosed
	}
	select {
	case r := <-done:
		return r.st, r.err
	case <-ctx.Done():
	}
	s.spawn(func() {
		if r := <-done; r.st != nil {
			r.st.Abort()
		}
	})
	return nil, context.Cause(ctx)
}

// spawn runs fn in a goroutine that Close waits for, unless it waits already.
func (s *Session) spawn(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.workers.Go(fn)
	}
	return !s.closed
}

func (s *Session) explainOpen(err error) error {
	select {
	case <-s.wire.ends:
		return ErrDraining
	default:
	}
	if cause := s.wire.cause(); cause != nil {
		return cause
	}
	return err
}

// Accept waits for a stream that the peer opens. Whoever calls it does nothing
// else: a stream that is not accepted keeps the peer from opening others. The
// caller closes the stream. The error is that of Err.
func (s *Session) Accept() (*Stream, error) {
	for {
		mux, err := s.mux.AcceptStream()
		if err != nil {
			s.wire.fail(err)
			return nil, s.Err()
		}
		if st := newStream(s, mux); st != nil {
			return st, nil
		}
	}
}

// write is the goroutine that writes to the transport.
func (s *Session) write() {
	if err := s.wire.out.loop(); err != nil {
		s.wire.fail(err)
		return
	}
	if c, ok := s.wire.conn.(interface{ CloseWrite() error }); ok && s.wire.cause() == nil {
		c.CloseWrite()
	}
}

// Drain ends the session without cutting anything off: no new streams, and the
// end once those there are have ended by themselves. When ctx ends first, the
// rest is reset. The session is closed when Drain returns.
func (s *Session) Drain(ctx context.Context) error {
	defer s.Close()
	s.wire.drain()
	select {
	case <-s.wire.drained:
	case <-s.mux.CloseChan():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// The peer reads everything, up to the end of the connection, and closes
	// it. Whoever closes first while bytes are on their way to it resets the
	// connection, and with it the bytes that are on their way to the peer.
	s.wire.out.finish()
	select {
	case <-s.mux.CloseChan():
	case <-ctx.Done():
	case <-time.After(farewell):
	}
	return nil
}

// farewell is how long a drained session waits for its peer to close it too.
const farewell = 2 * time.Second

// Close ends the session at once, and with it the streams that are left, which
// end with ErrLost on both sides. When it returns, no goroutine of the session
// is left.
func (s *Session) Close() error {
	s.wire.fail(ErrClosed)
	s.mux.Close()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.workers.Wait()
	return nil
}

// Done is closed when the session has ended, for the reason that Err returns.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Err is why the session has ended, nil while it has not.
func (s *Session) Err() error { return s.wire.cause() }

// Ending is closed when the peer has announced the end of the session: it
// takes no new streams.
func (s *Session) Ending() <-chan struct{} { return s.wire.ends }

// Ready returns once the peer has answered. Until then a session may be one
// that the peer is about to refuse: in TLS 1.3 the side that dials is done
// with the handshake before its own certificate has been looked at.
func (s *Session) Ready(ctx context.Context) error {
	select {
	case <-s.wire.answered:
		return nil
	case <-s.Done():
		return s.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Silent is how long the peer has not been heard of, although it is asked when
// it has nothing to say.
func (s *Session) Silent() time.Duration { return time.Duration(s.silent.Load()) }

// Expires is Config.Expires.
func (s *Session) Expires() time.Time { return s.wire.config.Expires }

// LocalAddr and RemoteAddr are those of the connection.
func (s *Session) LocalAddr() net.Addr  { return s.wire.conn.LocalAddr() }
func (s *Session) RemoteAddr() net.Addr { return s.wire.conn.RemoteAddr() }

// RTT is the least of the last round trips measured, 0 before the first.
func (s *Session) RTT() time.Duration { return s.wire.rtt.least() }

// Stats is a moment of a session's life. The counters never go back.
type Stats struct {
	Open      int    // streams now, of both sides
	Opened    uint64 // streams by this side
	Accepted  uint64 // streams of the peer
	Refused   uint64 // streams of the peer above MaxStreams
	Resets    uint64 // streams reset, by either side
	Read      uint64 // bytes from the transport
	Written   uint64 // bytes to the transport
	Writes    uint64 // writes they took
	Discarded uint64 // bytes for streams that were gone
	Lent      int64  // bytes of windows on top of each stream's own
	Buffered  int64  // bytes received and not read
}

// Stats reads the counters. Lent and Buffered are those of the Memory, and so
// of all sessions that share it.
func (s *Session) Stats() Stats {
	w := s.wire
	st := Stats{
		Opened:    w.counts.opened.Load(),
		Accepted:  w.counts.accepted.Load(),
		Refused:   w.counts.refused.Load(),
		Resets:    w.counts.resets.Load(),
		Read:      w.counts.read.Load(),
		Discarded: w.counts.discarded.Load(),
		Written:   w.out.written.Load(),
		Writes:    w.out.writes.Load(),
	}
	w.mu.Lock()
	st.Open = len(w.streams)
	w.mu.Unlock()
	m := w.config.Memory
	m.mu.Lock()
	st.Lent, st.Buffered = m.lent, m.buffered
	m.mu.Unlock()
	return st
}

// yamuxLog passes on what yamux has to say. The wire keeps from it most of
// what it would complain about.
type yamuxLog struct{ log *slog.Logger }

func (l *yamuxLog) Print(v ...any)                 { l.log.Debug(fmt.Sprint(v...)) }
func (l *yamuxLog) Printf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *yamuxLog) Println(v ...any)               { l.log.Debug(fmt.Sprintln(v...)) }
