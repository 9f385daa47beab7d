package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/frame"
	"github.com/linkrun/linkrun/link"
)

// shot is one frame that is sent, and the place where it must not come out.
type shot struct {
	check   string
	subject string
	what    string // the frame, and from where to where
	on      Bridge // which decides what it means if the frame arrives

	kind kind
	hop  frame.Hop
	flow frame.Flow
	from *frame.Tap
	to   *frame.Tap
}

// kind is a kind of frame.
type kind struct {
	name  string
	make  func(frame.Hop, frame.Flow, frame.Token) []byte
	proto uint8 // of IP, by which the host tracks a connection; 0: it does not
}

var (
	syn = kind{"a TCP SYN", frame.SYN, unix.IPPROTO_TCP}
	udp = kind{"a UDP datagram", frame.UDP, unix.IPPROTO_UDP}
	arp = kind{"a question by ARP", func(h frame.Hop, f frame.Flow, t frame.Token) []byte {
		return frame.ARP(h.From, f.From.Addr(), f.To.Addr(), t)
	}, 0}
	raw   = kind{"a raw Ethernet frame", func(h frame.Hop, _ frame.Flow, t frame.Token) []byte { return frame.Raw(h, t) }, 0}
	ping4 = kind{"a ping", frame.Echo, unix.IPPROTO_ICMP}
	ping6 = kind{"a ping", frame.Echo, unix.IPPROTO_ICMPV6}
)

