//go:build linux

package portmap

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/linkrun/linkrun/link"
)

// table says who owns the ports of each alias. A reader loads one pointer and
// sees a state that nobody changes. Writers are one at a time, and copy the
// map of aliases; the ports of an alias are not copied.
type table[L any] struct {
	now atomic.Pointer[map[uint16]*entry[L]] // by the last two bytes of the alias
}

// entry is an alias: its owner and the sorted numbers of its ports.
type entry[L any] struct {
	owner    L
	tcp, udp []uint16
}

func newEntry[L any](ports []link.Port, owner L) *entry[L] {
	return &entry[L]{owner: owner, tcp: numbers(ports, link.TCP), udp: numbers(ports, link.UDP)}
}

// numbers returns the ports of a protocol, sorted, each once.
func numbers(ports []link.Port, proto link.Proto) []uint16 {
	var n []uint16
	for _, p := range ports {
		if p.Proto == proto {
			n = append(n, p.Number)
		}
	}
	slices.Sort(n)
	return slices.Clip(slices.Compact(n))
}

// set replaces the entry of an alias, or removes it if e is nil.
func (t *table[L]) set(alias netip.Addr, e *entry[L]) {
	next := make(map[uint16]*entry[L])
	if now := t.now.Load(); now != nil {
		next = maps.Clone(*now)
	}
	if e == nil {
		delete(next, low(alias))
	} else {
		next[low(alias)] = e
	}
	t.now.Store(&next)
}

func (t *table[L]) clear() { t.now.Store(nil) }

func (t *table[L]) lookup(local netip.AddrPort, proto link.Proto) (owner L, found bool) {
	alias := local.Addr().Unmap()
	now := t.now.Load()
	if now == nil || !Aliases.Contains(alias) {
		return owner, false
	}
	e := (*now)[low(alias)]
	if e == nil {
		return owner, false
	}
	ports := e.tcp
	if proto != link.TCP {
		ports = e.udp
	}
	if _, found = slices.BinarySearch(ports, local.Port()); !found {
		return owner, false
	}
	return e.owner, true
}

// low returns the part of an alias's address in which it differs from others.
func low(alias netip.Addr) uint16 {
	b := alias.As4()
	return uint16(b[2])<<8 | uint16(b[3])
}
