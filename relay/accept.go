package relay

import (
	"net/netip"
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
	acceptBatch = 64
)

func (w *worker) listen(l *Listener) error {
	// Level-triggered and exclusive: a new connection wakes one worker that
	// sleeps, not all of them, and what that one leaves another finds.
	errno := w.poll.control(unix.EPOLL_CTL_ADD, l.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, l.id, isListener)
	if errno != 0 {
		return errno
	}
	w.listeners[l.id] = &listening{listener: l}
	return nil
}

func (w *worker) stopListening(l *Listener) {
	if s := w.listeners[l.id]; s != nil {
		if !s.paused {
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
		w.poll.remove(s.listener.fd)
	}
	w.engine.backedOff.Add(1)
}

func (w *worker) retryListeners() {
	for _, s := range w.listeners {
		if s.paused && int32(s.retryAt-w.now) <= 0 {
			s.paused = false
			if errno := w.poll.control(unix.EPOLL_CTL_ADD, s.listener.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, s.listener.id, isListener); errno != 0 {
				s.paused = true
				w.pause(s)
			}
		}
	}
}
