package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/linkrun/linkrun/internal/frame"
	"github.com/linkrun/linkrun/link"
)

// tryControl sends the shots of a trial in a namespace of its own, between
// bridges that are open, by a host that forwards everything. All have to
// arrive. It returns the checks of which one did not, where a shot that is
// not seen proves nothing; and how long it took them.
func tryControl(ctx context.Context) (blind map[string]bool, took time.Duration, f Finding, err error) {
	host, err := newSpace()
	if err != nil {
		return nil, 0, f, err
	}
	defer host.Close()
	f = Finding{Check: "control", Subject: "trial"}
	err = host.Do(func() error {
		facts, residents, err := openHost()
		defer func() {
			for _, p := range residents {
				p.unplug()
			}
		}()
		if err != nil {
			return err
		}
		t := newTrial(facts)
		t.grace = controlTime
		defer t.close()
		if _, err := t.run(ctx); err != nil {
			return err
		}
		took = t.took
		blind = make(map[string]bool)
		for i, s := range t.shots {
			if !t.seen[i] {
				blind[s.check] = true
			}
		}
		f.Verdict, f.Detail = OK, fmt.Sprintf("%d frames of %d kinds arrive where nothing stops them", len(t.shots), len(t.kinds()))
		if len(blind) > 0 {
			f.Verdict = Unknown
			f.Detail = "do not arrive even where nothing stops them: " + strings.Join(slices.Sorted(maps.Keys(blind)), ", ")
		}
		return nil
	})
	return blind, took, f, err
}

func (t *trial) kinds() map[string]bool {
	kinds := make(map[string]bool)
	for _, s := range t.shots {
		kinds[s.check] = true
	}
	return kinds
}

// openHost makes the calling thread's namespace, an empty one, a host with two
// open bridges, and with a recipient and a source on the first.
func openHost() (f Facts, residents []*port, err error) {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return f, nil, fmt.Errorf("forwarding: %w", err)
	}
	_, without := os.Stat("/proc/thread-self/net/if_inet6")
	ipv6 := without == nil
	if ipv6 {
		for name, value := range map[string]string{
			"all/forwarding":     "1",
			"default/accept_dad": "0", // addresses are usable at once
		} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name, []byte(value), 0); err != nil {
				return f, nil, fmt.Errorf("forwarding: %w", err)
			}
		}
	}
	f.control = true
	for i := range 2 {
		b := Bridge{Network: "control", Device: fmt.Sprintf("control%d", i), Allowed: true}
		// A network for tests of equipment (RFC 2544), and a local one.
		b.Subnets = append(b.Subnets, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 1}), 24))
		if ipv6 {
			b.Subnets = append(b.Subnets, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x18, 7: byte(i), 15: 1}), 64))
		}
		for _, subnet := range b.Subnets {
			b.Gateways = append(b.Gateways, subnet.Addr())
		}
		if err := b.create(); err != nil {
			return f, residents, err
		}
		f.Bridges = append(f.Bridges, b)
	}
	b, magic := f.Bridges[0], rand.Uint32()
	tap, err := frame.Open(b.Device, magic)
	if err != nil {
		return f, residents, err
	}
	defer tap.Close()
	ip4, ip6 := b.spares(false, 2), b.spares(true, 2)
	for i, name := range []string{"recipient", "source"} {
		p, err := plug(b, ip4[i], ip6[i], magic)
		if p != nil {
			residents = append(residents, p)
		}
		if err != nil {
			return f, residents, err
		}
		if connected, err := p.connected(tap, magic, time.Now().Add(plugTime)); !connected || err != nil {
			return f, residents, errors.Join(fmt.Errorf("no frame passes between the %s and its host", name), err)
		}
		f.Containers = append(f.Containers, Container{Name: name, Endpoints: []Endpoint{{
			Device: b.Device, Port: p.name, MAC: p.mac, Addrs: p.addrs(),
		}}})
		f.Bridges[0].Used = append(f.Bridges[0].Used, p.addrs()...)
	}
	f.Links = []Link{{Kind: "control", Recipient: "recipient", Source: "source",
		Ports: []link.Port{{Number: 80, Proto: link.TCP}, {Number: 53, Proto: link.UDP}}}}
	return f, residents, nil
}

// create makes the bridge, and learns what the kernel gave it.
func (b *Bridge) create() error {
	dev := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: b.Device, TxQLen: -1, Flags: net.FlagUp}}
	if err := netlink.LinkAdd(dev); err != nil {
		return fmt.Errorf("making bridge %q: %w", b.Device, err)
	}
	for _, subnet := range b.Subnets {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen())}}
		if err := netlink.AddrAdd(dev, addr); err != nil {
			return fmt.Errorf("adding address %v to bridge %q: %w", subnet, b.Device, err)
		}
	}
	// Set, so that it does not follow the ports'.
	mac := net.HardwareAddr{2, 0x18, 0, 0, 0, byte(dev.Index)}
	if err := netlink.LinkSetHardwareAddr(dev, mac); err != nil {
		return fmt.Errorf("setting the address of bridge %q: %w", b.Device, err)
	}
	b.Index, b.MAC = dev.Index, mac
	return nil
}
