//go:build linux

package portmap

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
)

// plain is the carrier that listens on every port of every alias.
type plain struct {
	ns    Namespace
	sink  Sink
	log   *slog.Logger
	stops map[netip.Addr]map[link.Port]func() error
}

func newPlain(ns Namespace, sink Sink, log *slog.Logger) *plain {
	return &plain{ns: ns, sink: sink, log: log, stops: make(map[netip.Addr]map[link.Port]func() error)}
}

func (p *plain) set(alias netip.Addr, ports []link.Port) error {
	want := make(map[link.Port]bool, len(ports))
	for _, port := range ports {
		if port.Proto != link.TCP && port.Proto != link.UDP {
			continue
		}
		want[port] = true
		err := p.listen(alias, port)
		if errors.Is(err, unix.EADDRINUSE) {
			// The link's other ports are fine. The next Set tries again.
			p.log.Warn("a port of a link cannot be reached", "addr", netip.AddrPortFrom(alias, port.Number),
				"proto", port.Proto, "err", err,
				"hint", "a server of the recipient has that port; have it bind a single address, such as 127.0.0.1")
		} else if err != nil {
			return err
		}
	}
	var errs []error
	for port, stop := range p.stops[alias] {
		if !want[port] {
			delete(p.stops[alias], port)
			errs = append(errs, stop())
		}
	}
	return errors.Join(errs...)
}

// listen has the sink serve a port, unless it does already.
func (p *plain) listen(alias netip.Addr, port link.Port) error {
	if p.stops[alias][port] != nil {
		return nil
	}
	addr := netip.AddrPortFrom(alias, port.Number)
	ready := func(int) error { return nil }
	var stop func() error
	var err error
	if port.Proto == link.TCP {
		stop, err = serveTCP(p.sink, func() (int, error) { return p.ns.ListenTCP(addr) }, ready)
	} else {
		stop, err = servePackets(p.sink, p.ns, func() (int, error) { return p.ns.ListenPackets(addr) }, ready)
	}
	if err != nil {
		return err
	}
	if p.stops[alias] == nil {
		p.stops[alias] = make(map[link.Port]func() error)
	}
	p.stops[alias][port] = stop
	return nil
}

func (p *plain) delete(alias netip.Addr) error {
	var errs []error
	for _, stop := range p.stops[alias] {
		errs = append(errs, stop())
	}
	delete(p.stops, alias)
	return errors.Join(errs...)
}

func (p *plain) close() error {
	var errs []error
	for alias := range p.stops {
		if err := p.delete(alias); err != nil {
			errs = append(errs, fmt.Errorf("alias %v: %w", alias, err))
		}
	}
	return errors.Join(errs...)
}
