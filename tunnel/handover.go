package tunnel

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/descriptor"
)

// Between two processes of a host, a session runs over a unix socket, and the
// connected socket of a stream can be handed over instead of its bytes. It
// goes along with a frame of its own, which yamux does not see. Sockets come
// out in the order they went in, but maybe with bytes that are ahead of their
// frame: they wait in a queue until it has come.

// noSocket is no descriptor.
const noSocket = -1

// enclosed is a socket that goes along with the frame at an offset.
type enclosed struct {
	at int
	fd int
}

func closeAll(sockets []enclosed) {
	for _, s := range sockets {
		unix.Close(s.fd)
	}
}

var errNoHandOver = errors.New("sockets are handed over between processes of a host only")

// HandOver sends the other end a socket, which stays the caller's to close.
// The other end finds it with TakeSocket when it has read what is written
// after HandOver.
func (s *Stream) HandOver(conn syscall.Conn) error {
	if _, ok := s.session.wire.conn.(*net.UnixConn); !ok {
		return errNoHandOver
	}
	fd, err := descriptor.Duplicate(conn)
	if err != nil {
		return fmt.Errorf("handing a socket over: %w", err)
	}
	if !s.session.wire.sendSocket(s.ledger, fd) {
		unix.Close(fd)
		return fmt.Errorf("handing a socket over: %w", s.explain(nil))
	}
	return nil
}

// sendSocket sends a socket for l. It owns fd if it returns true.
func (w *wire) sendSocket(l *ledger, fd int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.removed || l.resetSent {
		return false
	}
	return w.out.enclose(frame{kind: socketFrame, stream: l.id}, fd)
}

// handOver writes b with a socket to a unix connection.
func handOver(conn net.Conn, b []byte, fd int) error {
	rights := unix.UnixRights(fd)
	for {
		n, _, err := conn.(*net.UnixConn).WriteMsgUnix(b, rights, nil)
		switch {
		case errors.Is(err, unix.ETOOMANYREFS):
			// As many sockets of this user are on their way as it may have open
			// files. The other end is about to take them.
			time.Sleep(time.Millisecond)
		case err != nil:
			return err
		case n < len(b):
			_, err := conn.Write(b[n:])
			return err
		default:
			return nil
		}
	}
}

// TakeSocket returns the descriptor of the socket that the other end has
// handed over, which is the caller's to close, and whether there is one. It is
// connected, and a stream socket.
func (s *Stream) TakeSocket() (fd int, ok bool) {
	w := s.session.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	fd = s.ledger.socket
	s.ledger.socket = noSocket
	return fd, fd != noSocket
}

// ear reads from the transport, notices that the peer is alive, and keeps the
// sockets that come with the bytes.
type ear struct {
	w       *wire
	control [maxSockets * 24]byte // 16 bytes of header and a descriptor each, aligned

	mu      sync.Mutex
	sockets []int
	closed  bool
}

// maxSockets is how many sockets may wait for their frames, which are in the
// same read, or the next.
const maxSockets = 4

func (e *ear) Read(p []byte) (n int, err error) {
	if u, ok := e.w.conn.(*net.UnixConn); ok && e.w.config.Sockets {
		n, err = e.readSockets(u, p)
	} else {
		n, err = e.w.conn.Read(p)
	}
	if n > 0 {
		e.w.counts.heard.Add(1)
		e.w.counts.read.Add(uint64(n))
	}
	return n, err
}

func (e *ear) readSockets(u *net.UnixConn, p []byte) (int, error) {
	n, used, flags, _, err := u.ReadMsgUnix(p, e.control[:])
	n = max(n, 0) // with an error, it is less
	if used <= 0 && flags&unix.MSG_CTRUNC == 0 {
		return n, err
	}
	fds, parseErr := parseRights(e.control[:used])
	if parseErr == nil && flags&unix.MSG_CTRUNC != 0 {
		parseErr = violation("more sockets at a time than there may be")
	}
	if parseErr == nil {
		parseErr = checkSockets(fds)
	}
	if parseErr == nil && !e.keep(fds) {
		parseErr = violation("sockets without frames")
	}
	if parseErr != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return 0, parseErr
	}
	return n, err
}

// keep queues sockets, unless there are too many or nobody wants them.
func (e *ear) keep(fds []int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.sockets)+len(fds) > maxSockets {
		return false
	}
	e.sockets = append(e.sockets, fds...)
	return true
}

// next is the oldest socket that waits for its frame, or noSocket.
func (e *ear) next() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.sockets) == 0 {
		return noSocket
	}
	fd := e.sockets[0]
	e.sockets = e.sockets[1:]
	return fd
}

// close closes the sockets that wait, and those that come.
func (e *ear) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, fd := range e.sockets {
		unix.Close(fd)
	}
	e.sockets = nil
}

// parseRights returns the descriptors in control messages, also with an error.
func parseRights(control []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("reading control messages: %w", err)
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, e := unix.ParseUnixRights(&m)
		fds, err = append(fds, got...), errors.Join(err, e)
	}
	return fds, err
}

// checkSockets has none but connected TCP sockets pass: what comes from
// another process ends up in the event loop.
func checkSockets(fds []int) error {
	for _, fd := range fds {
		domain, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		proto, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		_, err3 := unix.Getpeername(fd)
		if errors.Is(err3, unix.ENOTCONN) {
			err3 = nil // it has been reset since, as reading from it will tell
		}
		if errors.Join(err1, err2, err3) != nil || domain != unix.AF_INET && domain != unix.AF_INET6 || proto != unix.IPPROTO_TCP {
			return violation("a descriptor that is not a TCP socket")
		}
	}
	return nil
}

// receiveSocket is for the frame that a socket came along with.
func (w *wire) receiveSocket(id uint32) error {
	if !w.config.Sockets {
		return violation("a socket where none is wanted")
	}
	fd := w.ear.next()
	if fd == noSocket {
		return violation("the frame of a socket without one")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.streams[id]
	if l == nil || l.forgotten || l.socket != noSocket {
		unix.Close(fd) // the stream was reset while this was on its way
		return nil
	}
	l.socket = fd
	return nil
}
