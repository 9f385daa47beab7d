package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/internal/frame"
	"github.com/linkrun/linkrun/iptables"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// pair is a recipient that is allowed to reach one port of a source, on a
// closed bridge with a stranger, bridge netfilter being off on the host.
type pair struct {
	*lab
	host                        *bridge.Host
	recipient, source, stranger *guest
	backend                     iptables.Backend
}

const allowed = 5432

func newPair(t testing.TB, backend iptables.Backend) *pair {
	l := newLab(t)
	l.bridgeNetfilter(false)
	l.addBridge("br", 10)
	p := &pair{
		lab:       l,
		recipient: l.addGuest("br", 10, 2),
		source:    l.addGuest("br", 10, 3),
		stranger:  l.addGuest("br", 10, 4),
		host:      l.open(),
		backend:   backend,
	}
	enforce(t, p.host, "br")
	for _, d := range p.detours() {
		if _, err := d.Set(d.ns); err != nil {
			t.Fatal(err)
		}
	}
	p.rules(true)
	return p
}

type placed struct {
	bridge.Detour
	ns *netns.Namespace
}

func (p *pair) detours() []placed {
	p.t.Helper()
	s, err := p.host.Read()
	if err != nil {
		p.t.Fatal(err)
	}
	via := s.Bridges[0].MAC
	return []placed{
		{bridge.Detour{Own: p.recipient.ip4, Peer: p.source.ip4, Via: via}, p.recipient.Namespace},
		{bridge.Detour{Own: p.source.ip4, Peer: p.recipient.ip4, Via: via}, p.source.Namespace},
		{bridge.Detour{Own: p.recipient.ip6, Peer: p.source.ip6, Via: via}, p.recipient.Namespace},
		{bridge.Detour{Own: p.source.ip6, Peer: p.recipient.ip6, Via: via}, p.source.Namespace},
	}
}

func (p *pair) rules(allow bool) {
	p.t.Helper()
	policy := iptables.Policy{Bridges: []iptables.Bridge{{Name: "br", Closed: true}}}
	if allow {
		for _, port := range []link.Port{{Number: allowed, Proto: link.TCP}, {Number: allowed, Proto: link.UDP}} {
			policy.Allow = append(policy.Allow,
				iptables.Allow{Bridge: "br", Port: port,
					Recipient: iptables.Endpoint{Addr: p.recipient.ip4, Device: p.recipient.port},
					Source:    iptables.Endpoint{Addr: p.source.ip4, Device: p.source.port}},
				iptables.Allow{Bridge: "br", Port: port,
					Recipient: iptables.Endpoint{Addr: p.recipient.ip6, Device: p.recipient.port},
					Source:    iptables.Endpoint{Addr: p.source.ip6, Device: p.source.port}})
		}
	}
	p.do(func() error {
		_, err := (&iptables.Firewall{Backend: p.backend}).Reconcile(context.Background(), policy)
		return err
	})
}

// routed sends a SYN to the host's address on the wire and another's in IP,
// which the host then routes, and says whether it arrives.
func (p *pair) routed(from, to *guest, flow frame.Flow) bool {
	p.t.Helper()
	s, err := p.host.Read()
	if err != nil {
		p.t.Fatal(err)
	}
	hop := frame.Hop{From: from.mac, To: s.Bridges[0].MAC}
	out, in := tap(p.t, from.Namespace, "eth0"), tap(p.t, to.Namespace, "eth0")
	defer out.Close()
	defer in.Close()
	if err := out.Send(frame.SYN(hop, flow, frame.Token{Magic: magic, ID: 1})); err != nil {
		p.t.Fatal(err)
	}
	p.fence(out, in, from, to)
	arrived := false
	if err := in.Watch(time.Now(), func(id uint32) bool { arrived = arrived || id == 1; return false }); err != nil {
		p.t.Fatal(err)
	}
	return arrived
}

func eachBackend(t *testing.T, fn func(t *testing.T, b iptables.Backend)) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			if _, err := exec.LookPath("iptables-" + string(b) + "-restore"); err != nil {
				t.Skipf("CANNOT BE TESTED HERE: %v", err)
			}
			fn(t, b)
		})
	}
}

