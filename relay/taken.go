package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/sockopt"
)

// Taken is a connection that Link.Take has got. It stays one of its link, is
// counted there and cut with the others, until End or Pair is called, one of
// them and once.
type Taken struct {
	// FD is the accepted socket, non-blocking. It is the taker's to close,
	// before or after End. That resets it, until SO_LINGER is taken back: what
	// a killed taker leaves behind must not look whole.
	FD     int
	Client netip.AddrPort // the recipient's end
	Local  netip.AddrPort // the address it was made to

	// ToSource and ToRecipient count the bytes that have been moved. The
	// taker writes them as it goes on.
	ToSource, ToRecipient atomic.Uint64

	engine *Engine
	link   *Link
	born   uint32 // tick
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// errCut is the cause by which the context of a connection that was cut is
// done.
var errCut = errors.New("the connection was cut")

// takenSet is all connections of an engine that others carry.
type takenSet struct {
	sync.Mutex
	of map[*Link]map[*Taken]struct{}
}

// takeOut gives an accepted connection, which has been admitted, to its link's
// taker.
func (w *worker) takeOut(fd int32, local netip.AddrPort, l *Link) {
	client, _ := remoteAddr(fd)
	t := &Taken{FD: int(fd), Client: client, Local: local, engine: w.engine, link: l, born: w.now}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	w.engine.taken.add(t)
	l.Take(t)
}

// Take makes a connection of l of fd, a connected stream socket, as if the
// engine had accepted it and Link.Take had got it: for one that came from
// elsewhere and is carried by others. If Take fails, fd stays the caller's.
func (e *Engine) Take(fd int, l *Link) (*Taken, error) {
	const doing = "taking a connection"
	if !e.isRunning() {
		return nil, fmt.Errorf(doing+": %w", ErrClosed)
	}
	if !l.use(e) {
		return nil, fmt.Errorf(doing+": %w", errForeign)
	}
	if !l.admit() {
		return nil, fmt.Errorf(doing+": %w", ErrLimit)
	}
	t := &Taken{FD: fd, engine: e, link: l}
	t.Local, _ = localAddr(int32(fd))
	t.Client, _ = remoteAddr(int32(fd))
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	e.workers[0].call(func(w *worker) { t.born = w.now })
	e.taken.add(t)
	if !e.isRunning() { // Close may have cut the others just before
		t.End(nil)
		return nil, fmt.Errorf(doing+": %w", ErrClosed)
	}
	return t, nil
}

func (e *Engine) isRunning() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.running
}

// Context is done when the connection has been cut, or was ended: whatever
// serves it stops then, and resets it. A context.AfterFunc does that without
// a goroutine.
func (t *Taken) Context() context.Context { return t.ctx }

// Conn makes a connection of FD, which then is closed with it, or at once if
// it fails.
func (t *Taken) Conn() (*net.TCPConn, error) {
	f := os.NewFile(uintptr(t.FD), "connection")
	defer f.Close() // FileConn has a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("taking over a connection: %w", err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("taking over a connection: it is one of %s", c.LocalAddr().Network())
	}
	return tcp, nil
}

// Refuse closes FD with a reset, as a connection that came to nothing for the
// reason err, and ends it.
func (t *Taken) Refuse(err error) {
	sockopt.ResetOnClose(t.FD)
	closeFD(int32(t.FD))
	t.End(err)
}

// End says that the connection is over: by itself if err is nil, and else for
// a reason that is counted as one of the link's failures by the error number
// that err wraps.
func (t *Taken) End(err error) {
	why := causeOf(err)
	if context.Cause(t.ctx) == errCut {
		why = wasCut
	}
	if t.engine.taken.remove(t) {
		t.link.leave(why)
	}
	t.cancel(nil)
}

// Pair gives the connection back to the engine, which relays between
// recipient, FD or a duplicate of it, and source, a connected stream socket.
// The engine owns both from then on; if Pair fails they stay the caller's, who
// still has to call End. What the client has sent, and others have read, has
// to be written to source before.
func (t *Taken) Pair(recipient, source int) error {
	for _, fd := range []int{recipient, source} {
		if err := takeSocket(fd, unix.SOCK_STREAM); err != nil {
			return fmt.Errorf("giving a connection back: %w", err)
		}
	}
	e := t.engine
	e.taken.Lock()
	defer e.taken.Unlock()
	if _, mine := e.taken.of[t.link][t]; !mine || t.ctx.Err() != nil {
		return fmt.Errorf("giving a connection back: %w", errCut)
	}
	if !e.join(recipient, source, t.link) {
		return fmt.Errorf("giving a connection back: %w", ErrClosed)
	}
	// Link.Cut may have asked the worker already, but looks again then. Not
	// earlier: it would look before the worker has the connection.
	e.moves.Add(1)
	e.taken.forget(t)
	t.cancel(nil)
	return nil
}

func (s *takenSet) add(t *Taken) {
	s.Lock()
	defer s.Unlock()
	if s.of == nil {
		s.of = make(map[*Link]map[*Taken]struct{})
	}
	of := s.of[t.link]
	if of == nil {
		of = make(map[*Taken]struct{})
		s.of[t.link] = of
	}
	of[t] = struct{}{}
}

// remove is false if t has been removed before.
func (s *takenSet) remove(t *Taken) bool {
	s.Lock()
	defer s.Unlock()
	if _, there := s.of[t.link][t]; !there {
		return false
	}
	s.forget(t)
	return true
}

// forget is remove with the lock held. The bytes go where Link.Stats finds
// them from now on.
func (s *takenSet) forget(t *Taken) {
	of := s.of[t.link]
	if delete(of, t); len(of) == 0 {
		delete(s.of, t.link)
	}
	bytes := &t.link.live.shards[0].bytes
	bytes[fromRecipient].Add(t.ToSource.Load())
	bytes[fromSource].Add(t.ToRecipient.Load())
}

// cut tells the takers of a link, nil for all links, that their connections
// are over, and returns how many did not know.
func (s *takenSet) cut(l *Link) int {
	s.Lock()
	defer s.Unlock()
	n := 0
	for link, of := range s.of {
		if l != nil && link != l {
			continue
		}
		for t := range of {
			if t.ctx.Err() == nil {
				t.cancel(errCut) // functions that wait for it have goroutines of their own
				n++
			}
		}
	}
	return n
}

// each calls fn, which does not call back, for the connections of a link.
func (s *takenSet) each(l *Link, fn func(*Taken)) {
	s.Lock()
	defer s.Unlock()
	for t := range s.of[l] {
		fn(t)
	}
}

// causeOf sorts what a taker says about the end of a connection.
func causeOf(err error) cause {
	var errno syscall.Errno
	switch {
	case err == nil:
		return finished
	case errors.As(err, &errno):
		return connectCause(errno)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return timedOut
	}
	return otherCause
}
