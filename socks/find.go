package socks

import (
	"net/netip"
	"strings"

	"github.com/linkrun/linkrun/link"
)

// Find returns the address that host has in hosts, or is, if one of them has
// it. Nothing else is looked at. Names are compared as the C library does
// with /etc/hosts: case does not matter, and of several the first counts; but a
// name written as it is there goes before one in other letters, since
// aliases may differ in nothing else.
func Find(hosts []link.Host, host string) (netip.Addr, bool) {
	if host == "" {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(host)
	isAddr := err == nil
	var similar netip.Addr
	for _, h := range hosts {
		switch {
		case isAddr && h.Addr == addr, h.Name == host:
			return h.Addr, true
		case !similar.IsValid() && strings.EqualFold(h.Name, host):
			similar = h.Addr
		}
	}
	return similar, similar.IsValid()
}
