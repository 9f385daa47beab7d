//go:build linux

// Package portmap gives the links of one recipient their loopback addresses
// and ports, and tells which link an accepted connection belongs to. It opens
// no connections itself and moves no data.
//
// The listening is done on one address of the agent's own, 127.77.0.1, and one
// free high port. A BPF program on the recipient's namespace steers what is
// meant for an alias's exposed ports there. So a link takes no port away from
// the recipient's own servers: a listener on 127.77.0.2:5432 and another one
// on 0.0.0.0:5432 exclude each other, whichever comes first, whatever options
// they set.
package portmap

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
)

// Aliases is where the addresses of aliases are. The first, 127.77.0.0, and
// 127.77.0.1 (link.LocalAddr) are none, but the latter may have ports too.
var Aliases = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 77, 0, 0}), 16)

// Namespace is the network namespace of a recipient: a *netns.Namespace. The
// sockets it makes are non-blocking, and the caller's to close.
type Namespace interface {
	// FD returns a descriptor of the namespace, which stays the Namespace's.
	FD() int
	// ListenTCP returns a listener that is not an MPTCP one: no socket map
	// takes those.
	ListenTCP(netip.AddrPort) (fd int, err error)
	// ListenPackets returns a UDP socket that receives IP_ORIGDSTADDR.
	ListenPackets(netip.AddrPort) (fd int, err error)
	// RawPackets returns a raw socket that sends IPv4 packets with their header.
	RawPackets() (fd int, err error)
	// EphemeralPorts returns the range of ports the kernel gives to clients.
	EphemeralPorts() (first, last uint16, err error)
	// RouteAliases has connections to loopback addresses take the way that is
	// best for connections within a host, until undo.
	RouteAliases(netip.Prefix) (undo func() error, err error)
}

// Sink takes over the sockets on which a recipient's links are reached. When
// it returns no error the descriptors are its own, to be closed by stop, which
// is called once and returns when nothing is read from them any more.
type Sink interface {
	// Listen accepts the connections of fd, a TCP listener. The local address
	// of each is the one to Lookup.
	Listen(fd int) (stop func() error, err error)

	// Packets receives datagrams from recv, a UDP socket. With each comes, as the
	// control message IP_ORIGDSTADDR, the address to Lookup.
	//
	// Answers have to come from that address, or a client that connected its
	// socket does not get them. No UDP socket can send them without being bound
	// there, in the way of the recipient's servers, so they are sent from reply:
	// a raw socket (IPPROTO_RAW) to which whole IPv4 packets are written, with
	// their header, whose checksum the kernel fills in, and with the client as
	// the destination. UDP needs no checksum there. A packet is not cut up: it
	// has to fit the MTU of lo, and does unless the recipient changed it. By the
	// same way a client can be told that its datagram was refused, with an ICMP
	// message "port unreachable".
	Packets(recv, reply int) (stop func() error, err error)
}

// Map is what one recipient's links are reached by. L is what the caller calls
// a link; a nil pointer is as good as any. All methods may be called at any
// time by any number of goroutines.
type Map[L any] struct {
	table table[L]

	mu      sync.Mutex // Set, Delete and Close, one at a time
	ports   carrier
	unroute func() error // nil if there is nothing to undo
	steered bool
	closed  bool
}

// carrier makes ports reachable, steered or not.
type carrier interface {
	// set makes ports the ones of an alias that can be reached. A port that
	// was one before and stays one can be reached all the time.
	set(alias netip.Addr, ports []link.Port) error
	// delete undoes every set of an alias.
	delete(alias netip.Addr) error
	// close stops listening and lets go of everything.
	close() error
}

// Open starts to serve a recipient that has no aliases yet. The namespace has
// to stay open until Close, and is not closed by it. The sink is given sockets
// before Open returns, though nothing comes in by them before the first Set: if
// it keeps the Map for Lookup, it has to be told of it by an atomic pointer or
// the like.
//
// Where the kernel refuses the program (it is older than 5.9, or locked down),
// ports are listened on one by one, and a warning in log says why. See Steered
// for what that means.
func Open[L any](ns Namespace, sink Sink, log *slog.Logger) (*Map[L], error) {
	return open[L](ns, sink, log, loadBPF)
}

func open[L any](ns Namespace, sink Sink, log *slog.Logger, load loader) (*Map[L], error) {
	m, err := openPorts[L](ns, sink, log, load)
	if err != nil {
		return nil, err
	}
	if m.unroute, err = ns.RouteAliases(Aliases); err != nil {
		// Without, there is a way, which may be a slower one.
		log.Warn("choosing the way to a recipient's links", "err", err)
	}
	return m, nil
}

