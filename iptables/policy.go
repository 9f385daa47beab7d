package iptables

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/linkrun/linkrun/link"
)

// Policy is what the rules are to say. The zero Policy says nothing, and is
// enforced by having no rule and no chain.
type Policy struct {
	Bridges []Bridge
	Allow   []Allow
}

// Bridge is a bridge that containers are on. Between two of them nothing
// passes if one is closed; nor does anything between two containers of a
// closed one. What comes from, or goes to, interfaces that are not listed is
// none of the policy's business: that is the outside and the host.
type Bridge struct {
	Name   string
	Closed bool
}

// Allow lets a recipient open connections to one port of a source, both being
// on the same closed bridge, and lets nothing else pass between the two.
type Allow struct {
	Bridge    string
	Recipient Endpoint
	Source    Endpoint
	Port      link.Port // tcp or udp
}

// Endpoint is one end of what is allowed.
type Endpoint struct {
	Addr netip.Addr

	// Device is the bridge port the container is behind. A rule that names it
	// cannot be met by another container that forges the address. It needs
	// bridge netfilter on the bridge; where that is off, nothing passes.
	// Empty: the address alone is looked at.
	Device string
}

// The chains of this package. Nobody else writes to them; what is found in
// them and not wanted is removed.
const (
	chainMain   = "AMBASSADOR-ICC"        // allows, then sorts by where a packet comes from
	chainAny    = "AMBASSADOR-ICC-ANY"    // from a closed bridge: no other bridge may get it
	chainClosed = "AMBASSADOR-ICC-CLOSED" // from an open bridge: no closed one may get it
)

// chains of this package in the order in which they are made: a rule can
// only jump to a chain that is there.
var chains = [...]string{chainAny, chainClosed, chainMain}

// rules is the whole content of the chains for one family, by chain. It is
// empty if nothing is closed: then there is nothing to allow either.
func (p Policy) rules(f family) map[string][]rule {
	p = p.sorted()
	rules := make(map[string][]rule)
	add := func(r rule) { rules[r.chain] = append(rules[r.chain], r) }
	for _, b := range p.Bridges {
		if b.Closed {
			add(rule{chain: chainClosed, out: b.Name, jump: "DROP"})
		}
	}
	if len(rules) == 0 {
		return nil
	}
	for _, a := range p.Allow {
		if f.has(a.Recipient.Addr) {
			for _, r := range a.rules() {
				add(r)
			}
		}
	}
	for _, b := range p.Bridges {
		add(rule{chain: chainAny, out: b.Name, jump: "DROP"})
		to := chainClosed
		if b.Closed {
			to = chainAny
		}
		add(rule{chain: chainMain, in: b.Name, jump: to})
	}
	return rules
}

// rules are what lets a connection through: its first packet, the others of
// the recipient, and the replies. Docker's own link has `-s source -d
// recipient --sport PORT -j ACCEPT` for those, which keeps no state: a source
// that binds PORT as its source port reaches any port of the recipient.
//
// State alone would not do for connections that are older than the rules.
// One that the source opened from PORT while the bridge was open would be
// ESTABLISHED; so packets have a direction. If it was not tracked, the
// recipient's next packet would be taken for the first of a new one, which
// goes to PORT (nf_conntrack_tcp_loose); so the first one has to be a SYN.
func (a Allow) rules() []rule {
	first := rule{
		chain: chainMain, in: a.Bridge, out: a.Bridge,
		src: a.Recipient.Addr, dst: a.Source.Addr, physIn: a.Recipient.Device,
		proto: string(a.Port.Proto), dport: a.Port.Number, syn: a.Port.Proto == link.TCP,
		state: "NEW",
		jump:  "ACCEPT",
	}
	there := first
	there.syn, there.state, there.dir = false, "ESTABLISHED", "ORIGINAL"
	back := rule{
		chain: chainMain, in: a.Bridge, out: a.Bridge,
		src: a.Source.Addr, dst: a.Recipient.Addr, physIn: a.Source.Device,
		proto: string(a.Port.Proto), sport: a.Port.Number,
		state: "ESTABLISHED", dir: "REPLY",
		jump: "ACCEPT",
	}
	return []rule{first, there, back}
}

// sorted is p in the one order its rules are made in, each thing once. A
// bridge that is listed both closed and open is closed.
func (p Policy) sorted() Policy {
	bridges := slices.SortedFunc(slices.Values(p.Bridges), func(a, b Bridge) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), compareBool(b.Closed, a.Closed))
	})
	allow := slices.SortedFunc(slices.Values(p.Allow), func(a, b Allow) int {
		return cmp.Or(
			strings.Compare(a.Bridge, b.Bridge),
			a.Recipient.compare(b.Recipient),
			a.Source.compare(b.Source),
			a.Port.Compare(b.Port))
	})
	return Policy{
		Bridges: slices.CompactFunc(bridges, func(a, b Bridge) bool { return a.Name == b.Name }),
		Allow:   slices.Compact(allow),
	}
}

func (e Endpoint) compare(o Endpoint) int {
	return cmp.Or(e.Addr.Compare(o.Addr), strings.Compare(e.Device, o.Device))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// ErrPolicy says that a policy cannot be put into rules.
var ErrPolicy = errors.New("impossible policy")

// validate refuses what rules could not express, or would express as
// something wider than what was meant.
func (p Policy) validate() error {
	closed := make(map[string]bool, len(p.Bridges))
	for _, b := range p.Bridges {
		if err := validDevice(b.Name); err != nil {
			return err
		}
		closed[b.Name] = closed[b.Name] || b.Closed
	}
	for _, a := range p.Allow {
		for _, dev := range []string{a.Recipient.Device, a.Source.Device} {
			if dev == "" {
				continue
			}
			if err := validDevice(dev); err != nil {
				return err
			}
		}
		src, dst := a.Recipient.Addr, a.Source.Addr
		switch {
		case !closed[a.Bridge]:
			return fmt.Errorf("%w: %v is allowed to reach %v on %q, which is not closed", ErrPolicy, src, dst, a.Bridge)
		case !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4() || src.Is4In6() || dst.Is4In6() || src.Zone() != "" || dst.Zone() != "":
			return fmt.Errorf("%w: no rule goes from %v to %v", ErrPolicy, src, dst)
		case src == dst:
			return fmt.Errorf("%w: %v is both ends", ErrPolicy, src)
		case a.Port.Proto != link.TCP && a.Port.Proto != link.UDP || a.Port.Number == 0:
			return fmt.Errorf("%w: port %q of %v is neither tcp nor udp", ErrPolicy, a.Port, dst)
		}
	}
	return nil
}

// validDevice checks an interface's name. The kernel takes nearly anything;
// but iptables reads a trailing plus as "whatever begins so", and the input
// of iptables-restore is split at spaces and quotes.
func validDevice(name string) error {
	bad := func(r rune) bool {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return false
		}
		return !strings.ContainsRune("_-.:@+", r)
	}
	if name == "" || len(name) > 15 || strings.HasPrefix(name, "-") || strings.HasSuffix(name, "+") || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%w: interface %q cannot be named in a rule", ErrPolicy, name)
	}
	return nil
}
