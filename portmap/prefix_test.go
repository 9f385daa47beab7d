//go:build linux

package portmap

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
)

// holds returns the ports that p stands for.
func (p prefix) holds() []uint16 {
	var ports []uint16
	for n := range 1 << (16 - p.bits) {
		ports = append(ports, p.first|uint16(n))
	}
	return ports
}

func portSets() *rapid.Generator[[]uint16] {
	return rapid.Custom(func(t *rapid.T) []uint16 {
		var ports []uint16
		for range rapid.IntRange(0, 8).Draw(t, "runs") {
			first := rapid.Uint16Range(1, 65535).Draw(t, "first")
			for n := range rapid.IntRange(1, 1000).Draw(t, "length") {
				if p := int(first) + n; p <= 65535 {
					ports = append(ports, uint16(p))
				}
			}
		}
		slices.Sort(ports)
		return slices.Compact(ports)
	})
}

func TestPrefixesHoldThePortsAndNoOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ports := portSets().Draw(t, "ports")
		var got []uint16
		list := prefixes(ports)
		for i, p := range list {
			if int(p.first)%(1<<(16-p.bits)) != 0 {
				t.Fatalf("%v does not begin with its own bits", p)
			}
			// Two halves of one prefix would be one too many.
			if i > 0 && p.bits == list[i-1].bits && p.first^list[i-1].first == 1<<(16-p.bits) {
				t.Fatalf("%v and %v are one", list[i-1], p)
			}
			got = append(got, p.holds()...)
		}
		if !slices.Equal(got, ports) {
			t.Fatalf("prefixes hold %v, want %v", got, ports)
		}
	})
}

func TestPrefixes(t *testing.T) {
	all := make([]uint16, 65535)
	for i := range all {
		all[i] = uint16(i + 1)
	}
	for _, test := range []struct {
		ports []uint16
		want  string
	}{
		{nil, "[]"},
		{[]uint16{5432}, "[{5432 16}]"},
		{[]uint16{65535}, "[{65535 16}]"},
		{[]uint16{5000, 5001, 5002, 5003}, "[{5000 14}]"},
		{[]uint16{5001, 5002, 5003, 5004}, "[{5001 16} {5002 15} {5004 16}]"},
		{[]uint16{80, 443}, "[{80 16} {443 16}]"},
		{all[49152-1:], "[{49152 2}]"},
		{all, "[{1 16} {2 15} {4 14} {8 13} {16 12} {32 11} {64 10} {128 9} {256 8} {512 7} {1024 6} {2048 5} {4096 4} {8192 3} {16384 2} {32768 1}]"},
	} {
		if got := fmt.Sprint(prefixes(test.ports)); got != test.want {
			t.Errorf("prefixes of %d ports are %s, want %s", len(test.ports), got, test.want)
		}
	}
}

func TestKeys(t *testing.T) {
	alias := netip.MustParseAddr("127.77.0.2")
	for _, test := range []struct {
		key     key
		bytes   []byte // but for the first four
		bits    uint32
		verdict verdict
		text    string
	}{
		{aliasKey(alias), []byte{127, 77, 0, 2, 0, 0, 0, 0}, 32, refused, "127.77.0.2"},
		{portKeys(alias, link.TCP, []uint16{5432})[0], []byte{127, 77, 0, 2, 0, 6, 0x15, 0x38}, 64, toListener, "127.77.0.2:5432-5432/tcp"},
		{portKeys(alias, link.UDP, []uint16{52, 53})[0], []byte{127, 77, 0, 2, 0, 17, 0, 52}, 63, toPackets, "127.77.0.2:52-53/udp"},
	} {
		if got := test.key.bytes(); !bytes.Equal(got[4:], test.bytes) || test.key.bits != test.bits {
			t.Errorf("%v is %d bits of %v", test.key, test.key.bits, got[4:])
		}
		if got := test.key.verdict(); got != test.verdict {
			t.Errorf("the verdict on %v is %d, want %d", test.key, got, test.verdict)
		}
		if got := test.key.String(); got != test.text {
			t.Errorf("the key is written %q, want %q", got, test.text)
		}
	}
}

func TestTable(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("127.77.0.2"), netip.MustParseAddr("127.77.0.3"), netip.MustParseAddr("127.77.1.2")}
	protos := []link.Proto{link.TCP, link.UDP}
	rapid.Check(t, func(t *rapid.T) {
		var got table[int]
		want := make(map[netip.Addr]map[link.Port]int)
		for owner := range rapid.IntRange(0, 20).Draw(t, "steps") {
			alias := rapid.SampledFrom(addrs).Draw(t, "alias")
			if rapid.Float64().Draw(t, "delete") < 0.2 {
				got.set(alias, nil)
				delete(want, alias)
				continue
			}
			var ports []link.Port
			want[alias] = make(map[link.Port]int)
			for range rapid.IntRange(0, 6).Draw(t, "ports") {
				p := link.Port{Number: rapid.Uint16Range(1, 9).Draw(t, "port"), Proto: rapid.SampledFrom(protos).Draw(t, "proto")}
				ports = append(ports, p)
				want[alias][p] = owner
			}
			got.set(alias, newEntry(ports, owner))
		}
		for _, alias := range addrs {
			for n := range uint16(11) {
				for _, proto := range protos {
					owner, found := got.lookup(netip.AddrPortFrom(alias, n), proto)
					wantOwner, wantFound := want[alias][link.Port{Number: n, Proto: proto}]
					if owner != wantOwner || found != wantFound {
						t.Fatalf("%v:%d/%s is %d, %v; want %d, %v", alias, n, proto, owner, found, wantOwner, wantFound)
					}
				}
			}
		}
		mapped := netip.AddrPortFrom(netip.AddrFrom16(addrs[0].As16()), 1)
		a, b := got.lookup(mapped, link.TCP)
		c, d := got.lookup(netip.AddrPortFrom(addrs[0], 1), link.TCP)
		if a != c || b != d {
			t.Fatalf("%v is %v, %v; written as IPv4 it is %v, %v", mapped, a, b, c, d)
		}
		for _, stranger := range []string{"10.77.0.2:1", "[::1]:1", "127.78.0.2:1"} {
			if _, found := got.lookup(netip.MustParseAddrPort(stranger), link.TCP); found {
				t.Fatalf("%s is found", stranger)
			}
		}
		if _, found := got.lookup(netip.AddrPort{}, link.TCP); found {
			t.Fatal("no address is found")
		}
	})
}
