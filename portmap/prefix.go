//go:build linux

package portmap

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
)

// key is a key of the program's map, a trie of prefixes: a struct
// bpf_lpm_trie_key whose data is address, protocol and port, in this order and
// in network order. A shorter key stands for all that begin with it: that of 32
// bits for all of an alias, and 1,000 ports in a row for 18 keys at most.
type key struct {
	bits  uint32 // how many bits of data count
	addr  [4]byte
	proto [2]byte
	port  [2]byte
}

const (
	aliasBits = 32
	protoBits = 48
	portBits  = 64
)

// bytes is how the kernel wants the key.
func (k key) bytes() []byte {
	b := binary.NativeEndian.AppendUint32(make([]byte, 0, 12), k.bits)
	b = append(b, k.addr[:]...)
	b = append(b, k.proto[:]...)
	return append(b, k.port[:]...)
}

// verdict returns what becomes of the packets that the key stands for.
func (k key) verdict() verdict {
	switch {
	case k.bits <= aliasBits:
		return refused
	case binary.BigEndian.Uint16(k.proto[:]) == unix.IPPROTO_TCP:
		return toListener
	default:
		return toPackets
	}
}

// String is for error messages: "127.77.0.2:5000-5003/tcp".
func (k key) String() string {
	addr := netip.AddrFrom4(k.addr)
	if k.bits <= aliasBits {
		return addr.String()
	}
	proto := link.UDP
	if k.verdict() == toListener {
		proto = link.TCP
	}
	first := binary.BigEndian.Uint16(k.port[:])
	return fmt.Sprintf("%v:%d-%d/%s", addr, first, int(first)+1<<(portBits-k.bits)-1, proto)
}

// aliasKey is the key of all packets to an alias.
func aliasKey(alias netip.Addr) key {
	return key{bits: aliasBits, addr: alias.As4()}
}

// portKeys returns the keys of the packets to some ports of an alias, which
// are sorted, each once. Their order is that of the ports.
func portKeys(alias netip.Addr, proto link.Proto, ports []uint16) []key {
	number := uint16(unix.IPPROTO_TCP)
	if proto == link.UDP {
		number = unix.IPPROTO_UDP
	}
	var keys []key
	for _, p := range prefixes(ports) {
		k := key{bits: protoBits + uint32(p.bits), addr: alias.As4()}
		binary.BigEndian.PutUint16(k.proto[:], number)
		binary.BigEndian.PutUint16(k.port[:], p.first)
		keys = append(keys, k)
	}
	return keys
}

// prefix is the ports whose first bits are those of first.
type prefix struct {
	first uint16
	bits  int
}

// prefixes returns the fewest prefixes that hold the given ports, sorted and
// each once, and no other.
func prefixes(ports []uint16) []prefix {
	var list []prefix
	for len(ports) > 0 {
		run := 1
		for run < len(ports) && int(ports[run]) == int(ports[0])+run {
			run++
		}
		first := ports[0]
		ports = ports[run:]
		for run > 0 {
			// The largest block that begins at first, and is no longer than the run.
			size := min(bits.TrailingZeros32(uint32(first)|1<<16), bits.Len(uint(run))-1)
			list = append(list, prefix{first, 16 - size})
			first += 1 << size
			run -= 1 << size
		}
	}
	return list
}
