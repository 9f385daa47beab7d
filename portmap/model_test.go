//go:build linux

package portmap_test

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// Whatever was set and deleted before, in the kernel it is as a few lines of
// Go say: a port has its owner, other ports of an alias refuse, and what is no
// alias is the recipient's own.
func TestKernelAgreesWithAModel(t *testing.T) {
	n := netnstest.New(t)
	m, s := serve(t, n)
	aliases := []netip.Addr{webdb, cache, netip.MustParseAddr("127.77.255.254")}
	numbers := []uint16{1000, 1001, 1002, 1003, 1004}
	protos := []link.Proto{link.TCP, link.UDP}
	for _, port := range numbers {
		ownServer(t, n, "tcp", fmt.Sprintf("0.0.0.0:%d", port))
		ownServer(t, n, "udp", fmt.Sprintf("0.0.0.0:%d", port))
	}
	owner := 0
	rapid.Check(t, func(rt *rapid.T) {
		model := make(map[netip.Addr]map[link.Port]string)
		for _, alias := range aliases {
			if err := m.Delete(alias); err != nil {
				rt.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			alias := rapid.SampledFrom(aliases).Draw(rt, "alias")
			if rapid.IntRange(0, 3).Draw(rt, "what") == 0 {
				if err := m.Delete(alias); err != nil {
					rt.Fatal(err)
				}
				delete(model, alias)
				continue
			}
			owner++
			name := fmt.Sprint("owner", owner)
			var ports []link.Port
			model[alias] = make(map[link.Port]string)
			for _, number := range numbers {
				for _, proto := range protos {
					if rapid.Bool().Draw(rt, "exposed") {
						p := link.Port{Number: number, Proto: proto}
						ports = append(ports, p)
						model[alias][p] = name
					}
				}
			}
			if err := m.Set(alias, ports, name); err != nil {
				rt.Fatal(err)
			}
		}
		for _, alias := range aliases {
			for _, number := range numbers {
				for _, proto := range protos {
					addr := netip.AddrPortFrom(alias, number).String()
					want := "refused"
					if model[alias] == nil {
						want = "own " + addr
						if proto == link.UDP {
							want = "own"
						}
					} else if name := model[alias][link.Port{Number: number, Proto: proto}]; name != "" {
						want = name + " " + addr
					}
					if got := who(t, n, string(proto), addr); got != want {
						rt.Fatalf("%s %s: %s, want %s", proto, addr, got, want)
					}
				}
			}
		}
	})
	if s.stray != 0 {
		t.Errorf("%d connections had no owner", s.stray)
	}
}
