package traffic

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batch is datagrams that are received, or sent, by one call.
type batch struct {
	headers [batchSize]messageHeader
	vectors [batchSize]unix.Iovec
	peers   [batchSize]unix.RawSockaddrInet4
	bodies  [batchSize]datagram
}

const batchSize = 32

// messageHeader is the kernel's struct mmsghdr.
type messageHeader struct {
	unix.Msghdr
	size uint32
	_    [4]byte
}

// newBatch returns a batch of datagrams on a connected socket, or of ones that
// remember their peers.
func newBatch(connected bool) *batch {
	b := new(batch)
	for i := range b.headers {
		b.vectors[i].Base = &b.bodies[i][0]
		b.vectors[i].SetLen(len(b.bodies[i]))
		b.headers[i].Iov = &b.vectors[i]
		b.headers[i].SetIovlen(1)
		if !connected {
			b.headers[i].Name = (*byte)(unsafe.Pointer(&b.peers[i]))
			b.headers[i].Namelen = unix.SizeofSockaddrInet4
		}
	}
	return b
}

// receive returns how many datagrams there were, up to all.
func (b *batch) receive(fd int) (int, error) { return b.call(unix.SYS_RECVMMSG, fd, batchSize) }

// send sends the first n datagrams, and returns how many the kernel took.
func (b *batch) send(fd, n int) (int, error) { return b.call(unix.SYS_SENDMMSG, fd, n) }

func (b *batch) call(number uintptr, fd, n int) (int, error) {
	done, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(done), nil
}

// roomy gives a socket a queue of a few ten thousand datagrams, so that it is
// not the generator that loses them. Where that is not allowed, it has the
// most that is.
func roomy(fd int) {
	const size = 32 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}
}

// connectPackets makes a UDP socket that talks to one server.
func connectPackets(to unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	roomy(fd)
	if err := unix.Connect(fd, to); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connecting a socket: %w", err)
	}
	return fd, nil
}
