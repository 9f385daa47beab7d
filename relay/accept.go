package relay

import (
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listener is a listening socket that the engine accepts from.
type Listener struct {
	engine *Engine
	id     int32
	fd     int32
	route  func(netip.AddrPort) *Link

	once sync.Once
}

// Close stops accepting and closes the socket; what waits in its backlog is
// reset by the kernel. Connections that were accepted live on. When Close has
// returned, route is not called any more. It is not to be called from route.
func (l *Listener) Close() error {
	l.once.Do(func() {
		// No worker begins to listen after it has been forgotten.
		l.engine.forget(l)
		l.engine.everyWorker(func(w *worker) { w.stopListening(l) })
		// What was accepted by then may be on its way to another worker.
		l.engine.everyWorker(func(*worker) {})
		closeFD(l.fd)
	})
	return nil
}

// listening is what one worker knows of a listener.
type listening struct {
	listener *Listener
	paused   bool
	retryAt  uint32 // tick
	backOff  uint32 // ticks
}

const (
	firstBackOff = 1  // tick
	mostBackOff  = 60 // ticks, 1 s
	// acceptBatch bounds what one event accepts before connections have
	// their turn.
	acceptBatch = 16
)

func (w *worker) listen(l *Listener) error {
	if errno := w.watchListener(l); errno != 0 {
		return errno
	}
	w.listeners[l.id] = &listening{listener: l}
	return nil
}

func (w *worker) watchListener(l *Listener) syscall.Errno {
	// Level-triggered and exclusive: a new connection wakes one worker that
	// sleeps, not all of them, and what that one leaves another finds.
	return w.poll.control(unix.EPOLL_CTL_ADD, l.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, l.id, isListener)
}

func (w *worker) stopListening(l *Listener) {
	if s := w.listeners[l.id]; s != nil {
		if s.paused {
			w.paused = slices.DeleteFunc(w.paused, func(p *listening) bool { return p == s })
		} else {
			w.poll.remove(l.fd)
		}
		delete(w.listeners, l.id)
	}
}

// accept takes what waits.
func (w *worker) accept(s *listening) {
	for range acceptBatch {
		fd, errno := acceptConn(s.listener.fd)
		switch {
		case errno == 0:
			s.backOff = 0
			w.place(fd, s.listener.route)
		case errno == unix.EAGAIN:
			return
		case aboutOne(errno):
		case errno == unix.EBADF || errno == unix.EINVAL || errno == unix.ENOTSOCK:
			w.engine.log().Error("listener is no more", "error", errno)
			w.stopListening(s.listener)
			return
		default:
			// For want of descriptors or memory, most likely: others give
			// them back.
			w.pause(s)
			return
		}
	}
}

// aboutOne says whether an accept failed because of the connection it took,
// which is gone with that. See accept(2), "Error handling".
func aboutOne(errno syscall.Errno) bool {
	switch errno {
	case unix.EINTR, unix.ECONNABORTED, unix.EPERM, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP,
		unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET:
		return true
	}
	return false
}

// pause takes the listener out of the epoll set for a while: it stays
// readable, and there is nothing to be done about it now.
func (w *worker) pause(s *listening) {
	s.backOff = min(max(2*s.backOff, firstBackOff), mostBackOff)
	s.retryAt = w.now + s.backOff
	if !s.paused {
		s.paused = true
		w.paused = append(w.paused, s)
		w.poll.remove(s.listener.fd)
	}
	w.engine.backedOff.Add(1)
}

// resume watches those listeners again whose pause is over.
func (w *worker) resume() {
	w.paused = slices.DeleteFunc(w.paused, func(s *listening) bool {
		if int32(s.retryAt-w.now) > 0 {
			return false
		}
		if w.watchListener(s.listener) != 0 {
			w.pause(s)
			return false
		}
		s.paused = false
		return true
	})
}
