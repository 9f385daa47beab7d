package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Tap sees the marked frames that come and go at one interface, and sends
// frames there. For one goroutine at a time.
type Tap struct {
	fd    int
	index int
	magic uint32
}

// offsets are where the token of a frame can be: behind Ethernet; behind ARP,
// or UDP or ICMP on IPv4; behind TCP on IPv4; behind UDP or ICMP on IPv6;
// behind TCP on IPv6. In ascending order, see filter.
var offsets = [...]int{14, 42, 54, 62, 74}

// Open returns a tap on the interface of that name in the calling thread's
// network namespace. It sees frames whose token has the magic, and from now
// on. The caller closes it.
func Open(name string, magic uint32) (*Tap, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("finding interface %q: %w", name, err)
	}
	// Protocol 0: nothing is seen before the filter is there and the socket
	// bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	t := &Tap{fd: fd, index: dev.Index, magic: magic}
	if err := t.attach(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watching %q: %w", name, err)
	}
	return t, nil
}

func (t *Tap) attach() error {
	program := filter(t.magic)
	if err := unix.SetsockoptSockFprog(t.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("setting the filter: %w", err)
	}
	return unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: t.index})
}

// filter is a program (classic BPF) that keeps the frames in which the magic
// is at one of the offsets. A busy interface does not fill the socket then. A
// load from beyond the end of a frame rejects it, so the order counts.
func filter(magic uint32) (program []unix.SockFilter) {
	for i, at := range offsets {
		match := uint8(2*(len(offsets)-i) - 1) // over the rest, and the rejection
		program = append(program,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(at)},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: magic, Jt: match})
	}
	return append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16})
}

// Close ends the tap.
func (t *Tap) Close() error { return unix.Close(t.fd) }

// Send sends a frame out of the interface.
func (t *Tap) Send(frame []byte) error {
	if err := unix.Sendto(t.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: t.index}); err != nil {
		return fmt.Errorf("sending a frame: %w", err)
	}
	return nil
}

// ErrMissed says that the interface had more marked frames than the tap could
// keep, so that it cannot be said what did not come.
var ErrMissed = errors.New("frames were missed")

// Watch calls saw with the id of each marked frame, until saw says that it
// has seen enough or the time has come. Frames the tap's own Send sent are
// not among them.
func (t *Tap) Watch(until time.Time, saw func(id uint32) (enough bool)) error {
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(t.fd, buf, 0)
		switch {
		case err == unix.EAGAIN:
			left := time.Until(until)
			if left <= 0 {
				return t.missed()
			}
			ms := int(left/time.Millisecond) + 1
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}, ms); err != nil && err != unix.EINTR {
				return fmt.Errorf("waiting for frames: %w", err)
			}
			continue
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("reading frames: %w", err)
		}
		if id, ok := find(buf[:n], t.magic); ok && saw(id) {
			return nil
		}
	}
}

// missed asks the kernel whether it had to drop frames for this socket.
func (t *Tap) missed() error {
	stats, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("counting frames: %w", err)
	}
	if stats.Drops > 0 {
		return ErrMissed
	}
	return nil
}

// find is the id of a marked frame.
func find(frame []byte, magic uint32) (id uint32, ok bool) {
	for _, at := range offsets {
		if len(frame) >= at+8 && binary.BigEndian.Uint32(frame[at:]) == magic {
			return binary.BigEndian.Uint32(frame[at+4:]), true
		}
	}
	return 0, false
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