func openPorts[L any](ns Namespace, sink Sink, log *slog.Logger, load loader) (*Map[L], error) {
	prog, err := load(ns.FD())
	switch {
	case err == nil:
		s, err := newSteered(ns, sink, prog)
		if err != nil {
			return nil, err
		}
		return &Map[L]{ports: s, steered: true}, nil
	case isShortage(err):
		return nil, fmt.Errorf("steering connections: %w", err)
	}
	log.Warn("listening on every port of a link, since connections cannot be steered", "err", err,
		"hint", "steering needs Linux 5.9 or later, and CAP_BPF or CAP_SYS_ADMIN on the host; "+
			"without, a server of the recipient cannot have the same port as one of its links")
	return &Map[L]{ports: newPlain(ns, sink, log)}, nil
}

// isShortage tells that something ran out from that something is refused. What
// ran out will be there again, while a Map that listens on every port stays so.
func isShortage(err error) bool {
	for _, shortage := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, shortage) {
			return true
		}
	}
	return false
}

// Steered reports whether connections are steered. Then a recipient's own
// servers and its links do not meet, but for one case: while a connection to
// port P of an alias is open, and a minute after, a server that binds 0.0.0.0:P
// has to set SO_REUSEADDR. (It had to anyway, to be started again while clients
// are connected; a listener of its own for each port is not better in that.)
//
// If connections are not steered, each port of each alias has a listener, and
//
//   - the recipient cannot bind 0.0.0.0:P when P is a port of one of its
//     aliases (EADDRINUSE). Where the recipient was first, the link's port
//     cannot be listened on, and Set logs a warning that names it;
//   - a connection to an alias's port that is not exposed, or whose source is
//     down, is not refused if the recipient has a server of its own on 0.0.0.0
//     and that port. It reaches that one.
func (m *Map[L]) Steered() bool { return m.steered }

// Set makes ports the ones that can be reached at alias, an address in
// Aliases or link.LocalAddr, and owner what Lookup says of them. It replaces what was set before;
// a port that stays is never refused in between. Without ports, everything at
// alias is refused: the client sees ECONNREFUSED, as it would from a source
// that is down. SCTP ports are left out: no link carries SCTP.
//
// After an error, which ports of alias can be reached is between what it was
// and what it should be, and a further Set puts it right.
func (m *Map[L]) Set(alias netip.Addr, ports []link.Port, owner L) error {
	if err := check(alias, ports); err != nil {
		return fmt.Errorf("setting the ports of alias %v: %w", alias, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("setting the ports of alias %v: %w", alias, os.ErrClosed)
	}
	// The table first: a connection that arrives for a port that is not the
	// new owner's must not be taken for one of its.
	m.table.set(alias, newEntry(ports, owner))
	if err := m.ports.set(alias, ports); err != nil {
		return fmt.Errorf("setting the ports of alias %v: %w", alias, err)
	}
	return nil
}

func check(alias netip.Addr, ports []link.Port) error {
	if !Aliases.Contains(alias) || alias == Aliases.Addr() {
		return fmt.Errorf("not an address for an alias, those are in %v, from 127.77.0.2 on", Aliases)
	}
	for _, p := range ports {
		if p.Number == 0 {
			return fmt.Errorf("port %v: there is no port 0", p)
		}
	}
	return nil
}

// Delete forgets an alias. Its address is an ordinary loopback address of the
// recipient from then on. To delete one that is not there is no error. Of
// link.LocalAddr only the ports are forgotten: what is there is nobody else's.
func (m *Map[L]) Delete(alias netip.Addr) error {
	if alias == link.LocalAddr {
		var none L
		return m.Set(alias, nil, none)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("deleting alias %v: %w", alias, os.ErrClosed)
	}
	m.table.set(alias, nil)
	if err := m.ports.delete(alias); err != nil {
		return fmt.Errorf("deleting alias %v: %w", alias, err)
	}
	return nil
}

// Lookup returns the owner of the port a connection or datagram was sent to:
// local is the accepted socket's local address, or the datagram's
// IP_ORIGDSTADDR. It returns false if there is none, which happens when the
// port was withdrawn just after the client got in: then close the connection.
// Lookup takes no lock and allocates nothing.
func (m *Map[L]) Lookup(local netip.AddrPort, proto link.Proto) (L, bool) {
	return m.table.lookup(local, proto)
}

// Close stops the sockets that the sink has, and removes the program. Nothing
// stays behind in the recipient's namespace. Connections that were accepted
// are not touched.
func (m *Map[L]) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.table.clear()
	err := m.ports.close()
	if m.unroute != nil {
		err = errors.Join(err, m.unroute())
	}
	if err != nil {
		return fmt.Errorf("closing the ports of a recipient: %w", err)
	}
	return nil
}