// The allowed port works, many times over and in both families, and nothing
// else does: another port, the other direction, Docker's reverse rule.
func TestDetourCarriesWhatIsAllowed(t *testing.T) {
	eachBackend(t, func(t *testing.T, b iptables.Backend) {
		p := newPair(t, b)
		for _, ends := range [][2]netip.Addr{{p.recipient.ip4, p.source.ip4}, {p.recipient.ip6, p.source.ip6}} {
			r, s := ends[0], ends[1]
			good := serve(t, p.source.Namespace, netip.AddrPortFrom(s, allowed))
			for range 5 { // the host's redirects have had their time by then
				from, err := dial(p.recipient.Namespace, good, 5*time.Second)
				if err != nil || netip.MustParseAddrPort(from).Addr() != r {
					t.Fatalf("the allowed port, from %q: %v", from, err)
				}
			}
			echoesUDP(t, p.recipient.Namespace, p.source.Namespace, netip.AddrPortFrom(s, allowed))

			other := serve(t, p.source.Namespace, netip.AddrPortFrom(s, 0))
			victim := serve(t, p.recipient.Namespace, netip.AddrPortFrom(r, 0))
			refused := func(what string, ns *netns.Namespace, to netip.AddrPort) {
				t.Helper()
				if _, err := dial(ns, to, 300*time.Millisecond); err == nil {
					t.Errorf("%s: %v is reached", what, to)
				}
			}
			refused("another port", p.recipient.Namespace, other)
			refused("the other direction", p.source.Namespace, victim)
			if p.routed(p.source, p.recipient, frame.Flow{From: netip.AddrPortFrom(s, allowed), To: victim}) {
				t.Error("the reverse rule: a SYN from the exposed port arrives")
			}
			if !p.routed(p.recipient, p.source, frame.Flow{From: netip.AddrPortFrom(r, 4000), To: good}) {
				t.Error("a SYN to the allowed port does not arrive: what the test looks for could not be seen")
			}
			if p.routed(p.stranger, p.source, frame.Flow{From: netip.AddrPortFrom(r, 4001), To: good}) {
				t.Error("a stranger with the recipient's address reaches the allowed port")
			}
		}
		expect(t, p.lab, p.recipient, p.source, false)
		expect(t, p.lab, p.stranger, p.source, false)
	})
}

