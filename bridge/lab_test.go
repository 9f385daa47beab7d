package bridge_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/internal/frame"
	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

const magic = 0x62726467

// lab is a host in a namespace of its own, with bridges and guests.
type lab struct {
	*netns.Namespace
	t testing.TB
}

// guest is what stands for a container: a namespace behind a port.
type guest struct {
	*netns.Namespace
	port     string // of the bridge
	mac      net.HardwareAddr
	ip4, ip6 netip.Addr
}

func newLab(t testing.TB) *lab {
	l := &lab{netnstest.New(t), t}
	l.sysctl("net/ipv4/ip_forward", "1")
	l.sysctl("net/ipv6/conf/all/forwarding", "1")
	return l
}

// sysctl sets, in the host, what is not the whole machine's.
func (l *lab) sysctl(name, value string) {
	l.t.Helper()
	netnstest.Do(l.t, l.Namespace, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
}

// bridgeNetfilter switches bridge netfilter for the whole host.
func (l *lab) bridgeNetfilter(on bool) {
	l.t.Helper()
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		l.sysctl("net/bridge/bridge-nf-call-"+name, map[bool]string{true: "1", false: "0"}[on])
	}
}

// do calls fn with netlink in the host.
func (l *lab) do(fn func() error) {
	l.t.Helper()
	netnstest.Do(l.t, l.Namespace, fn)
}

func (l *lab) addBridge(name string, net int) {
	l.t.Helper()
	l.do(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}})
	})
	netnstest.Address(l.t, l.Namespace, name, netip.MustParsePrefix(fmt.Sprintf("10.%d.0.1/24", net)))
	netnstest.Address(l.t, l.Namespace, name, netip.MustParsePrefix(fmt.Sprintf("fd00:%d::1/64", net)))
}

// addGuest puts a new namespace behind a new port of a bridge.
func (l *lab) addGuest(on string, net, host int) *guest {
	l.t.Helper()
	g := &guest{
		Namespace: netnstest.New(l.t),
		port:      fmt.Sprintf("p%d-%d", net, host),
		ip4:       netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", net, host)),
		ip6:       netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", net, host)),
	}
	l.do(func() error {
		br, err := netlink.LinkByName(on)
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: g.port, TxQLen: -1, MasterIndex: br.Attrs().Index, Flags: 1},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(g.FD()),
		})
	})
	netnstest.Address(l.t, g.Namespace, "eth0", netip.PrefixFrom(g.ip4, 24))
	netnstest.Address(l.t, g.Namespace, "eth0", netip.PrefixFrom(g.ip6, 64))
	netnstest.Do(l.t, g.Namespace, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		g.mac = dev.Attrs().HardwareAddr
		for _, gateway := range []string{fmt.Sprintf("10.%d.0.1", net), fmt.Sprintf("fd00:%d::1", net)} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: parseIP(gateway)}); err != nil {
				return err
			}
		}
		return nil
	})
	l.awaitPort(on, g)
	return g
}

// awaitPort returns when the bridge forwards what comes from a new port. The
// kernel may take a second to notice that the cable is plugged in at both
// ends (linkwatch), and drops frames until then.
func (l *lab) awaitPort(on string, g *guest) {
	l.t.Helper()
	from, host := tap(l.t, g.Namespace, "eth0"), tap(l.t, l.Namespace, on)
	defer from.Close()
	defer host.Close()
	netnstest.Until(l.t, g.port+" to forward", func() (seen bool) {
		if err := from.Send(frame.Raw(frame.Hop{From: g.mac, To: frame.Broadcast}, frame.Token{Magic: magic, ID: 999})); err != nil {
			l.t.Fatal(err)
		}
		if err := host.Watch(time.Now().Add(10*time.Millisecond), func(uint32) bool { seen = true; return true }); err != nil {
			l.t.Fatal(err)
		}
		return seen
	})
}

func parseIP(s string) net.IP { return net.ParseIP(s) }

// open opens the host's bridges.
func (l *lab) open() *bridge.Host {
	l.t.Helper()
	h, _ := l.openWithLog()
	return h
}

func (l *lab) openWithLog() (*bridge.Host, *logbook.Log) {
	l.t.Helper()
	var log logbook.Log
	var h *bridge.Host
	l.do(func() (err error) {
		h, err = bridge.Open(slog.New(slog.NewTextHandler(&log, nil)))
		return err
	})
	l.t.Cleanup(func() { h.Close() })
	return h, &log
}

