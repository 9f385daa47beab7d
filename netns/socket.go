//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// backlog is cut down by the kernel to net.core.somaxconn, 4096 by default
	// since Linux 5.4. There is no reason to ask for less.
	backlog = 65535

	// packetBuffer is the size, in bytes, of a buffer that takes the datagrams
	// of every client of a namespace. The default of 208 KiB is made for one
	// client, and loses datagrams in the time it takes the reader to wake up.
	packetBuffer = 4 << 20
)

// ListenTCP returns the descriptor of a non-blocking TCP listener on addr, an
// IPv4 address, in the namespace. The caller closes it. Port 0 has the kernel
// choose one.
//
// The connections it accepts inherit SO_REUSEADDR: a server which sets that
// option too can bind their local port while they are open. They inherit
// TCP_NODELAY as well, which saves a system call on each.
func (n *Namespace) ListenTCP(addr netip.AddrPort) (int, error) {
	// IPPROTO_TCP, and not Go's net.Listen, whose listeners are MPTCP ones
	// where the kernel has it: a BPF socket map takes no MPTCP socket.
	fd, err := n.socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, func(fd int) error {
		if err := setOptions(fd,
			option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
			option{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		); err != nil {
			return err
		}
		if err := bind(fd, addr); err != nil {
			return err
		}
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	})
	if err != nil {
		return -1, fmt.Errorf("listening on %v/tcp: %w", addr, err)
	}
	return fd, nil
}

// ListenPackets returns the descriptor of a non-blocking UDP socket bound to
// addr, an IPv4 address, in the namespace. The caller closes it. With every
// datagram come two control messages: IP_ORIGDSTADDR, the address and port it
// was sent to, which are not the socket's own if a BPF program steered it
// here, and IP_PKTINFO.
func (n *Namespace) ListenPackets(addr netip.AddrPort) (int, error) {
	fd, err := n.socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, func(fd int) error {
		if err := setOptions(fd,
			option{"SO_RCVBUFFORCE", unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer},
			option{"IP_RECVORIGDSTADDR", unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1},
			option{"IP_PKTINFO", unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
		); err != nil {
			return err
		}
		return bind(fd, addr)
	})
	if err != nil {
		return -1, fmt.Errorf("listening on %v/udp: %w", addr, err)
	}
	return fd, nil
}

// RawPackets returns the descriptor of a non-blocking raw socket that sends
// whole IPv4 packets, header included, in the namespace, and receives none.
// The caller closes it.
func (n *Namespace) RawPackets() (int, error) {
	// IPPROTO_RAW: a raw socket of IPPROTO_UDP could send as much, but would
	// also be given a copy of every datagram the namespace receives.
	fd, err := n.socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, func(fd int) error {
		return setOptions(fd, option{"SO_SNDBUFFORCE", unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, packetBuffer})
	})
	if err != nil {
		return -1, fmt.Errorf("opening a raw socket: %w", err)
	}
	return fd, nil
}

// ListenUnix returns the descriptor of a non-blocking stream listener on the
// abstract unix address "@name" in the namespace. The caller closes it. No
// file permission guards an abstract address: whoever is in the namespace can
// connect.
func (n *Namespace) ListenUnix(name string) (int, error) {
	fd, err := n.socket(unix.AF_UNIX, unix.SOCK_STREAM, 0, func(fd int) error {
		// The package unix writes a leading "@" as the NUL of an abstract address.
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	})
	if err != nil {
		return -1, fmt.Errorf("listening on unix address %q: %w", "@"+name, err)
	}
	return fd, nil
}

// EphemeralPorts returns the range from which the kernel takes the ports of
// clients in the namespace, both ends in it: net.ipv4.ip_local_port_range.
func (n *Namespace) EphemeralPorts() (first, last uint16, err error) {
	const name = "net.ipv4.ip_local_port_range"
	err = n.Do(func() error {
		value, err := readSysctl(name)
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(value, &first, &last); err != nil {
			return fmt.Errorf("parsing sysctl %s %q: %w", name, value, err)
		}
		return nil
	})
	return first, last, err
}

// socket makes a socket in the namespace, and calls setup on it there.
func (n *Namespace) socket(family, kind, proto int, setup func(fd int) error) (int, error) {
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = newSocket(family, kind, proto, setup)
		return err
	})
	return fd, err
}

// newSocket makes a socket in the namespace of the calling thread: closed on
// exec, non-blocking, and set up by setup.
func newSocket(family, kind, proto int, setup func(fd int) error) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := setup(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// option is a socket option with the value it is to have.
type option struct {
	text        string // for error messages
	level, name int
	value       int
}

func setOptions(fd int, options ...option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("setting %s: %w", o.text, err)
		}
	}
	return nil
}

func bind(fd int, addr netip.AddrPort) error {
	if !addr.Addr().Is4() {
		return fmt.Errorf("binding %v: not an IPv4 address", addr)
	}
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}))
}