// A connection that the source opened from its exposed port before anything
// was closed does not live on as one that was allowed, neither if it was
// tracked nor if it was not and the recipient sends first.
func TestOldReverseConnectionIsCut(t *testing.T) {
	eachBackend(t, func(t *testing.T, b iptables.Backend) {
		for _, tracked := range []bool{true, false} {
			t.Run(fmt.Sprintf("tracked=%t", tracked), func(t *testing.T) {
				p := newPair(t, b)
				p.do(func() error {
					_, err := (&iptables.Firewall{Backend: p.backend}).Remove(context.Background())
					return err
				})
				if tracked {
					// Connections are tracked while there is a rule that asks.
					p.run("iptables-"+string(b), "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
				}
				conn := p.holdConnection(p.source, netip.AddrPortFrom(p.source.ip4, allowed), p.recipient)
				if err := conn.exchange(5 * time.Second); err != nil {
					t.Fatalf("without rules: %v", err)
				}
				p.rules(true)
				// The recipient, which is the far end, speaks first.
				if err := (held{conn.far, conn.near}).exchange(500 * time.Millisecond); err == nil {
					t.Error("the connection lives on")
				}
				if err := conn.exchange(500 * time.Millisecond); err == nil {
					t.Error("the connection lives on if the source speaks")
				}
			})
		}
	})
}

// Without bridge netfilter on the bridge, the rules cannot tell who sends:
// then nothing passes, not everything.
func TestDetourNeedsBridgeNetfilter(t *testing.T) {
	p := newPair(t, iptables.NFT)
	good := serve(t, p.source.Namespace, netip.AddrPortFrom(p.source.ip4, allowed))
	p.run("ip", "link", "set", "dev", "br", "type", "bridge", "nf_call_iptables", "0")
	if _, err := dial(p.recipient.Namespace, good, 300*time.Millisecond); err == nil {
		t.Error("the allowed port is reached")
	}
	expect(t, p.lab, p.recipient, p.source, false)
	expect(t, p.lab, p.stranger, p.source, false)
	enforce(t, p.host, "br")
	if _, err := dial(p.recipient.Namespace, good, 5*time.Second); err != nil {
		t.Errorf("with bridge netfilter back on: %v", err)
	}
}

// Rules that were flushed open nothing between containers that are not a pair.
func TestFlushedRulesOpenNothingToStrangers(t *testing.T) {
	p := newPair(t, iptables.NFT)
	p.run("iptables-nft", "-F")
	p.run("iptables-nft", "-P", "FORWARD", "ACCEPT")
	good := serve(t, p.source.Namespace, netip.AddrPortFrom(p.source.ip4, allowed))
	if _, err := dial(p.stranger.Namespace, good, 300*time.Millisecond); err == nil {
		t.Error("a stranger reaches the source")
	}
	expect(t, p.lab, p.stranger, p.source, false)
}

func TestDetourIsCleared(t *testing.T) {
	p := newPair(t, iptables.NFT)
	neighbours := func() (lines []string) {
		for _, g := range []*guest{p.recipient, p.source} {
			netnstest.Do(t, g.Namespace, func() error {
				for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
					list, err := netlink.NeighList(0, family)
					if err != nil {
						return err
					}
					for _, n := range list {
						if n.State == netlink.NUD_PERMANENT {
							lines = append(lines, n.String())
						}
					}
				}
				return nil
			})
		}
		return lines
	}
	if n := neighbours(); len(n) != 4 {
		t.Fatalf("the neighbours are %q", n)
	}
	for range 2 {
		for _, d := range p.detours() {
			if err := d.Clear(d.ns); err != nil {
				t.Error(err)
			}
		}
	}
	if n := neighbours(); len(n) != 0 {
		t.Errorf("left are %q", n)
	}
	// One that is somebody else's stays.
	foreign := p.detours()[0]
	foreign.Via = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if _, err := foreign.Set(foreign.ns); err != nil {
		t.Fatal(err)
	}
	if err := p.detours()[0].Clear(foreign.ns); err != nil {
		t.Error(err)
	}
	if n := neighbours(); len(n) != 1 || !strings.Contains(n[0], "02:00:00:00:00:01") {
		t.Errorf("left are %q", n)
	}
}

func TestDetourOfAnAddressThatIsNotThere(t *testing.T) {
	p := newPair(t, iptables.NFT)
	d := p.detours()[0]
	d.Own = addr("10.10.0.77")
	_, err := d.Set(d.ns)
	if !errors.Is(err, bridge.ErrNoAddress) || err.Error() != "making a detour from 10.10.0.77 to 10.10.0.3: no interface has the address" {
		t.Errorf("the error is %v", err)
	}
	if err := d.Clear(d.ns); err != nil {
		t.Error(err)
	}
}

// The port that Set reports is the one the container is behind.
func TestDetourReportsThePort(t *testing.T) {
	p := newPair(t, iptables.NFT)
	s, err := p.host.Read()
	if err != nil {
		t.Fatal(err)
	}
	d := p.detours()[0]
	index, err := d.Set(d.ns)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := bridge.PortOf(d.ns, d.Own); err != nil || same != index {
		t.Errorf("the port is %d, and %d, %v", index, same, err)
	}
	for _, port := range s.Ports {
		if (port.Index == index) != (port.Name == p.recipient.port) {
			t.Errorf("the port is %d, and %s is %d", index, port.Name, port.Index)
		}
	}
}

func (p *pair) run(argv ...string) {
	p.t.Helper()
	p.do(func() error {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", argv, err, out)
		}
		return nil
	})
}
