//go:build linux

package portmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
)

// program is what steers packets in a recipient's namespace: a BPF program.
type program interface {
	// put and remove say what becomes of the packets that a key stands for; of
	// several keys, the longest counts. A packet without a key goes its
	// ordinary way. To remove a key that is not there is no error.
	put(key, verdict) error
	remove(key) error
	// receive makes fd the socket that gets the packets of a verdict.
	receive(v verdict, fd int) error
	// close removes the program, and forgets the sockets.
	close() error
}

// loader loads the program and attaches it to a namespace.
type loader func(ns int) (program, error)

// verdict is what becomes of a packet.
type verdict uint32

const (
	toListener verdict = iota // it goes to the TCP listener
	toPackets                 // it goes to the UDP socket
	refused                   // the client gets a RST, or an ICMP "port unreachable"
)

// steered is the carrier that has everything steered to one listener and one
// UDP socket at link.LocalAddr.
type steered struct {
	prog  program
	have  map[netip.Addr]map[key]bool // what the program was told
	stops []func() error
}

// newSteered takes over prog, also when it fails.
func newSteered(ns Namespace, sink Sink, prog program) (*steered, error) {
	s := &steered{prog: prog, have: make(map[netip.Addr]map[key]bool)}
	if err := s.start(ns, sink); err != nil {
		return nil, errors.Join(fmt.Errorf("listening in the recipient's namespace: %w", err), s.close())
	}
	return s, nil
}

func (s *steered) start(ns Namespace, sink Sink) error {
	// Nothing in the recipient has any business with the sockets themselves.
	if err := s.apply(link.LocalAddr, nil); err != nil {
		return err
	}
	first, last, err := ns.EphemeralPorts()
	if err != nil {
		return err
	}
	stop, err := serveTCP(sink,
		func() (int, error) { return highPort(first, last, ns.ListenTCP) },
		func(fd int) error { return s.prog.receive(toListener, fd) })
	if err != nil {
		return err
	}
	s.stops = append(s.stops, stop)
	stop, err = servePackets(sink, ns,
		func() (int, error) { return highPort(first, last, ns.ListenPackets) },
		func(fd int) error { return s.prog.receive(toPackets, fd) })
	if err != nil {
		return err
	}
	s.stops = append(s.stops, stop)
	return nil
}

// highPort calls listen with one port after the other until one is free. It
// leaves out, if it can, the ports that clients in the namespace are given. It
// begins at the end, where a recipient is least likely to have a server.
func highPort(first, last uint16, listen func(netip.AddrPort) (int, error)) (fd int, err error) {
	const tries = 100
	if first <= 1024 && last >= 65535-tries {
		first, last = 0, 0 // clients have them all: share
	}
	for port, n := uint16(65535), 0; port > 1024 && n < tries; port-- {
		if first <= port && port <= last {
			continue
		}
		fd, err = listen(netip.AddrPortFrom(link.LocalAddr, port))
		if !errors.Is(err, unix.EADDRINUSE) {
			return fd, err
		}
		n++
	}
	return -1, err
}

func (s *steered) set(alias netip.Addr, ports []link.Port) error {
	return s.apply(alias, slices.Concat(
		portKeys(alias, link.TCP, numbers(ports, link.TCP)),
		portKeys(alias, link.UDP, numbers(ports, link.UDP))))
}

// apply makes keys the ones that the program has for an alias, and refuses
// whatever else is sent to it.
func (s *steered) apply(alias netip.Addr, keys []key) error {
	// The alias itself is first: a client that asks for a port which is not
	// exposed must not get to a server of the recipient's own on that port.
	want := make(map[key]bool, len(keys)+1)
	for _, k := range append([]key{aliasKey(alias)}, keys...) {
		want[k] = true
		if err := s.put(alias, k); err != nil {
			return err
		}
	}
	// Nothing is removed before all is there: a port that stays may be in one
	// key now and in another one next.
	for k := range s.have[alias] {
		if want[k] {
			continue
		}
		if err := s.remove(alias, k); err != nil {
			return err
		}
	}
	return nil
}

func (s *steered) put(alias netip.Addr, k key) error {
	if s.have[alias][k] {
		return nil
	}
	if err := s.prog.put(k, k.verdict()); err != nil {
		return err
	}
	if s.have[alias] == nil {
		s.have[alias] = make(map[key]bool)
	}
	s.have[alias][k] = true
	return nil
}

func (s *steered) remove(alias netip.Addr, k key) error {
	if err := s.prog.remove(k); err != nil {
		return err
	}
	delete(s.have[alias], k)
	return nil
}

func (s *steered) delete(alias netip.Addr) error {
	for k := range s.have[alias] {
		if err := s.remove(alias, k); err != nil {
			return err
		}
	}
	delete(s.have, alias)
	return nil
}

func (s *steered) close() error {
	// The program first: what it let in last is in the sink's hands when that
	// is told to stop.
	errs := []error{s.prog.close()}
	for _, stop := range s.stops {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}
