// Package frame makes Ethernet frames by hand and watches an interface for
// them, to find out what gets from one place to another. It is no network
// stack: nothing is resolved, answered or sent again.
//
// Every frame carries a token where its payload begins, by which it is known
// again wherever it turns up, whoever has routed it there.
package frame

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Token marks a frame. The magic half is the same for all frames of a run,
// so that a socket can be told to see nothing else; see Open.
type Token struct {
	Magic uint32
	ID    uint32
}

func (t Token) put(b []byte) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, t.Magic), t.ID)
}

// Broadcast is the address of everybody.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// The types of Ethernet frames that are made here.
const (
	typeIPv4  = 0x0800
	typeARP   = 0x0806
	typeIPv6  = 0x86dd
	typeLocal = 0x88b5 // for experiments, by IEEE 802; no protocol of any stack
)

// Hop is from where to where a frame goes on the wire.
type Hop struct {
	From, To net.HardwareAddr
}

func (h Hop) frame(kind uint16) []byte {
	b := make([]byte, 0, 128)
	b = append(append(b, h.To...), h.From...)
	return binary.BigEndian.AppendUint16(b, kind)
}

// Raw is a frame of no protocol that a firewall knows.
func Raw(h Hop, t Token) []byte { return t.put(h.frame(typeLocal)) }

// ARP asks, in everybody's hearing, who has an address. The token is in what
// would be padding.
func ARP(from net.HardwareAddr, own, wanted netip.Addr, t Token) []byte {
	b := Hop{From: from, To: Broadcast}.frame(typeARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, a request
	b = append(append(b, from...), own.AsSlice()...)
	b = append(append(b, 0, 0, 0, 0, 0, 0), wanted.AsSlice()...)
	return t.put(b)
}

// Flow is from which address and port to which. Both are IPv4, or both IPv6.
type Flow struct {
	From, To netip.AddrPort
}

// SYN asks for a TCP connection.
func SYN(h Hop, f Flow, t Token) []byte {
	segment := f.ports()
	segment = binary.BigEndian.AppendUint32(segment, t.ID) // sequence number
	segment = append(segment, 0, 0, 0, 0)
	segment = append(segment, 5<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0) // 20 bytes, SYN, window
	return f.packet(h, protocolTCP, t.put(segment), 16)
}

// UDP is a datagram.
func UDP(h Hop, f Flow, t Token) []byte {
	const size = 8 + 8 // header, token
	datagram := binary.BigEndian.AppendUint16(f.ports(), size)
	return f.packet(h, protocolUDP, t.put(append(datagram, 0, 0)), 6)
}

// Echo is a ping, by ICMP or ICMPv6. The ports of the flow do not count.
func Echo(h Hop, f Flow, t Token) []byte {
	kind, protocol := byte(8), byte(protocolICMP)
	if f.To.Addr().Is6() {
		kind, protocol = 128, protocolICMPv6
	}
	echo := []byte{kind, 0, 0, 0, 0, 1, 0, 1}
	return f.packet(h, protocol, t.put(echo), 2)
}

// The protocols inside IP.
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
)

func (f Flow) ports() []byte {
	b := binary.BigEndian.AppendUint16(nil, f.From.Port())
	return binary.BigEndian.AppendUint16(b, f.To.Port())
}

// packet puts what IP carries into a packet and that into a frame. The
// checksum goes to the given place in it.
func (f Flow) packet(h Hop, protocol byte, payload []byte, checksumAt int) []byte {
	from, to := f.From.Addr().AsSlice(), f.To.Addr().AsSlice()
	// The pseudo header of TCP, UDP and ICMPv6 is the same sum for both
	// versions of IP. ICMP has none.
	var pseudo uint32
	if protocol != protocolICMP {
		pseudo = sum(from) + sum(to) + uint32(protocol) + uint32(len(payload))
	}
	binary.BigEndian.PutUint16(payload[checksumAt:], fold(pseudo+sum(payload)))
	if f.To.Addr().Is4() {
		header := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0} // time to live 64
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(payload)))
		header = append(append(header, from...), to...)
		binary.BigEndian.PutUint16(header[10:], fold(sum(header)))
		return append(append(h.frame(typeIPv4), header...), payload...)
	}
	header := []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
	binary.BigEndian.PutUint16(header[4:], uint16(len(payload)))
	header = append(append(header, from...), to...)
	return append(append(h.frame(typeIPv6), header...), payload...)
}

// sum adds up 16-bit words (RFC 1071). No packet made here is long enough for
// it to overflow.
func sum(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
