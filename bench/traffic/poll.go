package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// poll is an epoll set, level-triggered.
type poll struct {
	fd     int
	events [256]unix.EpollEvent
}

func newPoll() (*poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll set: %w", err)
	}
	return &poll{fd: fd}, nil
}

func (p *poll) watch(fd int, events uint32) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (p *poll) change(fd int, events uint32) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// wait returns what is ready, or nothing after the timeout in milliseconds.
func (p *poll) wait(timeout int) ([]unix.EpollEvent, error) {
	for {
		n, err := unix.EpollWait(p.fd, p.events[:], timeout)
		switch err {
		case nil:
			return p.events[:n], nil
		case unix.EINTR: // Go interrupts threads that it takes for busy
		default:
			return nil, fmt.Errorf("waiting for events: %w", err)
		}
	}
}

func (p *poll) close() { unix.Close(p.fd) }

// again says that a call did nothing, and may later.
func again(err error) bool { return err == unix.EAGAIN || err == unix.EINTR }

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// connect starts to connect a non-blocking TCP socket.
func connect(to netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err == nil {
		err = unix.Connect(fd, sockaddr(to))
	}
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, fmt.Errorf("connecting to %v: %w", to, err)
	}
	return fd, nil
}

// connectNow connects and waits until that is done.
func connectNow(to netip.AddrPort) (int, error) {
	fd, err := connect(to)
	if err != nil {
		return -1, err
	}
	if err = waitFor(fd, unix.POLLOUT); err == nil {
		err = connected(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connecting to %v: %w", to, err)
	}
	return fd, nil
}

// connected says how connecting ended.
func connected(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}

// patience is how long a client waits for a server before it gives up.
const patience = 10 * time.Second

var (
	errSilent = errors.New("no answer")
	errClosed = errors.New("the server closed the connection")
)

// waitFor waits until a descriptor is ready for events.
func waitFor(fd int, events int16) error {
	for deadline := time.Now().Add(patience); ; {
		left := max(time.Until(deadline).Milliseconds(), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(left))
		switch {
		case err != nil && err != unix.EINTR:
			return err
		case n > 0:
			return nil
		case left == 0:
			return errSilent
		}
	}
}

// raiseFileLimit lets the process have as many descriptors as it may.
func raiseFileLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}
