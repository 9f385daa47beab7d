package relay

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/sockopt"
)

// begin takes over an accepted connection: finds its link and starts to
// connect to the source.
func (w *worker) begin(fd int32, route func(netip.AddrPort) *Link) {
	local, errno := localAddr(fd)
	var l *Link
	if errno == 0 {
		l = route(local)
	}
	if l == nil || l.Source == nil && l.Take == nil || !l.use(w.engine) {
		w.engine.unrouted.Add(1)
		w.refuse(fd)
		return
	}
	if !l.admit() {
		w.refuse(fd)
		return
	}
	if l.Take != nil {
		w.takeOut(fd, local, l)
		return
	}
	source, to, err := l.Source.Socket(local.Port())
	if err != nil {
		l.leave(noSocket)
		w.refuse(fd)
		return
	}
	c := w.open(fd, int32(source), l)
	c.state = connecting
	setOptions(int32(source))
	switch errno := startConnect(int32(source), to); errno {
	case 0, unix.EINPROGRESS, unix.EINTR:
	default:
		w.end(c, connectCause(errno))
		return
	}
	if !w.shortcut(c) {
		return
	}
	if !w.watch(c, fromSource) || !w.watch(c, fromRecipient) {
		w.end(c, noSocket)
		return
	}
	w.schedule(c)
}

// shortcut tries to pass the recipient's first bytes on at once. Between two
// sockets of one host the whole handshake takes place within connect, which
// says all the same that it is in progress, and many clients have sent their
// request by then. It saves the first event of both sockets. It is false when
// the connection is gone.
func (w *worker) shortcut(c *conn) bool {
	recipient, source := &c.ends[fromRecipient], &c.ends[fromSource]
	buf := w.spare[:]
	n, errno := w.calls.recv(recipient.fd, buf)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		n = 0
	case errno != 0:
		w.end(c, abandoned)
		return false
	case n == 0:
		recipient.flags = ended
	case n == len(buf):
		recipient.flags = bulk
	}
	m := 0
	if n > 0 {
		m, errno = w.calls.send(source.fd, buf[:n], 0)
		switch {
		case errno == 0:
			w.copiedBytes += uint64(m)
			recipient.moved = uint64(m)
			w.count(c.link, fromRecipient, uint64(m))
		case errno == unix.EAGAIN || errno == unix.EINTR:
			m = 0
		default:
			w.end(c, connectCause(errno))
			return false
		}
		w.hold(recipient, buf[m:n])
	}
	if m > 0 {
		c.state = established
		recipient.flags |= writable
		source.flags = writable
	}
	if m == 0 || m < n {
		// Until the source has answered, the recipient is only watched for a
		// reset; what more it sends waits in its socket.
		source.flags = wantOut
	}
	return true
}

// join takes over two connected sockets.
func (w *worker) join(a, b int32, l *Link) {
	c := w.open(a, b, l)
	c.state, c.shared = established, true
	for i := range c.ends {
		setInt(c.ends[i].fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		sockopt.ResetOnClose(int(c.ends[i].fd))
		// A unix socket's read stops between messages of different senders.
		c.ends[i].flags = writable | unsure
		if !w.watch(c, i) {
			w.end(c, noSocket)
			return
		}
	}
	w.schedule(c)
}

// connected turns an event of a connecting connection into its next state.
// It is false when there is nothing to move.
func (w *worker) connected(c *conn, i int, events uint32) bool {
	if i == fromRecipient {
		// A recipient that has only sent its FIN may well wait for an
		// answer. One that has reset has gone.
		if events&unix.EPOLLERR != 0 {
			w.end(c, abandoned)
		}
		return false
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		errno, _ := getInt(c.ends[fromSource].fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if errno != 0 || events&unix.EPOLLOUT == 0 {
			w.end(c, connectCause(syscall.Errno(errno)))
			return false
		}
	}
	if events&unix.EPOLLOUT == 0 {
		return false
	}
	c.state = established
	c.ends[fromRecipient].flags |= writable
	return true
}
