package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/internal/frame"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// peer is a container seen from the outside: its network namespace, and where
// it is.
type peer struct {
	*netns.Namespace
	name    string
	network string
	mac     net.HardwareAddr
	gateway net.HardwareAddr // of the bridge it is on

	ip4, ip6 netip.Addr // ip6 is not valid where the network has none
}

// link6 is an address that frames can have on any bridge.
func (p *peer) link6() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: p.mac[0], p.mac[1], p.mac[2], 0xff, 0xfe, p.mac[3], p.mac[4], p.mac[5]})
}

// peer opens the namespace of a container, which is on one network.
func (h *host) peer(t *testing.T, name string) *peer {
	t.Helper()
	var inspected []struct {
		State           struct{ Pid int }
		NetworkSettings struct {
			Networks map[string]struct {
				IPAddress, GlobalIPv6Address, MacAddress, NetworkID string
			}
		}
	}
	if err := json.Unmarshal([]byte(h.docker(t, "inspect", name)), &inspected); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.Open("/proc/" + strconv.Itoa(inspected[0].State.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	p := &peer{Namespace: ns, name: name}
	for network, e := range inspected[0].NetworkSettings.Networks {
		p.network = network
		p.ip4, _ = netip.ParseAddr(e.IPAddress)
		p.ip6, _ = netip.ParseAddr(e.GlobalIPv6Address)
		if p.mac, err = net.ParseMAC(e.MacAddress); err != nil {
			t.Fatal(err)
		}
		device := "docker0"
		if network != "bridge" {
			device = "br-" + e.NetworkID[:12]
		}
		netnstest.Do(t, h.namespace(t), func() error {
			dev, err := net.InterfaceByName(device)
			if err == nil {
				p.gateway = dev.HardwareAddr
			}
			return err
		})
	}
	return p
}

// namespace is the engine's host.
func (h *host) namespace(t *testing.T) *netns.Namespace {
	t.Helper()
	ns, err := netns.Open(h.NetNS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// shot is a frame that one container sends to another.
type shot struct {
	name  string
	frame func(frame.Token) []byte
}

// shots are a frame of each kind, straight and by way of the host.
func shots(a, b *peer) (all []shot) {
	for _, way := range []struct {
		name string
		mac  net.HardwareAddr
	}{{"straight", b.mac}, {"by the host", a.gateway}} {
		hop := frame.Hop{From: a.mac, To: way.mac}
		add := func(kind string, frame func(frame.Token) []byte) {
			all = append(all, shot{kind + " " + way.name, frame})
		}
		add("raw", func(t frame.Token) []byte { return frame.Raw(hop, t) })
		for _, pair := range [][2]netip.Addr{{a.ip4, b.ip4}, {a.ip6, b.ip6}, {a.link6(), b.link6()}} {
			src, dst := pair[0], pair[1]
			if !src.IsValid() || !dst.IsValid() {
				continue
			}
			family := map[bool]string{true: "IPv4", false: "IPv6"}[src.Is4()]
			if src.IsLinkLocalUnicast() {
				family = "link-local IPv6"
			}
			flow := frame.Flow{From: netip.AddrPortFrom(src, 61000), To: netip.AddrPortFrom(dst, 80)}
			add("TCP "+family, func(t frame.Token) []byte { return frame.SYN(hop, flow, t) })
			add("UDP "+family, func(t frame.Token) []byte { return frame.UDP(hop, flow, t) })
			add("ICMP "+family, func(t frame.Token) []byte { return frame.Echo(hop, flow, t) })
		}
	}
	return append(all,
		shot{"ARP", func(t frame.Token) []byte { return frame.ARP(a.mac, a.ip4, b.ip4, t) }},
		shot{"raw to everybody", func(t frame.Token) []byte { return frame.Raw(frame.Hop{From: a.mac, To: frame.Broadcast}, t) }})
}

// way is from one container to another, by their names.
type way struct{ from, to string }

// volley is what came of shots: how many were sent, and by way, the names of
// those that arrived.
type volley struct {
	sent    int
	arrived map[way][]string
}

func (v volley) String() string {
	n := 0
	for _, names := range v.arrived {
		n += len(names)
	}
	return fmt.Sprintf("%d frames sent, %d arrived", v.sent, n)
}

// nothing fails the test for every way by which something arrived.
func (v volley) nothing(t *testing.T, when string) {
	t.Helper()
	for w, arrived := range v.arrived {
		t.Errorf("%s, from %s to %s: %q", when, w.from, w.to, arrived)
	}
	t.Logf("%s: %v", when, v)
}

// passes sends frames of each kind from inside one container to another, and
// names those that arrive.
func passes(t *testing.T, a, b *peer) []string {
	t.Helper()
	return shoot(t, grace, [][2]*peer{{a, b}}, shots).arrived[way{a.name, b.name}]
}

// passesAmong does so from each to each, all at once.
func passesAmong(t *testing.T, wait time.Duration, peers ...*peer) volley {
	t.Helper()
	var pairs [][2]*peer
	for _, a := range peers {
		for _, b := range peers {
			if a != b {
				pairs = append(pairs, [2]*peer{a, b})
			}
		}
	}
	return shoot(t, wait, pairs, shots)
}

// grace is how long a frame is waited for that should not come. On an open
// bridge, all come at once.
const grace = 500 * time.Millisecond

func shoot(t *testing.T, wait time.Duration, pairs [][2]*peer, shots func(a, b *peer) []shot) volley {
	t.Helper()
	type aim struct {
		shot
		from, to *peer
	}
	magic := rand.Uint32() // what an earlier volley left under way is not for this one
	taps := map[*peer]*frame.Tap{}
	for _, pair := range pairs {
		for _, p := range pair {
			if taps[p] == nil {
				taps[p] = openTap(t, p, magic)
				defer taps[p].Close()
			}
		}
	}
	var aims []aim
	for _, pair := range pairs {
		for _, s := range shots(pair[0], pair[1]) {
			if err := taps[pair[0]].Send(s.frame(frame.Token{Magic: magic, ID: uint32(len(aims))})); err != nil {
				t.Fatal(err)
			}
			aims = append(aims, aim{s, pair[0], pair[1]})
		}
	}
	v := volley{len(aims), map[way][]string{}}
	until := time.Now().Add(wait)
	for p, tap := range taps {
		if err := tap.Watch(until, func(id uint32) bool {
			if s := aims[id]; s.to == p {
				w := way{s.from.name, p.name}
				v.arrived[w] = append(v.arrived[w], s.name)
			}
			return false
		}); err != nil {
			t.Fatal(err)
		}
	}
	for w, names := range v.arrived {
		slices.Sort(names)
		v.arrived[w] = slices.Compact(names) // a redirect (ICMP) brings one again
	}
	return v
}

func openTap(t *testing.T, p *peer, magic uint32) (tap *frame.Tap) {
	t.Helper()
	netnstest.Do(t, p.Namespace, func() (err error) {
		tap, err = frame.Open("eth0", magic)
		return err
	})
	return tap
}

// outside is a host beyond the engine's, on which a server answers.
func (h *host) outside(t *testing.T) (ns *netns.Namespace, server netip.AddrPort) {
	t.Helper()
	ns = netnstest.New(t)
	netnstest.Connect(t, "outside", h.namespace(t), netip.MustParsePrefix("10.250.0.1/24"), ns, netip.MustParsePrefix("10.250.0.2/24"))
	var ln net.Listener
	netnstest.Do(t, ns, func() (err error) {
		ln, err = net.Listen("tcp4", "10.250.0.2:0")
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "outside\n")
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ns, ln.Addr().(*net.TCPAddr).AddrPort()
}

// dialFrom connects from a namespace, from a port unless that is 0, and
// returns what the server says.
func dialFrom(ns *netns.Namespace, port int, address string) (text string, err error) {
	d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{Port: port}}
	var conn net.Conn
	if err := ns.Do(func() error {
		conn, err = d.DialContext(context.Background(), "tcp4", address)
		return err
	}); err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(conn)
	return strings.TrimSpace(string(b)), err
}

// icc asks the ambassador what is enforced.
func (h *host) icc(t *testing.T) control.ICC {
	t.Helper()
	s, err := control.Dial(h.dir).ICC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// enforced waits until everything wanted is found, and every rule is there
// once.
func (h *host) enforced(t *testing.T, after string) (took time.Duration) {
	t.Helper()
	start := time.Now()
	enginetest.Poll(t, soon, func() error {
		s, err := control.Dial(h.dir).ICC(t.Context())
		switch {
		case err != nil:
			return err
		case len(s.Missing) > 0:
			return fmt.Errorf("after %s, missing: %q", after, s.Missing)
		}
		for _, b := range s.Bridges {
			if b.Wanted != b.Found {
				return fmt.Errorf("after %s, %s is %s, not %s", after, b.Bridge, b.Found, b.Wanted)
			}
		}
		return h.noRuleTwice(t)
	})
	took = time.Since(start).Round(time.Millisecond)
	t.Logf("enforced %v after %s", took, after)
	return took
}

// noRuleTwice says which rule of the ambassador's is there more than once.
func (h *host) noRuleTwice(t *testing.T) error {
	t.Helper()
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		seen := map[string]bool{}
		for line := range strings.Lines(run(t, h.Command(t.Context(), program)).out) {
			if strings.HasPrefix(line, "-A") && strings.Contains(line, "AMBASSADOR") {
				if seen[line] {
					return fmt.Errorf("%s has two of %s", program, line)
				}
				seen[line] = true
			}
		}
	}
	return nil
}

// inHost runs a program on the engine's host, which must succeed.
func (h *host) inHost(t *testing.T, argv ...string) string {
	t.Helper()
	r := run(t, h.Command(t.Context(), argv[0], argv[1:]...))
	if r.code != 0 {
		t.Fatalf("%q: exit status %d\n%s", argv, r.code, r.err)
	}
	return r.out
}
