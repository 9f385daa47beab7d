// Package socks answers the SOCKS5 handshakes of clients and has somebody else
// connect them: it learns where a client wants to go, says whether that worked,
// and hands the client's socket on. It looks no name up, opens no connection
// and moves nothing that comes after the handshake.
//
// The protocol is read and written by armon/go-socks5, which by itself is an
// open relay for whoever reaches it. What this package keeps it from is said
// where it does: see handshake and client.
package socks

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of a Server's zero values.
const (
	DefaultLimit   = 256
	DefaultTimeout = 10 * time.Second
)

// Server answers handshakes. Its exported fields are not changed once it has
// been used.
type Server struct {
	// Connect opens the way to a port of host: the name a client asked for, as
	// it was written but for a dot at its end, or an IP address. No name has
	// been looked up, and nothing has been allowed yet. ctx ends when the
	// client has waited long enough. What the client is told of an error is
	// said at ErrNotAllowed.
	Connect func(ctx context.Context, host string, port uint16) (Way, error)

	// Password is what clients have to give, with whatever user name. With ""
	// they need none, and cannot give one.
	Password string

	// Limit is how many handshakes are under way at most. The oldest is given
	// up for a new one, so that those who are slow, or do it on purpose, are
	// in nobody's way. 0 is DefaultLimit.
	Limit int
	// Timeout is how long a handshake may take, connecting included. 0 is
	// DefaultTimeout.
	Timeout time.Duration

	// Log gets what became of each handshake, as debug messages. nil discards
	// them.
	Log *slog.Logger

	mu       sync.Mutex
	underWay list.List // of *handshake, oldest first
	givenUp  int       // handshakes that were under way and have not ended yet
	closed   bool

	running sync.WaitGroup // a goroutine for each handshake
}

// Way is the open way to where a client wants to go. Exactly one of its methods
// is called, once.
type Way interface {
	// Carry takes over client, the non-blocking socket of a client that has
	// been told that it is connected. It owns the descriptor, also when
	// it cannot carry the connection.
	Carry(client int)
	// Close is for a client that has gone away.
	Close() error
}

var (
	errGivenUp = errors.New("given up for newer handshakes")
	errClosed  = errors.New("the SOCKS server was closed")
)

// Handle begins a handshake with client, a stream socket that was just
// accepted. It owns the descriptor from then on, and does not block. over, if
// not nil, is called when the handshake is over, whatever came of it.
func (s *Server) Handle(client int, over func()) {
	if over == nil {
		over = func() {}
	}
	h := newHandshake(s, client)
	if !s.enter(h) {
		h.reset()
		over()
		return
	}
	go s.serve(h, over)
}

// serve runs one handshake to its end.
func (s *Server) serve(h *handshake, over func()) {
	defer s.running.Done()
	defer over()
	defer s.leave(h)
	h.run()
}

// Close gives up the handshakes that are under way, and returns when nothing is
// left of them. Connections that were handed on live on. What is handed to
// Handle afterwards is reset.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for e := s.underWay.Front(); e != nil; e = e.Next() {
		e.Value.(*handshake).giveUp(errClosed)
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

func (s *Server) enter(h *handshake) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if limit := s.limit(); s.underWay.Len() >= limit {
		// Those given up end at once, but not before somebody runs them: a flood
		// must not make more of them than of the others.
		if s.givenUp >= limit {
			return false
		}
		oldest := s.underWay.Remove(s.underWay.Front()).(*handshake)
		oldest.place = nil
		s.givenUp++
		oldest.giveUp(errGivenUp)
	}
	h.place = s.underWay.PushBack(h)
	s.running.Add(1)
	return true
}

func (s *Server) leave(h *handshake) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.place == nil {
		s.givenUp--
		return
	}
	s.underWay.Remove(h.place)
}

func (s *Server) limit() int {
	if s.Limit <= 0 {
		return DefaultLimit
	}
	return s.Limit
}

func (s *Server) timeout() time.Duration {
	if s.Timeout <= 0 {
		return DefaultTimeout
	}
	return s.Timeout
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// newFile makes a file of a socket, for its deadlines. Without O_NONBLOCK it
// would have none.
func newFile(fd int) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "socks client")
}
