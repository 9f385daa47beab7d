package relay

import (
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/sockopt"
)

// calls is the seam below which there is only the kernel: the calls that move
// bytes. Tests put short counts, EAGAIN and EINTR there.
//
// recv and send save a few hundred cycles over read and write, which ask the
// file for its position and tell its watchers. They are not counted in
// /proc/self/io, though; a test that counts there puts read and write here.
//
// They go through RawSyscall: none of them can block, so telling the Go
// scheduler about each would only cost time. The price is that a stop of the
// world waits for the one in flight, which is why a splice is bounded in
// size (see pipeSize).
type calls struct {
	recv   func(fd int32, p []byte) (int, syscall.Errno)
	send   func(fd int32, p []byte, flags uint32) (int, syscall.Errno)
	splice func(from, to int32, n int) (int, syscall.Errno)
	ring   *ring // makes recv and send in batches; nil: one by one
}

func kernelCalls() calls {
	return calls{recv: rawRecv, send: rawSend, splice: rawSplice}
}

func rawRecv(fd int32, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// rawSend takes flags besides those that every send has.
func rawSend(fd int32, p []byte, flags uint32) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), 0, 0)
	return int(n), errno
}

// rawSplice never passes SPLICE_F_MORE: it holds the last partial segment
// back like TCP_CORK, up to 200 ms (golang/go#10948).
func rawSplice(from, to int32, n int) (int, syscall.Errno) {
	m, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(m), errno
}

// acceptConn returns a non-blocking connection.
func acceptConn(fd int32) (int32, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int32(n), errno
}

// localAddr is the address the client asked for, also when the listener
// itself stands elsewhere and the connection was steered to it.
func localAddr(fd int32) (netip.AddrPort, syscall.Errno) {
	return socketAddr(unix.SYS_GETSOCKNAME, fd)
}

func remoteAddr(fd int32) (netip.AddrPort, syscall.Errno) {
	return socketAddr(unix.SYS_GETPEERNAME, fd)
}

func socketAddr(call uintptr, fd int32) (netip.AddrPort, syscall.Errno) {
	var sa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}, errno
	}
	return addrPort(&sa), 0
}

// addrPort reads an IPv4 or IPv6 address; the zero AddrPort is any other
// family. IPv4 in IPv6 comes out as IPv4.
func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), swap16(in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), swap16(in.Port))
	}
	return netip.AddrPort{}
}

// putAddr writes addr for the kernel and returns its length there.
func putAddr(sa *unix.RawSockaddrAny, addr netip.AddrPort) uintptr {
	if a := addr.Addr(); a.Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*in = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swap16(addr.Port()), Addr: a.As4()}
		return unix.SizeofSockaddrInet4
	}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
	*in = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swap16(addr.Port()), Addr: addr.Addr().As16()}
	return unix.SizeofSockaddrInet6
}

// swap16 turns a port between host order and network order in place.
func swap16(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}

// startConnect begins to connect fd, a non-blocking socket.
func startConnect(fd int32, to netip.AddrPort) syscall.Errno {
	var sa unix.RawSockaddrAny
	size := putAddr(&sa, to)
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), size)
	return errno
}

func setInt(fd int32, level, option int, value int32) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value)), 4, 0)
	return errno
}

func getInt(fd int32, level, option int) (int32, syscall.Errno) {
	var value int32
	size := uint32(4)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	return value, errno
}

// setOptions is for a socket of the relay, and for a listener, from which the
// accepted ones have them. The relay gathers nothing: what it writes is to be
// sent. And urgent data go with the rest of the stream, as nearly all who use
// them have it: the byte would be lost otherwise, and its mark cannot be
// passed on. A socket resets when it is closed until finish says otherwise.
func setOptions(fd int32) {
	sockopt.ResetOnClose(int(fd))
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
}

// takeSocket checks that fd is a connected or listening socket of the type
// the caller expects and makes it non-blocking: one blocking call would hold
// every connection of a worker.
func takeSocket(fd int, socktype int32) error {
	got, errno := getInt(int32(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	if errno != 0 {
		return fmt.Errorf("taking over descriptor %d: %w", fd, errno)
	}
	if got != socktype {
		return fmt.Errorf("taking over descriptor %d: socket type %d where %d is needed", fd, got, socktype)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("taking over descriptor %d: %w", fd, err)
	}
	return nil
}

// disconnect resets a connection that other descriptors keep open: for them
// it is over as well.
func disconnect(fd int32) {
	sa := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
	if errno != 0 { // no TCP socket
		unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_RDWR, 0)
	}
}

func shutdownWrite(fd int32) {
	unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

// hungUp says whether the other end of a pair has been closed, which a packet
// socket tells like an empty packet.
func hungUp(fd int32) bool {
	p := unix.PollFd{Fd: fd}
	var now unix.Timespec
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return n == 1 && p.Revents&unix.POLLHUP != 0
}

func closeFD(fd int32) {
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// epollSet is one worker's epoll instance. The 64 bits of user data are two
// words, read back as Fd and Pad of the event.
type epollSet struct {
	fd int32
}

func (e epollSet) control(op int, fd int32, events uint32, word, gen int32) syscall.Errno {
	ev := unix.EpollEvent{Events: events, Fd: word, Pad: gen}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(e.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

func (e epollSet) remove(fd int32) {
	var ev unix.EpollEvent
	unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(e.fd), unix.EPOLL_CTL_DEL, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
}

// wait returns the events that are there after at most timeout milliseconds,
// -1 for ever. Only a wait that can sleep is announced to the Go scheduler.
func (e epollSet) wait(events []unix.EpollEvent, timeout int) (int, syscall.Errno) {
	p, size := uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events))
	if timeout == 0 {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(e.fd), p, size, 0, 0, 0)
		return int(n), errno
	}
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(e.fd), p, size, uintptr(timeout), 0, 0)
	return int(n), errno
}
