//go:build linux

package portmap

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Packets written by hand, for the raw socket that a Sink gets as reply.
//
// An answer to a client in the recipient has to come from the alias's address
// and port: a client that connected its socket gets no others. No UDP socket
// can send it without being bound to that port, and bound it would be in the
// way of the recipient's own servers. A raw socket needs no port.
const (
	ipHeader   = 20
	udpHeader  = 8
	icmpHeader = 8

	// DatagramHeader is the length in bytes of what AppendDatagram appends.
	DatagramHeader = ipHeader + udpHeader

	// MaxPayload is how much a UDP datagram can carry over IPv4, in bytes.
	MaxPayload = 65535 - DatagramHeader
)

// AppendDatagram appends to b the IPv4 and UDP header of a datagram with the
// given length of payload, MaxPayload at most. from is the alias and its port,
// to is the client; both have IPv4 addresses. The payload is to follow, from
// the same buffer or from the next one of a sendmsg(2) or sendmmsg(2) whose
// destination is the client's address (its port does not matter).
//
// One packet is one datagram: the kernel does not cut it up, so it has to fit
// the MTU of lo, which is 65,536 unless the recipient changes it (EMSGSIZE).
func AppendDatagram(b []byte, from, to netip.AddrPort, payload int) []byte {
	b = appendIP(b, from.Addr(), to.Addr(), unix.IPPROTO_UDP, udpHeader+payload)
	b = appendPorts(b, from, to, payload)
	// A checksum of zero means that there is none, which IPv4 allows (RFC 768):
	// the packet never leaves the machine's memory.
	return append(b, 0, 0)
}

// AppendUnreachable appends to b a whole packet that tells the client to that
// nobody listens at alias's port from: ICMP "port unreachable", on which a
// connected socket of the client has ECONNREFUSED. It is sent as datagrams are.
func AppendUnreachable(b []byte, from, to netip.AddrPort) []byte {
	b = appendIP(b, from.Addr(), to.Addr(), unix.IPPROTO_ICMP, icmpHeader+ipHeader+udpHeader)
	message := len(b)
	b = append(b, 3, 3, 0, 0, 0, 0, 0, 0) // destination unreachable, port unreachable

	// The beginning of the datagram which caused it, that went the other way.
	// Its length is not known any more, and nobody looks at it.
	quoted := len(b)
	b = appendIP(b, to.Addr(), from.Addr(), unix.IPPROTO_UDP, udpHeader)
	binary.BigEndian.PutUint16(b[quoted+10:], checksum(b[quoted:]))
	b = appendPorts(b, to, from, 0)
	b = append(b, 0, 0)

	binary.BigEndian.PutUint16(b[message+2:], checksum(b[message:]))
	return b
}

// appendIP appends an IPv4 header. A raw socket fills in its checksum.
func appendIP(b []byte, from, to netip.Addr, proto byte, payload int) []byte {
	b = append(b, 0x45, 0) // version 4, five words
	b = binary.BigEndian.AppendUint16(b, uint16(ipHeader+payload))
	// "Don't fragment" spares the kernel to think of an identification.
	b = append(b, 0, 0, 0x40, 0)
	b = append(b, 64, proto, 0, 0) // time to live
	src, dst := from.Unmap().As4(), to.Unmap().As4()
	b = append(b, src[:]...)
	return append(b, dst[:]...)
}

// appendPorts appends a UDP header but for its checksum.
func appendPorts(b []byte, from, to netip.AddrPort, payload int) []byte {
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	return binary.BigEndian.AppendUint16(b, uint16(udpHeader+payload))
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
