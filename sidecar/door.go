package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/sockopt"
)

// door is a port that takes connections while it is open, and refuses them
// while it is shut. Both may be called at any time, by one goroutine; close
// comes last.
type door interface {
	open() error
	shut() error
	close() error
}

// streamDoor is a TCP port. It is kept while it is shut: the socket stays
// bound, and does not listen.
type streamDoor struct {
	at     netip.AddrPort
	fd     int
	handle func(net.Conn) // owns the connection, and is quick
	log    *slog.Logger

	ln        net.Listener // nil while it is shut
	accepting sync.WaitGroup
}

func newStreamDoor(at netip.AddrPort, handle func(net.Conn), log *slog.Logger) (*streamDoor, error) {
	family, address := sockaddr(at)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("listening on %v: %w", at, err)
	}
	// As net.Listen has it: connections of an earlier process may still linger.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, address)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listening on %v: %w", at, err)
	}
	sockopt.ResetOnClose(fd)
	if at.Addr().IsLoopback() {
		sockopt.Reno(fd)
	}
	return &streamDoor{at: at, fd: fd, handle: handle, log: log}, nil
}

func sockaddr(at netip.AddrPort) (family int, address unix.Sockaddr) {
	if at.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

func (d *streamDoor) open() error {
	if d.ln != nil {
		return nil
	}
	if err := unix.Listen(d.fd, unix.SOMAXCONN); err != nil {
		return fmt.Errorf("listening on %v: %w", d.at, err)
	}
	ln, err := listener(d.fd)
	if err != nil {
		unix.Shutdown(d.fd, unix.SHUT_RD)
		return fmt.Errorf("listening on %v: %w", d.at, err)
	}
	d.ln = ln
	d.accepting.Go(func() { accept(context.Background(), ln, d.log, d.handle) })
	return nil
}

// listener has a descriptor of its own.
func listener(fd int) (net.Listener, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), "listener")
	defer f.Close()
	return net.FileListener(f)
}

// shut resets the connections that nobody has accepted.
func (d *streamDoor) shut() error {
	if d.ln == nil {
		return nil
	}
	err := errors.Join(unix.Shutdown(d.fd, unix.SHUT_RD), d.ln.Close())
	d.accepting.Wait()
	d.ln = nil
	if errors.Is(err, net.ErrClosed) {
		err = nil // accept has closed it, as the shutdown ended it
	}
	return err
}

func (d *streamDoor) close() error { return errors.Join(d.shut(), unix.Close(d.fd)) }
