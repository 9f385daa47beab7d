//go:build linux

package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// flowPorts are the ports that UDP client sockets in a source's namespace are
// bound to, for as long as there are enough: those above the range from which
// the kernel takes its own by default (net.ipv4.ip_local_port_range, 32768 to
// 60999), and therefore none that a client in the recipient has, unless it
// chose it itself.
var flowPorts = ports{61000, lastRulePort}

// lastRulePort is the highest port that a range in a rule can contain, see
// fib_rule_port_range_valid in the kernel's include/net/fib_rules.h.
const lastRulePort = 65534

// flowTries is how many ports in a row have to be taken for flowPorts to count
// as used up. It bounds the time that a new flow can take.
const flowTries = 64

// packetRoute brings the answers of a source's UDP servers to one recipient
// back to the client sockets in the source's namespace:
//
//	ip rule  add to RECIPIENT ipproto udp sport P-Q dport 61000-65534 lookup Table
//	ip route add local RECIPIENT dev lo src OWN table Table
//
// where P to Q are the exposed ports in use. An answer has no mark to be told
// by, so this takes in whatever else looks like one. What that costs: the
// source cannot send datagrams from the ports P to Q past the link to the
// recipient's ports 61000 to 65534, which no client there has by default.
//
// 4,535 ports are as many clients at a time. When they run out the rule is
// widened to any port, and the sockets take what the kernel gives. Then the
// recipient cannot talk UDP past the link, at the source's own address, to the
// exposed ports in use (it never could where the engine's rules keep the two
// apart), until the last Source with the recipient's address is closed.
//
// There is one rule for each recipient, not for each port: rules are looked
// at one after the other, for every packet that has no cached route.
type packetRoute struct {
	ns      *Namespace
	to      netip.Addr // the recipient
	sources int        // that use it, guarded by Dialer.mu

	cursor atomic.Uint32 // into flowPorts

	mu     sync.Mutex
	used   ports      // exposed ports of the source
	wide   bool       // flowPorts ran out
	src    netip.Addr // of the local route; invalid: none yet
	rule   rule       // zero: none yet
	closed bool
}

func newPacketRoute(ns *Namespace, to netip.Addr) *packetRoute {
	return &packetRoute{ns: ns, to: to}
}

// open makes sure that answers from own:port are routed. It enters the
// namespace only if something has to be changed.
func (r *packetRoute) open(own netip.Addr, port uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = r.used.with(port)
	return r.updateLocked(own)
}

// bind binds fd to a free port of the recipient's address.
func (r *packetRoute) bind(fd int) error {
	for range flowTries {
		err := bind(fd, netip.AddrPortFrom(r.to, r.nextPort()))
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
		if r.isWide() {
			break
		}
	}
	if err := r.widen(); err != nil {
		return err
	}
	return bind(fd, netip.AddrPortFrom(r.to, 0))
}

func (r *packetRoute) nextPort() uint16 {
	size := uint32(flowPorts.last-flowPorts.first) + 1
	return flowPorts.first + uint16(r.cursor.Add(1)%size)
}

func (r *packetRoute) isWide() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wide
}

// widen lets the answers go to any port.
func (r *packetRoute) widen() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wide = true
	return r.updateLocked(r.src)
}

// updateLocked makes the route and the rule what they should be. The new rule
// is there before the old one goes, so that no answer is lost.
func (r *packetRoute) updateLocked(src netip.Addr) error {
	if r.closed {
		return os.ErrClosed
	}
	next := r.wantedLocked()
	if src == r.src && next == r.rule {
		return nil
	}
	return r.ns.Do(func() error {
		if src != r.src {
			if err := replaceRoute(localRoute(Table, netip.PrefixFrom(r.to, 32), src)); err != nil {
				return err
			}
			r.src = src
		}
		if next == r.rule {
			return nil
		}
		if err := addRule(next); err != nil {
			return err
		}
		last := r.rule
		r.rule = next
		if last == (rule{}) {
			return nil
		}
		return deleteRule(last)
	})
}

// wantedLocked returns the narrowest rule that will do.
func (r *packetRoute) wantedLocked() rule {
	want := rule{to: r.to, sport: r.used, dport: flowPorts}
	if r.used.last > lastRulePort {
		want.sport = ports{}
	}
	if r.wide {
		want.dport = ports{}
	}
	return want
}

// close refuses any more flows.
func (r *packetRoute) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// remove removes the rule and the route, for good.
func (r *packetRoute) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if !r.src.IsValid() {
		return nil
	}
	err := r.ns.Do(func() error {
		var err error
		if r.rule != (rule{}) {
			err = deleteRule(r.rule)
		}
		return errors.Join(err, deleteRoute(localRoute(Table, netip.PrefixFrom(r.to, 32), netip.Addr{})))
	})
	if errors.Is(err, os.ErrClosed) {
		return nil // the namespace was let go before: there is nothing to tidy up for us
	}
	if err != nil {
		return fmt.Errorf("undoing the routing of answers to %v: %w", r.to, err)
	}
	r.src, r.rule = netip.Addr{}, rule{}
	return nil
}

// with returns the smallest range that takes in p and port.
func (p ports) with(port uint16) ports {
	if p == (ports{}) {
		return ports{port, port}
	}
	return ports{min(p.first, port), max(p.last, port)}
}
