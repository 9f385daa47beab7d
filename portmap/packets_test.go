//go:build linux

package portmap_test

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Packets as a sink writes them to its raw socket.
const (
	ipHeader   = 20
	udpHeader  = 8
	icmpHeader = 8
	maxPayload = 65535 - ipHeader - udpHeader
)

// appendDatagram appends the IPv4 and UDP header of a datagram.
func appendDatagram(b []byte, from, to netip.AddrPort, payload int) []byte {
	b = appendIP(b, from.Addr(), to.Addr(), unix.IPPROTO_UDP, udpHeader+payload)
	b = appendPorts(b, from, to, payload)
	return append(b, 0, 0) // no checksum
}

// appendUnreachable appends a packet that says that nobody listens at from.
func appendUnreachable(b []byte, from, to netip.AddrPort) []byte {
	b = appendIP(b, from.Addr(), to.Addr(), unix.IPPROTO_ICMP, icmpHeader+ipHeader+udpHeader)
	message := len(b)
	b = append(b, 3, 3, 0, 0, 0, 0, 0, 0) // destination unreachable, port unreachable

	// The beginning of the datagram which caused it, that went the other way.
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
