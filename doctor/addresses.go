package doctor

import (
	"net/netip"
	"slices"
)

// spare finds n addresses of a subnet that nobody has, from its end: the
// engine hands them out from its beginning. Fewer, if there are no more.
func spare(subnet netip.Prefix, used []netip.Addr, n int) (found []netip.Prefix) {
	subnet = subnet.Masked()
	addr := last(subnet)
	if addr.Is4() && subnet.Bits() < 31 {
		addr = addr.Prev() // the last one is everybody's
	}
	// As many as are used may have to be passed over, and no more.
	for range n + len(used) + 1 {
		if len(found) == n || !addr.IsValid() || addr.Compare(subnet.Addr()) <= 0 {
			break
		}
		if !slices.Contains(used, addr) {
			found = append(found, netip.PrefixFrom(addr, subnet.Bits()))
		}
		addr = addr.Prev()
	}
	return found
}

// last is the highest address of a subnet.
func last(subnet netip.Prefix) netip.Addr {
	bytes := subnet.Addr().AsSlice()
	for bit := subnet.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// spares finds addresses for n ports of a bridge, of one family.
func (b Bridge) spares(ipv6 bool, n int) []netip.Prefix {
	used := slices.Concat(b.Used, b.Gateways)
	for _, subnet := range b.Subnets {
		if subnet.Addr().Is6() == ipv6 {
			if found := spare(subnet, used, n); len(found) == n {
				return found
			}
		}
	}
	return make([]netip.Prefix, n)
}
