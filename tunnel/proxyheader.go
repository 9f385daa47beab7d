package tunnel

import (
	"encoding/binary"
	"net/netip"
)

// proxySignature begins every header of the PROXY protocol, version 2
// (haproxy's doc/proxy-protocol.txt, section 2.2).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

const (
	proxyCommand = 0x21 // version 2, on behalf of somebody else
	proxyLocal   = 0x20 // version 2, on one's own
	proxyTCP4    = 0x11
	proxyTCP6    = 0x21
)

// AppendProxyHeader appends the header of a TCP connection from from to to,
// for a source that wants to know who calls. Without both addresses, or of two
// families, it says that the caller is not known.
func AppendProxyHeader(b []byte, from, to netip.AddrPort) []byte {
	src, dst := from.Addr().Unmap(), to.Addr().Unmap()
	b = append(b, proxySignature...)
	switch {
	case src.Is4() && dst.Is4():
		b = append(b, proxyCommand, proxyTCP4, 0, 4+4+2+2)
	case src.Is6() && dst.Is6():
		b = append(b, proxyCommand, proxyTCP6, 0, 16+16+2+2)
	default:
		return append(b, proxyLocal, 0, 0, 0)
	}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	return binary.BigEndian.AppendUint16(b, to.Port())
}
