// Package sockopt sets those options of TCP sockets that all who carry
// connections here agree on. It reports no failure: a connection without them
// is a worse one, and still a connection.
package sockopt

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reno is for sockets whose other end is on this host, before they are
// connected: BBR goes on pacing when it is replaced later. Package netns says
// why, and has a way that costs less. Reno is in every kernel and allowed to
// every user. Sockets that a listener accepts have it from that.
func Reno(fd int) {
	const name = "reno"
	set(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, unsafe.Pointer(unsafe.StringData(name)), uintptr(len(name)))
}

// ResetOnClose makes the close of fd send a RST, and throw away what is still
// queued, instead of a FIN after it. A socket has this for as long as its
// stream is not whole: a killed process's sockets are closed by the kernel,
// and a peer that sees a FIN takes half of a message for all of it. Sockets
// that a listener accepts have it from that.
func ResetOnClose(fd int) { linger(fd, unix.Linger{Onoff: 1}) }

// EndOnClose takes ResetOnClose back.
func EndOnClose(fd int) { linger(fd, unix.Linger{}) }

func linger(fd int, l unix.Linger) {
	set(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&l), unix.SizeofLinger)
}

// set is raw, as none of these calls can block: the relay makes them for every
// connection.
func set(fd, level, option int, value unsafe.Pointer, size uintptr) {
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(value), size, 0)
}