// follow runs Follow until the test ends.
func (l *lab) follow(h *bridge.Host) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.Follow(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Follow: %v", err)
		}
	})
}

func tap(t testing.TB, ns *netns.Namespace, dev string) *frame.Tap {
	t.Helper()
	var tap *frame.Tap
	netnstest.Do(t, ns, func() (err error) {
		tap, err = frame.Open(dev, magic)
		return err
	})
	return tap
}

// passes sends frames of every kind from a to b, and names those that arrive.
// What comes after them by the same ways tells when they have all had time.
func (l *lab) passes(a, b *guest) (arrived map[string]bool) {
	l.t.Helper()
	from, to := tap(l.t, a.Namespace, "eth0"), tap(l.t, b.Namespace, "eth0")
	defer from.Close()
	defer to.Close()
	hop := frame.Hop{From: a.mac, To: b.mac}
	flow4 := frame.Flow{From: netip.AddrPortFrom(a.ip4, 4000), To: netip.AddrPortFrom(b.ip4, 5000)}
	flow6 := frame.Flow{From: netip.AddrPortFrom(a.ip6, 4000), To: netip.AddrPortFrom(b.ip6, 5000)}
	forged := frame.Flow{From: netip.MustParseAddrPort("10.99.0.1:4000"), To: flow4.To}
	kinds := []struct {
		name string
		make func(frame.Token) []byte
	}{
		{"tcp", func(t frame.Token) []byte { return frame.SYN(hop, flow4, t) }},
		{"udp", func(t frame.Token) []byte { return frame.UDP(hop, flow4, t) }},
		{"icmp", func(t frame.Token) []byte { return frame.Echo(hop, flow4, t) }},
		{"tcp6", func(t frame.Token) []byte { return frame.SYN(hop, flow6, t) }},
		{"icmp6", func(t frame.Token) []byte { return frame.Echo(hop, flow6, t) }},
		{"arp", func(t frame.Token) []byte { return frame.ARP(a.mac, a.ip4, b.ip4, t) }},
		{"raw", func(t frame.Token) []byte { return frame.Raw(hop, t) }},
		{"broadcast", func(t frame.Token) []byte { return frame.Raw(frame.Hop{From: a.mac, To: frame.Broadcast}, t) }},
		{"forged", func(t frame.Token) []byte { return frame.UDP(hop, forged, t) }},
	}
	for i, k := range kinds {
		if err := from.Send(k.make(frame.Token{Magic: magic, ID: uint32(i)})); err != nil {
			l.t.Fatal(err)
		}
	}
	l.fence(from, to, a, b)
	arrived = make(map[string]bool)
	if err := to.Watch(time.Now(), func(id uint32) bool {
		if int(id) < len(kinds) {
			arrived[kinds[id].name] = true
		}
		return false
	}); err != nil {
		l.t.Fatal(err)
	}
	return arrived
}

// fence returns when whatever was sent before has arrived or never will: a
// broadcast goes the same way as far as the bridge, and from there to b.
func (l *lab) fence(from, to *frame.Tap, a, b *guest) {
	l.t.Helper()
	host := tap(l.t, l.Namespace, l.bridgeOf(a))
	defer host.Close()
	await := func(tap *frame.Tap, want uint32) {
		l.t.Helper()
		found := false
		if err := tap.Watch(time.Now().Add(5*time.Second), func(id uint32) bool {
			found = id == want
			return found
		}); err != nil || !found {
			l.t.Fatalf("a frame from container to host, or from host to container, did not arrive: %v", err)
		}
	}
	if err := from.Send(frame.Raw(frame.Hop{From: a.mac, To: frame.Broadcast}, frame.Token{Magic: magic, ID: 1000})); err != nil {
		l.t.Fatal(err)
	}
	await(host, 1000)
	// A tap of its own, or else the fence would eat what it is the fence for.
	end := tap(l.t, b.Namespace, "eth0")
	defer end.Close()
	if err := host.Send(frame.Raw(frame.Hop{From: a.mac, To: b.mac}, frame.Token{Magic: magic, ID: 1001})); err != nil {
		l.t.Fatal(err)
	}
	await(end, 1001)
}

func (l *lab) bridgeOf(g *guest) (name string) {
	l.do(func() error {
		port, err := netlink.LinkByName(g.port)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByIndex(port.Attrs().MasterIndex)
		if err != nil {
			return err
		}
		name = br.Attrs().Name
		return nil
	})
	return name
}