// Ports that shots are sent from and to, where nothing else is asked for. The
// first is one that no connection has by chance (net.ipv4.ip_local_port_range).
const (
	anyPort     = 61234
	discardPort = 9
	victimPort  = 22
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// pairShots is what is sent from one port of a bridge to another one: first
// straight to it, then by way of the host, which is asked to route it back.
// exposed is a port of a source on the bridge.
func pairShots(a, b *port, exposed uint16) (shots []shot) {
	add := func(check string, k kind, note string, hop frame.Hop, flow frame.Flow) {
		shots = append(shots, shot{
			check: check, subject: a.bridge.subject(), on: a.bridge, what: k.name + note + " from port to port",
			kind: k, hop: hop, flow: flow, from: a.tap, to: b.tap,
		})
	}
	direct := frame.Hop{From: a.mac, To: b.mac}
	// On the bridge, an address is as good as another: frames go by hardware
	// address.
	a4, b4 := spare4(a, 1), spare4(b, 2)
	flow4 := frame.Flow{From: at(a4, anyPort), To: at(b4, discardPort)}
	flow6 := frame.Flow{From: at(a.link6, anyPort), To: at(b.link6, discardPort)}
	add("tcp", syn, "", direct, flow4)
	add("udp", udp, "", direct, flow4)
	add("icmp", ping4, "", direct, flow4)
	add("ipv6-tcp", syn, " over IPv6", direct, flow6)
	add("ipv6-udp", udp, " over IPv6", direct, flow6)
	add("ipv6-icmp", ping6, " over IPv6", direct, flow6)
	add("arp", arp, "", direct, flow4)
	add("raw-frame", raw, "", direct, frame.Flow{})
	add("broadcast", raw, " to everybody", frame.Hop{From: a.mac, To: frame.Broadcast}, frame.Flow{})
	gateway := gateway4(a.bridge)
	add("forged-source", udp, fmt.Sprintf(" that says it is from %v", gateway), direct, frame.Flow{From: at(gateway, anyPort), To: flow4.To})
	add("reverse-rule", syn, fmt.Sprintf(" with source port %d, as if it were a reply,", exposed), direct,
		frame.Flow{From: at(a4, exposed), To: at(b4, victimPort)})
	return append(shots, routedShots(a, b)...)
}

// routedShots go to the host on the wire and to another port in IP. Neither
// the isolation of ports nor bridge netfilter has a say in those, only the
// host's rules.
func routedShots(a, b *port) (shots []shot) {
	add := func(check string, k kind, note string, flow frame.Flow) {
		s := shot{
			check: check, subject: a.bridge.subject(), on: a.bridge, what: k.name + note + " by way of the host",
			kind: k, hop: frame.Hop{From: a.mac, To: a.bridge.MAC}, flow: flow, from: a.tap, to: b.tap,
		}
		if a.bridge.Index != b.bridge.Index {
			s.check, s.subject = "bridge-to-bridge", fmt.Sprintf("bridges %s and %s", a.bridge.Device, b.bridge.Device)
			s.what = fmt.Sprintf("%s%s from %s to %s", k.name, note, a.bridge.Device, b.bridge.Device)
			if !a.bridge.Closed {
				s.on = b.bridge
			}
		}
		shots = append(shots, s)
	}
	if a.ip4.IsValid() && b.ip4.IsValid() {
		flow := frame.Flow{From: at(a.ip4.Addr(), anyPort), To: at(b.ip4.Addr(), discardPort)}
		add("routed-tcp", syn, "", flow)
		add("routed-udp", udp, "", flow)
		add("routed-icmp", ping4, "", flow)
	}
	if a.ip6.IsValid() && b.ip6.IsValid() {
		flow := frame.Flow{From: at(a.ip6.Addr(), anyPort), To: at(b.ip6.Addr(), discardPort)}
		add("routed-ipv6", syn, " over IPv6", flow)
	}
	return shots
}

// strangerShots go from a throw-away port to a container that is there.
func strangerShots(a *port, c *Container, e *Endpoint, to *frame.Tap) (shots []shot) {
	add := func(k kind, note string, hop frame.Hop, flow frame.Flow) {
		shots = append(shots, shot{
			check: "stranger", subject: "container " + c.Name, on: a.bridge, what: k.name + note + " from a new port of " + a.bridge.Device,
			kind: k, hop: hop, flow: flow, from: a.tap, to: to,
		})
	}
	direct, host := frame.Hop{From: a.mac, To: e.MAC}, frame.Hop{From: a.mac, To: a.bridge.MAC}
	add(raw, "", direct, frame.Flow{})
	for _, addr := range e.Addrs {
		flow := frame.Flow{From: at(like(a, addr), anyPort), To: at(addr, discardPort)}
		add(udp, fmt.Sprintf(" to %v", addr), direct, flow)
		add(udp, fmt.Sprintf(" to %v by way of the host", addr), host, flow)
	}
	return shots
}

// linkShots try a link from where nobody has it: its port, from a stranger
// who gives his own address or the recipient's; and the recipient, with the
// source's address and its exposed port as the port it comes from.
func linkShots(a *port, l Link, source, recipient *Endpoint, toSource, toRecipient *frame.Tap) (shots []shot) {
	for _, p := range l.Ports {
		k := syn
		switch p.Proto {
		case link.UDP:
			k = udp
		case link.SCTP:
			continue // carried by no link, and no rule is made for it here
		}
		subject := fmt.Sprintf("link %s to %s, port %s (%s)", l.Recipient, l.Source, p, l.Kind)
		// Each goes straight to where it is for, and by way of the host.
		add := func(check, what string, end net.HardwareAddr, flow frame.Flow, to *frame.Tap) {
			s := shot{
				check: check, subject: subject, on: a.bridge, what: what + " on " + a.bridge.Device,
				kind: k, hop: frame.Hop{From: a.mac, To: end}, flow: flow, from: a.tap, to: to,
			}
			routed := s
			routed.what, routed.hop.To = s.what+" by way of the host", a.bridge.MAC
			shots = append(shots, s, routed)
		}
		for _, addr := range source.Addrs {
			flow := frame.Flow{From: at(like(a, addr), anyPort), To: at(addr, p.Number)}
			add("link-port", "a stranger", source.MAC, flow, toSource)
			if recipient == nil {
				continue
			}
			as := sameFamily(recipient.Addrs, addr)
			if !as.IsValid() {
				continue
			}
			add("forged-source", "a stranger who says he is "+l.Recipient, source.MAC, frame.Flow{From: at(as, anyPort), To: flow.To}, toSource)
			add("reverse-rule", fmt.Sprintf("the reverse rule, from source port %d as %s,", p.Number, l.Source), recipient.MAC,
				frame.Flow{From: at(addr, p.Number), To: at(as, victimPort)}, toRecipient)
		}
	}
	return shots
}

// spare4 is the port's address, or one that stays on the bridge (RFC 5737).
func spare4(p *port, n byte) netip.Addr {
	if p.ip4.IsValid() {
		return p.ip4.Addr()
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, n})
}

// like is an address of the port, of the family of another.
func like(p *port, addr netip.Addr) netip.Addr {
	switch {
	case addr.Is4():
		return spare4(p, 1)
	case p.ip6.IsValid():
		return p.ip6.Addr()
	}
	return p.link6
}

func sameFamily(addrs []netip.Addr, like netip.Addr) netip.Addr {
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == like.Is4() }); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}

// gateway4 is the host's address on the bridge: if anybody is trusted, it is.
func gateway4(b Bridge) netip.Addr {
	if addr := sameFamily(b.Gateways, netip.IPv4Unspecified()); addr.IsValid() {
		return addr
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, 254})
}
