//go:build linux

package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stranger is the IPv4 dummy address (RFC 7600, section 4.8), which no host
// has. A source sees a recipient at it that has no address of its own, or one
// that the source has, too: seen at that one, or at 127.0.0.1, the recipient
// would match what a server allows itself (samehost or 127.0.0.1/32 in
// pg_hba.conf, Redis' protected mode).
var stranger = netip.AddrFrom4([4]byte{192, 0, 0, 8})

// loopback is where a source without any address is reached.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Dialer makes sockets that connect to the servers in a source's namespace
// from inside of it, with the addresses of recipients. Use one for all
// recipients of a source: it holds the stock of sockets they share.
type Dialer struct {
	ns     *Namespace
	before map[string]string // sysctls to put back
	user   int               // a marked socket: tells other Dialers that this one is here
	tcp    *Pool
	udp    *Pool

	mu     sync.Mutex
	routes map[netip.Addr]*packetRoute // by the address of the recipient
	closed bool
}

// PrepareSource sets up routing in a source's namespace, and returns what
// makes sockets in it. To find it set up already, by another Dialer or by a
// process that was killed, is no error. The caller closes the Dialer, and n
// after it.
func (n *Namespace) PrepareSource() (*Dialer, error) {
	d := &Dialer{ns: n, user: -1, routes: make(map[netip.Addr]*packetRoute)}
	err := n.Do(func() (err error) {
		if d.user, err = newPresence(); err != nil {
			return err
		}
		d.before, err = addRoutes()
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing a source's namespace: %w", err), d.release())
	}
	d.tcp = n.NewPool(newStream)
	d.udp = n.NewPool(newPacket)
	return d, nil
}

// Close closes the sockets in stock, and undoes the routing unless it is still
// needed: by connections that were made through the Dialer and are open yet,
// or by another Dialer, be it in another process. What is left then is
// harmless, and gone with the namespace. So are the sysctls, unless it was this
// Dialer that set them.
func (d *Dialer) Close() error {
	d.mu.Lock()
	wasClosed := d.closed
	d.closed = true
	for _, route := range d.routes {
		route.close()
	}
	d.mu.Unlock()
	if wasClosed {
		return nil
	}
	return errors.Join(d.tcp.Close(), d.udp.Close(), d.release())
}

// release gives up the presence, and undoes the routing if that was the last.
func (d *Dialer) release() error {
	if d.user < 0 {
		return nil
	}
	unix.Close(d.user)
	d.user = -1
	err := d.ns.Do(func() error {
		if used, err := markInUse(Mark); err != nil || used {
			return err
		}
		if err := removeRoutes(d.before); err != nil {
			return err
		}
		// Somebody who came after we looked has found the rules there, and
		// needs them again. Whoever comes from now on sees that they are not.
		if used, err := markInUse(Mark); err != nil || !used {
			return err
		}
		_, err := addRoutes()
		return err
	})
	if err != nil {
		return fmt.Errorf("undoing a source's routing: %w", err)
	}
	return nil
}

// newPresence makes a socket that does nothing but be found by markInUse.
func newPresence() (int, error) {
	fd, err := newPacket()
	if err != nil {
		return -1, err
	}
	if err := bind(fd, netip.AddrPortFrom(stranger, 0)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// forwarded are the options of a socket that is to be bound to an address the
// namespace does not have.
var forwarded = []option{
	{"IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1},
	{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, Mark},
}

// newStream makes a TCP socket to connect with, where the calling thread is.
func newStream() (int, error) {
	return newSocket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, func(fd int) error {
		if err := setOptions(fd, forwarded...); err != nil {
			return err
		}
		if err := setOptions(fd,
			// The port is chosen by connect(2), so that each server may be
			// connected to from all of them.
			option{"IP_BIND_ADDRESS_NO_PORT", unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1},
			// Without, a server of the source could not bind a port that one of
			// these connections happens to have, not even with SO_REUSEADDR.
			option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
			option{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		); err != nil {
			return err
		}
		return bindToLoopback(fd)
	})
}

// newPacket makes a UDP socket to connect with, where the calling thread is.
func newPacket() (int, error) {
	return newSocket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, func(fd int) error {
		if err := setOptions(fd, forwarded...); err != nil {
			return err
		}
		return bindToLoopback(fd)
	})
}

// bindToLoopback binds a socket to the device that all its packets take. The
// kernel then knows the connection for one within the host, and net.ipv4.
// tcp_tw_reuse, which is 2 by default, lets a port be used again a second after
// it was closed. Otherwise a recipient that closes its connections first, as
// clients do, has to make do with 28,232 of them a minute for each port of the
// source, and the search for a free one takes a millisecond long before that.
func bindToLoopback(fd int) error {
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
		return fmt.Errorf("setting SO_BINDTODEVICE: %w", err)
	}
	return nil
}

// Source makes sockets that connect to one source as one recipient.
type Source struct {
	d     *Dialer
	from  netip.Addr
	to    netip.Addr
	route *packetRoute

	closed bool // guarded by d.mu
}

// Source returns what connects to the source at its address own, seen by its
// servers at the address of the recipient.
//
// If own is not an IPv4 address, the source has none and is connected to at
// 127.0.0.1: it cannot be listening elsewhere. If recipient is not, or is an
// address of the source itself, the servers see 192.0.0.8, the dummy address
// of RFC 7600. So they never see their own address nor a loopback one.
//
// The caller closes the Source when its connections are closed.
func (d *Dialer) Source(recipient, own netip.Addr) (*Source, error) {
	from, to := recipient.Unmap(), own.Unmap()
	if !to.Is4() {
		to = loopback
	}
	taken, err := d.addresses()
	if err != nil {
		return nil, fmt.Errorf("listing a source's addresses: %w", err)
	}
	if !from.Is4() || !from.IsGlobalUnicast() || from == to || slices.Contains(taken, from) {
		from = stranger
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, os.ErrClosed
	}
	route := d.routes[from]
	if route == nil {
		route = newPacketRoute(d.ns, from)
		d.routes[from] = route
	}
	route.sources++
	return &Source{d: d, from: from, to: to, route: route}, nil
}

// addresses returns the IPv4 addresses of the namespace.
func (d *Dialer) addresses() (addrs []netip.Addr, err error) {
	err = d.ns.Do(func() error {
		list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				addrs = append(addrs, addr.Unmap())
			}
		}
		return nil
	})
	return addrs, err
}

