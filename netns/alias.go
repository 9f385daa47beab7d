//go:build linux

package netns

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// congestionControl is what the connections of links have, by their routes:
// that costs no system call, and reaches the sockets of the recipients and of
// the servers as well. Losses do not happen within a host and the round trip is
// a wake-up, so one that paces or probes only costs. BBR, which is the default
// of many hosts, paces with a timer, and goes on to do so when a socket that
// has begun with it is given another one: against that, bulk takes half of the
// ambassador's processor time. Reno is in every kernel.
const congestionControl = "reno"

// RouteAliases has the connections that are made in the namespace to addresses
// of prefix, which is within 127.0.0.0/8, do without congestion control as far
// as that goes. Nothing else changes: the route to these addresses is the one
// there is. undo takes that back.
func (n *Namespace) RouteAliases(prefix netip.Prefix) (undo func() error, err error) {
	// The source is the client's address, as on the kernel's own route to
	// 127.0.0.0/8.
	route := localRoute(unix.RT_TABLE_LOCAL, prefix, loopback)
	route.Congctl = congestionControl
	if err := n.Do(func() error { return replaceRoute(route) }); err != nil {
		return nil, err
	}
	return func() error {
		return n.Do(func() error { return deleteRoute(route) })
	}, nil
}
