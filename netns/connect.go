//go:build linux

package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects to a TCP port of the source, within the time that ctx has. The
// caller closes the connection; until it calls SetLinger(-1), that is a reset,
// and so it is when the process is killed, at whatever moment that happens. The
// error is ECONNREFUSED where nobody listens.
func (s *Source) Dial(ctx context.Context, port uint16) (*net.TCPConn, error) {
	fd, to, err := s.Socket(port)
	if err != nil {
		return nil, err
	}
	// Before there is a connection: the server may have accepted it long before
	// this process runs again.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt SO_LINGER", err)
	}
	c, err := connected(ctx, fd, to)
	if err != nil {
		return nil, fmt.Errorf("connecting to %v/tcp: %w", to, err)
	}
	return c.(*net.TCPConn), nil
}

// DialPackets is Dial for a UDP port. Whether somebody listens there only shows
// when something was sent.
func (s *Source) DialPackets(ctx context.Context, port uint16) (*net.UDPConn, error) {
	fd, to, err := s.PacketSocket(port)
	if err != nil {
		return nil, err
	}
	c, err := connected(ctx, fd, to)
	if err != nil {
		return nil, fmt.Errorf("connecting to %v/udp: %w", to, err)
	}
	return c.(*net.UDPConn), nil
}

// connected connects fd, a non-blocking socket which it owns, in whatever
// namespace it is: package net would make one in this process's.
func connected(ctx context.Context, fd int, to netip.AddrPort) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), to.String())
	defer f.Close() // FileConn has a duplicate
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		f.SetWriteDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var result error
	begun := false
	err = raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			result = unix.Connect(int(fd), &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
			return result != unix.EINPROGRESS
		}
		// Woken without a reason, it is still under way.
		if _, err := unix.Getpeername(int(fd)); err == nil {
			result = nil
			return true
		}
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			result = os.NewSyscallError("getsockopt", err)
			return true
		}
		if errno == 0 {
			return false
		}
		result = syscall.Errno(errno)
		return true
	})
	if err == nil {
		err = result
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return net.FileConn(f)
}
