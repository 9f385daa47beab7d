package bridge_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/netns/netnstest"
)

var everything = []string{"tcp", "udp", "icmp", "tcp6", "icmp6", "arp", "raw", "broadcast", "forged"}

func expect(t testing.TB, l *lab, a, b *guest, want bool) {
	t.Helper()
	arrived := l.passes(a, b)
	for _, kind := range everything {
		if arrived[kind] != want {
			t.Errorf("%s from %s to %s: passes is %t, want %t", kind, a.port, b.port, arrived[kind], want)
		}
	}
}

func enforce(t testing.TB, h *bridge.Host, names ...string) []string {
	t.Helper()
	done, err := h.Enforce(names)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func state(t testing.TB, h *bridge.Host) string {
	t.Helper()
	s, err := h.Read()
	if err != nil {
		t.Fatal(err)
	}
	return s.String()
}

// No frame of any kind passes on a closed bridge, also without the firewall;
// on an open one all do.
func TestClosedBridgePassesNothing(t *testing.T) {
	l := newLab(t)
	l.bridgeNetfilter(false)
	l.addBridge("closed", 10)
	l.addBridge("open", 11)
	a, b := l.addGuest("closed", 10, 2), l.addGuest("closed", 10, 3)
	c, d := l.addGuest("open", 11, 2), l.addGuest("open", 11, 3)
	expect(t, l, a, b, true)
	h := l.open()
	before := state(t, h)

	want := []string{
		"switched nf_call_iptables on for bridge closed",
		"switched nf_call_ip6tables on for bridge closed",
		"isolated port p10-2 of bridge closed",
		"isolated port p10-3 of bridge closed",
	}
	if todo, err := h.Check([]string{"closed"}); err != nil || !slices.Equal(todo, want) {
		t.Errorf("to do is %q, %v, want %q", todo, err, want)
	}
	if done := enforce(t, h, "closed"); !slices.Equal(done, want) {
		t.Errorf("did %q, want %q", done, want)
	}
	if done := enforce(t, h, "closed"); len(done) != 0 {
		t.Errorf("did %q again", done)
	}
	expect(t, l, a, b, false)
	expect(t, l, b, a, false)
	expect(t, l, c, d, true)

	done, err := h.Restore()
	if err != nil {
		t.Fatal(err)
	}
	want = []string{
		"switched nf_call_iptables off again for bridge closed",
		"switched nf_call_ip6tables off again for bridge closed",
		"gave port p10-2 of bridge closed back",
		"gave port p10-3 of bridge closed back",
	}
	if !slices.Equal(done, want) {
		t.Errorf("restored %q, want %q", done, want)
	}
	if after := state(t, h); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	expect(t, l, a, b, true)
}

// The host still reaches a container, and a container the host.
func TestHostReachesContainersOfAClosedBridge(t *testing.T) {
	l := newLab(t)
	l.addBridge("closed", 10)
	a := l.addGuest("closed", 10, 2)
	h := l.open()
	enforce(t, h, "closed")
	connects(t, l.Namespace, a.Namespace, a.ip4)
	connects(t, l.Namespace, a.Namespace, a.ip6)
	connects(t, a.Namespace, l.Namespace, addr("10.10.0.1"))
	connects(t, a.Namespace, l.Namespace, addr("fd00:10::1"))
}

// What others had set is what is given back; what was as wanted anyway is
// not touched at all.
func TestRestoreIsWhatWasFound(t *testing.T) {
	l := newLab(t)
	l.addBridge("br", 10)
	a, b := l.addGuest("br", 10, 2), l.addGuest("br", 10, 3)
	c := l.addGuest("br", 10, 4)
	l.do(func() error {
		port, err := netlink.LinkByName(a.port)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetIsolated(port, true); err != nil {
			return err
		}
		if port, err = netlink.LinkByName(b.port); err != nil {
			return err
		}
		return netlink.LinkSetAlias(port, "web, do not unplug")
	})
	h := l.open()
	before := state(t, h)
	enforce(t, h, "br")
	during := state(t, h)
	for _, want := range []string{
		`port p10-2 of br kind=veth isolated=true alias=""`,
		`port p10-3 of br kind=veth isolated=true alias="web, do not unplug [ambassador-icc isolated]"`,
		`port p10-4 of br kind=veth isolated=true alias="[ambassador-icc isolated]"`,
		`bridge br nf_call_iptables=true nf_call_ip6tables=true alias="[ambassador-icc nf_call_iptables nf_call_ip6tables]"`,
	} {
		if !strings.Contains(during, want) {
			t.Errorf("%q is missing in\n%s", want, during)
		}
	}
	// Another agent, after this one was killed, knows what was found.
	h.Close()
	h = l.open()
	if _, err := h.Restore(); err != nil {
		t.Fatal(err)
	}
	if after := state(t, h); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	expect(t, l, b, c, true)
}

// A bridge that is not closed any more is given back, and the others stay.
func TestEnforceOtherBridges(t *testing.T) {
	l := newLab(t)
	l.addBridge("br1", 10)
	l.addBridge("br2", 11)
	a, b := l.addGuest("br1", 10, 2), l.addGuest("br1", 10, 3)
	c, d := l.addGuest("br2", 11, 2), l.addGuest("br2", 11, 3)
	h := l.open()
	enforce(t, h, "br1", "br2")
	enforce(t, h, "br2", "not-there-yet")
	expect(t, l, a, b, true)
	expect(t, l, c, d, false)
	if got := fmt.Sprint(h.Closed()); got != "[br2 not-there-yet]" {
		t.Errorf("closed are %s", got)
	}
}

// A port that left its bridge loses our mark.
func TestPortThatLeft(t *testing.T) {
	l := newLab(t)
	l.addBridge("br", 10)
	a := l.addGuest("br", 10, 2)
	h := l.open()
	enforce(t, h, "br")
	l.do(func() error {
		port, err := netlink.LinkByName(a.port)
		if err != nil {
			return err
		}
		return netlink.LinkSetNoMaster(port)
	})
	if done := enforce(t, h, "br"); !slices.Equal(done, []string{"forgot that p10-2 was isolated"}) {
		t.Errorf("did %q", done)
	}
	if s := state(t, h); strings.Contains(s, "isolated") {
		t.Errorf("the state is\n%s", s)
	}
}

// Ways to the outside are left alone, and guests are guests whatever they are.
func TestOnlyGuestsAreIsolated(t *testing.T) {
	l := newLab(t)
	l.addBridge("br", 10)
	l.do(func() error {
		br, err := netlink.LinkByName("br")
		if err != nil {
			return err
		}
		attrs := func(name string) netlink.LinkAttrs {
			return netlink.LinkAttrs{Name: name, TxQLen: -1, MasterIndex: br.Attrs().Index}
		}
		for _, link := range []netlink.Link{
			&netlink.Vxlan{LinkAttrs: attrs("vx"), VxlanId: 7, Port: 4789},
			&netlink.Tuntap{LinkAttrs: attrs("vm"), Mode: netlink.TUNTAP_MODE_TAP},
			&netlink.Veth{LinkAttrs: attrs("patch"), PeerName: "patch-end"},
		} {
			if err := netlink.LinkAdd(link); err != nil {
				return fmt.Errorf("%s: %w", link.Attrs().Name, err)
			}
			if err := netlink.LinkSetMaster(link, br); err != nil {
				return fmt.Errorf("%s: %w", link.Attrs().Name, err)
			}
		}
		return nil
	})
	h := l.open()
	enforce(t, h, "br")
	s, err := h.Read()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, p := range s.Ports {
		got[p.Name] = p.Isolated
	}
	if want := map[string]bool{"vx": false, "vm": true, "patch": true}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("isolated are %v, want %v", got, want)
	}
}

// Bridge netfilter of one bridge is switched on, and that of the whole host
// is not touched.
func TestTheHostsSettingStays(t *testing.T) {
	l := newLab(t)
	l.bridgeNetfilter(false)
	l.addBridge("br", 10)
	l.addBridge("other", 11)
	h := l.open()
	enforce(t, h, "br")
	s, err := h.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range s.Bridges {
		if on := b.Name == "br"; b.NFCallIPTables != on || b.NFCallIP6Tables != on {
			t.Errorf("%s: %t, %t", b.Name, b.NFCallIPTables, b.NFCallIP6Tables)
		}
	}
	netnstest.Do(t, l.Namespace, func() error {
		for _, name := range []string{"iptables", "ip6tables"} {
			text, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + name)
			if err != nil || string(text) != "0\n" {
				t.Errorf("%s is %q, %v", name, text, err)
			}
		}
		return nil
	})
}
