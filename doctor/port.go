package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/frame"
	"github.com/linkrun/linkrun/netns"
)

// inside is what the interface is called in a throw-away namespace.
const inside = "eth0"

// port is a throw-away port of a bridge: what a new container would be.
type port struct {
	bridge Bridge
	name   string // on the host
	mac    net.HardwareAddr
	ip4    netip.Prefix // zero: the bridge has no address to spare
	ip6    netip.Prefix // likewise
	link6  netip.Addr   // for frames that stay on the bridge; nobody has it

	ns  *netns.Namespace
	tap *frame.Tap // inside
}

// plug makes a port on a bridge of the calling thread's namespace. The caller
// calls unplug.
func plug(b Bridge, ip4, ip6 netip.Prefix, magic uint32) (_ *port, err error) {
	var random [4]byte
	rand.Read(random[:])
	p := &port{bridge: b, name: "ambdoc" + hex.EncodeToString(random[:]), ip4: ip4, ip6: ip6}
	if p.ns, err = newSpace(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.unplug()
		}
	}()
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: p.name, TxQLen: -1, MasterIndex: b.Index, Flags: net.FlagUp,
			// A bridge whose address nobody set takes the lowest of its
			// ports'. This one must not become it: containers know the old.
			HardwareAddr: net.HardwareAddr{0xfe, 0xff, random[0], random[1], random[2], random[3]},
		},
		PeerName:      inside,
		PeerNamespace: netlink.NsFd(p.ns.FD()),
	}); err != nil {
		return nil, fmt.Errorf("making a port on bridge %q: %w", b.Device, err)
	}
	return p, p.ns.Do(func() error { return p.furnish(magic) })
}

// furnish runs in the namespace of the port.
func (p *port) furnish(magic uint32) error {
	dev, err := netlink.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("finding the port of bridge %q: %w", p.bridge.Device, err)
	}
	p.mac = dev.Attrs().HardwareAddr
	p.link6 = linkLocal(p.mac)
	for _, addr := range []netip.Prefix{p.ip4, p.ip6} {
		if !addr.IsValid() {
			continue
		}
		a := &netlink.Addr{IPNet: &net.IPNet{
			IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen()),
		}}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(dev, a); err != nil {
			return fmt.Errorf("adding address %v: %w", addr, err)
		}
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return fmt.Errorf("setting the port of bridge %q up: %w", p.bridge.Device, err)
	}
	p.tap, err = frame.Open(inside, magic)
	return err
}

// linkLocal is the address RFC 4291 makes of a hardware address.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// unplug removes the port. The host remembers it for a while; see forget.
func (p *port) unplug() error {
	var errs []error
	if p.tap != nil {
		errs = append(errs, p.tap.Close())
	}
	// The other end goes with it. It would go with the namespace, too, but
	// the kernel takes its time for that.
	if dev, err := netlink.LinkByName(p.name); err == nil {
		if err := netlink.LinkDel(dev); err != nil {
			errs = append(errs, fmt.Errorf("removing port %q: %w", p.name, err))
		}
	}
	return errors.Join(append(errs, p.ns.Close())...)
}

// addrs are those of the port that the host may know.
func (p *port) addrs() (addrs []netip.Addr) {
	for _, addr := range []netip.Prefix{p.ip4, p.ip6} {
		if addr.IsValid() {
			addrs = append(addrs, addr.Addr())
		}
	}
	return addrs
}

// forget drops an unplugged port from the host's tables of who is where. It
// would be dropped in time; a failure is nothing to report.
func (p *port) forget() {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.NeighList(p.bridge.Index, family)
		if err != nil {
			continue
		}
		for _, n := range list {
			ip, _ := netip.AddrFromSlice(n.IP)
			if bytes.Equal(n.HardwareAddr, p.mac) || slices.Contains(p.addrs(), ip) {
				_ = netlink.NeighDel(&n)
			}
		}
	}
}

// forgetConnection drops what the host tracks of a shot that it let through.
// Exactly that: the addresses may be those of containers.
func (s shot) forgetConnection() {
	if s.kind.proto == 0 {
		return
	}
	filter := new(netlink.ConntrackFilter)
	errs := []error{
		filter.AddProtocol(s.kind.proto),
		filter.AddIP(netlink.ConntrackOrigSrcIP, s.flow.From.Addr().AsSlice()),
		filter.AddIP(netlink.ConntrackOrigDstIP, s.flow.To.Addr().AsSlice()),
	}
	if s.kind.proto == unix.IPPROTO_TCP || s.kind.proto == unix.IPPROTO_UDP {
		errs = append(errs,
			filter.AddPort(netlink.ConntrackOrigSrcPort, s.flow.From.Port()),
			filter.AddPort(netlink.ConntrackOrigDstPort, s.flow.To.Port()))
	}
	if errors.Join(errs...) != nil {
		return // a filter that lacks a part would be too wide
	}
	family := netlink.InetFamily(unix.AF_INET)
	if s.flow.To.Addr().Is6() {
		family = unix.AF_INET6
	}
	// What is not dropped here is gone within two minutes, as for any SYN.
	_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
}

// awaitAddresses waits until the host may use its addresses on the bridge. A
// bridge without a port has no carrier, and with its first one begins to ask
// whether somebody else has its IPv6 addresses; until that is settled, it
// routes nothing there.
func (b Bridge) awaitAddresses(ctx context.Context, until time.Time) error {
	for ctx.Err() == nil {
		addrs, err := netlink.AddrList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: b.Index, Name: b.Device}}, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("listing the addresses of bridge %q: %w", b.Device, err)
		}
		tentative := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
		if !tentative || time.Now().After(until) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}

// connected waits until frames pass between the port and the host, both
// ways. The kernel may take a second to notice that a cable is plugged in, and
// drops frames until then; a frame that does not arrive proves nothing before.
func (p *port) connected(host *frame.Tap, magic uint32, until time.Time) (bool, error) {
	const id = 1<<32 - 1
	token := frame.Token{Magic: magic, ID: id}
	ways := []struct {
		from, to *frame.Tap
		frame    []byte
	}{
		{p.tap, host, frame.Raw(frame.Hop{From: p.mac, To: frame.Broadcast}, token)},
		{host, p.tap, frame.Raw(frame.Hop{From: p.bridge.MAC, To: p.mac}, token)},
	}
	for _, way := range ways {
		seen := false
		for !seen {
			if time.Now().After(until) {
				return false, nil
			}
			if err := way.from.Send(way.frame); err != nil && !errors.Is(err, unix.ENETDOWN) {
				return false, err
			}
			if err := way.to.Watch(time.Now().Add(10*time.Millisecond), func(got uint32) bool {
				seen = seen || got == id
				return seen
			}); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// isolated says whether the port is isolated on the bridge.
func (p *port) isolated() (bool, error) {
	dev, err := netlink.LinkByName(p.name)
	if err != nil {
		return false, fmt.Errorf("finding port %q: %w", p.name, err)
	}
	info, err := netlink.LinkGetProtinfo(dev)
	if err != nil {
		return false, fmt.Errorf("reading port %q: %w", p.name, err)
	}
	return info.Isolated, nil
}