// Addr returns the address at which the source's servers see the recipient.
func (s *Source) Addr() netip.Addr { return s.from }

// Socket returns a non-blocking TCP socket, bound to the recipient's address,
// and where to connect it to. The caller connects and closes it. A port on
// which nobody listens refuses at once.
func (s *Source) Socket(port uint16) (fd int, to netip.AddrPort, err error) {
	to = netip.AddrPortFrom(s.to, port)
	fd, err = s.d.tcp.Get()
	if err != nil {
		return -1, to, fmt.Errorf("making a socket to connect to %v/tcp: %w", to, err)
	}
	if err := bind(fd, netip.AddrPortFrom(s.from, 0)); err != nil {
		unix.Close(fd)
		return -1, to, fmt.Errorf("binding a socket to %v: %w", s.from, err)
	}
	return fd, to, nil
}

// PacketSocket returns a non-blocking UDP socket, bound to the recipient's
// address and a port of its own, and where to connect it to. The caller
// connects and closes it. It has to connect: only then does the socket receive
// nothing but answers, and ECONNREFUSED where no server is.
func (s *Source) PacketSocket(port uint16) (fd int, to netip.AddrPort, err error) {
	to = netip.AddrPortFrom(s.to, port)
	if err := s.route.open(s.to, port); err != nil {
		return -1, to, fmt.Errorf("routing the answers of %v/udp: %w", to, err)
	}
	fd, err = s.d.udp.Get()
	if err != nil {
		return -1, to, fmt.Errorf("making a socket to connect to %v/udp: %w", to, err)
	}
	if err := s.route.bind(fd); err != nil {
		unix.Close(fd)
		return -1, to, fmt.Errorf("binding a socket to %v: %w", s.from, err)
	}
	return fd, to, nil
}

// Close forgets the recipient. Its UDP sockets that are still open get no
// more answers if this was the last Source of the Dialer with its address.
func (s *Source) Close() error {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.route.sources--; s.route.sources > 0 {
		return nil
	}
	delete(s.d.routes, s.from)
	return s.route.remove()
}
