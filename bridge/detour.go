package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Detour is how one container may reach another on a bridge that stays
// closed: by way of the host. In the container's own table of neighbours,
// the other's address is at the bridge. So frames to it go to the host, which
// routes them back out by the bridge, past the firewall's rules.
//
// An allowed pair needs two detours, there and back, and rules for what may
// pass. What else was considered, and what would be open then:
//
//   - Not isolating the source's port, and rules for who may reach it. With
//     bridge netfilter off, or the rules flushed, every container on the
//     bridge reaches every port of the source; ARP and raw frames pass
//     always. Isolation keeps apart only ports that both have it.
//   - Proxy ARP for private VLANs (proxy_arp_pvlan) on the bridge. The host
//     then answers for all addresses, so all containers send to each other by
//     way of the host, and only rules are left to stop them: a flush opens
//     everything.
//   - A connection carried by the relay. It would need the source's address
//     inside the recipient, and so take all its ports; and it is what links
//     are, under a name of their own.
//
// With detours, the bridge passes nothing, whatever happens to the rules or to
// bridge netfilter. If rules are missing, what the engine's own rules accept
// may pass between these two containers, and no others, until they are back.
// The rules name the ports of the bridge that the pair is behind, which
// bridge netfilter tells them; with that off they match nothing, and nothing
// passes.
//
// The host, as it routes back to where a packet came from, sends the
// container a redirect (ICMP) to the other's address. Linux ignores it since
// it has no gateway there (__ip_do_redirect compares the route's).
type Detour struct {
	Own  netip.Addr       // of the container
	Peer netip.Addr       // of the other one
	Via  net.HardwareAddr // of the bridge
}

// Namespace is a container's network namespace; what fn does, it does there.
type Namespace interface {
	Do(fn func() error) error
}

// ErrNoAddress says that a container has no interface with the address.
var ErrNoAddress = errors.New("no interface has the address")

// Set makes the detour in the container's namespace, if it is not there. It
// returns the index, on the host, of the port the container is behind.
func (d Detour) Set(ns Namespace) (port int, err error) {
	err = d.inside(ns, func(h *netlink.Handle, dev netlink.Link) error {
		port = dev.Attrs().ParentIndex
		there, err := d.find(h, dev)
		if err != nil || there != nil && there.State == netlink.NUD_PERMANENT && bytes.Equal(there.HardwareAddr, d.Via) {
			return err
		}
		return h.NeighSet(d.neighbour(dev))
	})
	if err != nil {
		return 0, fmt.Errorf("making a detour from %v to %v: %w", d.Own, d.Peer, err)
	}
	return port, nil
}

// Clear takes the detour away. One that is not there is as good as cleared.
func (d Detour) Clear(ns Namespace) error {
	err := d.inside(ns, func(h *netlink.Handle, dev netlink.Link) error {
		there, err := d.find(h, dev)
		if err != nil || there == nil || there.State != netlink.NUD_PERMANENT || !bytes.Equal(there.HardwareAddr, d.Via) {
			return err
		}
		if err := h.NeighDel(d.neighbour(dev)); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrNoAddress) {
		return fmt.Errorf("ending the detour from %v to %v: %w", d.Own, d.Peer, err)
	}
	return nil
}

// inside calls fn in the container's namespace, with the interface that has
// the container's address.
func (d Detour) inside(ns Namespace, fn func(h *netlink.Handle, dev netlink.Link) error) error {
	return ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("opening netlink: %w", err)
		}
		defer h.Close()
		addrs, err := h.AddrList(nil, d.family())
		if err != nil {
			return fmt.Errorf("listing addresses: %w", err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == d.Own {
				dev, err := h.LinkByIndex(a.LinkIndex)
				if err != nil {
					return fmt.Errorf("finding the interface of %v: %w", d.Own, err)
				}
				return fn(h, dev)
			}
		}
		return ErrNoAddress
	})
}

// find is what the table says of the peer now, nil if nothing.
func (d Detour) find(h *netlink.Handle, dev netlink.Link) (*netlink.Neigh, error) {
	list, err := h.NeighList(dev.Attrs().Index, d.family())
	if err != nil {
		return nil, fmt.Errorf("listing neighbours: %w", err)
	}
	for i := range list {
		if ip, ok := netip.AddrFromSlice(list[i].IP); ok && ip.Unmap() == d.Peer {
			return &list[i], nil
		}
	}
	return nil, nil
}

func (d Detour) neighbour(dev netlink.Link) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    dev.Attrs().Index,
		Family:       d.family(),
		State:        netlink.NUD_PERMANENT,
		IP:           d.Peer.AsSlice(),
		HardwareAddr: d.Via,
	}
}

func (d Detour) family() int {
	if d.Own.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// PortOf is the index, on the host, of the port behind which the container
// with an address is: the other end of its cable.
func PortOf(ns Namespace, own netip.Addr) (port int, err error) {
	err = Detour{Own: own}.inside(ns, func(_ *netlink.Handle, dev netlink.Link) error {
		port = dev.Attrs().ParentIndex
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("finding the port of %v: %w", own, err)
	}
	return port, nil
}
