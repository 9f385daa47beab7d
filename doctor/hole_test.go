package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/iptables"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// ward is a host in a namespace of its own, with two closed bridges, a
// recipient and a source, and the packages that close them.
type ward struct {
	t       *testing.T
	ns      *netns.Namespace
	facts   Facts
	bridges *bridge.Host

	resident  map[string]bool // ports of the host that were there before
	neighbour map[string]bool // their hardware addresses
}

func newWard(t *testing.T) *ward {
	t.Parallel() // mostly they wait
	w := &ward{t: t, ns: netnstest.New(t), resident: make(map[string]bool), neighbour: make(map[string]bool)}
	var residents []*port
	w.do(func() (err error) {
		w.facts, residents, err = openHost()
		return err
	})
	t.Cleanup(func() {
		w.do(func() error {
			for _, p := range residents {
				if err := p.unplug(); err != nil {
					return err
				}
			}
			return nil
		})
	})
	for _, p := range residents {
		w.resident[p.name], w.neighbour[p.mac.String()] = true, true
	}
	w.facts.control = false
	for i := range w.facts.Bridges {
		b := &w.facts.Bridges[i]
		b.Allowed, b.Closed, b.Why = false, true, "the test says so"
	}
	w.do(func() (err error) {
		for _, name := range []string{"iptables", "ip6tables", "arptables"} {
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0); err != nil {
				return err
			}
		}
		w.bridges, err = bridge.Open(slog.New(slog.DiscardHandler))
		return err
	})
	t.Cleanup(func() { w.bridges.Close() })
	return w
}

func (w *ward) do(fn func() error) {
	w.t.Helper()
	netnstest.Do(w.t, w.ns, fn)
}

// follow isolates new ports, as the ambassador does.
func (w *ward) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.bridges.Follow(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("following: %v", err)
		}
	})
}

func (w *ward) isolate() {
	w.t.Helper()
	if _, err := w.bridges.Enforce([]string{"control0", "control1"}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ward) rules(allow ...iptables.Allow) {
	w.t.Helper()
	p := iptables.Policy{Allow: allow}
	for _, b := range w.facts.Bridges {
		p.Bridges = append(p.Bridges, iptables.Bridge{Name: b.Device, Closed: b.Closed})
	}
	w.do(func() error {
		_, err := new(iptables.Firewall).Reconcile(w.t.Context(), p)
		return err
	})
}

func (w *ward) run(words string) {
	w.t.Helper()
	argv := strings.Fields(words)
	w.do(func() error {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", words, err, out)
		}
		return nil
	})
}

// try is a doctor's visit. It fails the test if anything is left behind.
func (w *ward) try() []Finding {
	w.t.Helper()
	before := w.left()
	var found []Finding
	w.do(func() (err error) {
		found, err = Try(w.t.Context(), w.facts)
		return err
	})
	w.same(before)
	for _, f := range found {
		if f.How != Tried {
			w.t.Errorf("%+v is not said to be tried", f)
		}
	}
	return found
}

// left is everything of the host in which something could be left.
func (w *ward) left() string {
	w.t.Helper()
	var facts []string
	w.do(func() error {
		// How much of each line says what there is, and not how it goes.
		for command, words := range map[string]int{
			"ip -o link": 2, "ip -o addr": 4, "ip neigh show nud all": 5, "ip route show table all": 99,
			"iptables-save": 99, "ip6tables-save": 99,
		} {
			argv := strings.Fields(command)
			out, err := exec.Command(argv[0], argv[1:]...).Output()
			if err != nil {
				return fmt.Errorf("%s: %w", command, err)
			}
			for line := range strings.Lines(string(out)) {
				fields := strings.Fields(line)
				if line[0] == '#' || line[0] == ':' || strings.HasPrefix(fields[0], "ff02:") || strings.HasPrefix(fields[0], "224.") ||
					len(fields) > 4 && w.neighbour[fields[4]] {
					continue
				}
				fields = slices.DeleteFunc(fields, func(s string) bool { return s == "linkdown" })
				facts = append(facts, command+": "+strings.Join(fields[:min(words, len(fields))], " "))
			}
		}
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range flows {
				if f.Forward.DstIP.IsMulticast() {
					continue
				}
				facts = append(facts, fmt.Sprint("connection: ", f.Forward))
			}
		}
		return nil
	})
	slices.Sort(facts)
	return strings.Join(facts, "\n")
}

// same fails the test if something was left or lost.
func (w *ward) same(before string) {
	w.t.Helper()
	was, is := strings.Split(before, "\n"), strings.Split(w.left(), "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			w.t.Errorf("lost: %s", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			w.t.Errorf("left: %s", line)
		}
	}
}

func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// only checks that exactly these checks found a hole, and that nothing could
// not be found out.
func only(t *testing.T, found []Finding, holes ...string) {
	t.Helper()
	got := make(map[string]bool)
	for _, f := range found {
		switch f.Verdict {
		case Hole:
			got[f.Check] = true
			if f.CIS != "2.2" || f.Subject == "" || f.Detail == "" || f.Hint == "" {
				t.Errorf("%+v does not say enough", f)
			}
		case Unknown:
			t.Errorf("unknown: %+v", f)
		}
	}
	var names []string
	for name := range got {
		names = append(names, name)
	}
	slices.Sort(names)
	slices.Sort(holes)
	if !slices.Equal(names, holes) {
		var all []string
		for _, f := range found {
			all = append(all, fmt.Sprintf("%s %s %s: %s %q", f.Verdict, f.Check, f.Subject, f.Detail, f.Frames))
		}
		t.Errorf("holes in %q, want %q\n%s", names, holes, strings.Join(all, "\n"))
	}
}

var (
	firewalled = []string{"tcp", "udp", "icmp", "ipv6-tcp", "ipv6-udp", "ipv6-icmp", "forged-source", "reverse-rule"}
	below      = []string{"arp", "raw-frame", "broadcast"}
	routed4    = []string{"routed-tcp", "routed-udp", "routed-icmp"}
)

// A host on which everything is closed has no hole, and every kind of shot
// was fired at it.
func TestNoHole(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.follow()
	w.rules()
	found := w.try()
	only(t, found)
	for _, check := range slices.Concat(firewalled, below, routed4,
		[]string{"control", "new-port", "routed-ipv6", "bridge-to-bridge", "stranger", "link-port"}) {
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Check == check && f.Verdict == OK }) {
			t.Errorf("%s was not tried", check)
		}
	}
	r := Report{Findings: found}
	if !r.Passed(true) {
		t.Error("the report is no pass")
	}
}

// The hole of icc=false everywhere: rules stop IP, if bridge netfilter is on,
// and nothing else.
func TestHoleBelowTheRules(t *testing.T) {
	w := newWard(t)
	w.rules()
	w.run("ip link set dev control0 type bridge nf_call_iptables 1 nf_call_ip6tables 1")
	w.run("ip link set dev control1 type bridge nf_call_iptables 1 nf_call_ip6tables 1")
	only(t, w.try(), slices.Concat(below, []string{"new-port", "stranger"})...)
}

// Without bridge netfilter, rules stop only what is routed.
func TestHoleWithoutBridgeNetfilter(t *testing.T) {
	w := newWard(t)
	w.rules()
	only(t, w.try(), slices.Concat(firewalled, below, []string{"new-port", "stranger", "link-port"})...)
}

// Isolation alone leaves the way by the host.
func TestHoleByWayOfTheHost(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.follow()
	only(t, w.try(), slices.Concat(routed4, []string{"routed-ipv6", "bridge-to-bridge", "stranger", "link-port", "forged-source", "reverse-rule"})...)
}

// Rules for IPv4 alone leave IPv6.
func TestHoleInIPv6(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.follow()
	w.rules()
	w.run("ip6tables -F FORWARD")
	only(t, w.try(), "routed-ipv6", "bridge-to-bridge", "stranger", "link-port", "forged-source", "reverse-rule")
}

// Nobody isolates what appears.
func TestHoleInNewPorts(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.rules()
	w.run("ip link set dev control0 type bridge nf_call_iptables 0 nf_call_ip6tables 0")
	w.run("ip link set dev control1 type bridge nf_call_iptables 0 nf_call_ip6tables 0")
	only(t, w.try(), slices.Concat(firewalled, below, []string{"new-port", "stranger", "link-port"})...)
}

// isolateNew isolates throw-away ports, and lets others be opened.
func (w *ward) isolateNew() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(2 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			w.ns.Do(func() error {
				links, err := netlink.LinkList()
				for _, l := range links {
					if a := l.Attrs(); strings.HasPrefix(a.Name, "ambdoc") && a.MasterIndex != 0 && !w.resident[a.Name] {
						netlink.LinkSetIsolated(l, true)
					}
				}
				return err
			})
		}
	}()
	w.t.Cleanup(func() { close(stop); <-done })
}

// Somebody opened the port of one container.
func TestHoleInOnePort(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.isolateNew()
	w.rules()
	for _, b := range w.facts.Bridges { // or the rules would see what passes
		w.run("ip link set dev " + b.Device + " type bridge nf_call_iptables 0 nf_call_ip6tables 0")
	}
	w.do(func() error {
		dev, err := netlink.LinkByName(w.facts.container("source").Endpoints[0].Port)
		if err != nil {
			return err
		}
		return netlink.LinkSetIsolated(dev, false)
	})
	found := w.try()
	only(t, found, "stranger", "link-port", "forged-source")
	for _, f := range found {
		if f.Verdict == Hole && !strings.Contains(f.Subject, "source") {
			t.Errorf("%s has a hole: %s", f.Subject, f.Detail)
		}
	}
}

// The engine's own link, with the engine's own rules for it: whoever says he
// is the source and sends from its port reaches the recipient.
func TestHoleOfTheReverseRule(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.follow()
	w.rules()
	r, s := w.facts.container("recipient").Endpoints[0].Addrs[0], w.facts.container("source").Endpoints[0].Addrs[0]
	w.run(fmt.Sprintf("iptables -I FORWARD 1 -i control0 -o control0 -p tcp -s %v -d %v --sport 80 -j ACCEPT", s, r))
	found := w.try()
	only(t, found, "reverse-rule")
	for _, f := range found {
		if f.Verdict == Hole {
			want := []string{"the reverse rule, from source port 80 as source, on control0 by way of the host"}
			if f.Subject != "link recipient to source, port 80/tcp (control)" || f.Detail != "arrives" || !slices.Equal(f.Frames, want) {
				t.Errorf("found %+v", f)
			}
		}
	}
}

// An allowed pair whose rule does not say which port of the bridge the
// recipient is behind.
func TestHoleOfAForgedSource(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.follow()
	allow := iptables.Allow{
		Bridge:    "control0",
		Recipient: iptables.Endpoint{Addr: w.facts.container("recipient").Endpoints[0].Addrs[0]},
		Source:    iptables.Endpoint{Addr: w.facts.container("source").Endpoints[0].Addrs[0]},
		Port:      link.Port{Number: 80, Proto: link.TCP},
	}
	w.rules(allow)
	only(t, w.try(), "forged-source")
	allow.Recipient.Device = w.facts.container("recipient").Endpoints[0].Port
	allow.Source.Device = w.facts.container("source").Endpoints[0].Port
	w.rules(allow)
	only(t, w.try())
}

// A rule that lets everybody reach a port.
func TestHoleOfAPort(t *testing.T) {
	w := newWard(t)
	w.isolate()
	w.follow()
	w.rules()
	w.run("iptables -I FORWARD 1 -p tcp --dport 80 -j ACCEPT")
	only(t, w.try(), "link-port", "forged-source")
}

// What passes on an open bridge is as bad as its being open is.
func TestOpenBridges(t *testing.T) {
	w := newWard(t)
	b := w.facts.Bridges
	b[0].Closed, b[0].Default = false, true
	b[1].Closed, b[1].Allowed = false, true
	verdicts := make(map[string]Verdict)
	for _, f := range w.try() {
		if f.Check == "tcp" {
			verdicts[f.Subject] = f.Verdict
		}
	}
	if verdicts[b[0].subject()] != Hole || verdicts[b[1].subject()] != Note {
		t.Errorf("found %v", verdicts)
	}
	b[0].Default = false
	b[1].Device = "no-such-bridge"
	b[1].Index = 4711
	for _, f := range w.try() {
		switch {
		case f.Check == "tcp" && f.Verdict != Warning:
			t.Errorf("found %+v", f)
		case f.Check == "ports" && (f.Verdict != Unknown || f.Detail == ""):
			t.Errorf("found %+v", f)
		}
	}
}

// A visit that is interrupted leaves nothing, either.
func TestInterruptedVisit(t *testing.T) {
	w := newWard(t)
	before := w.left()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.do(func() error {
		if _, err := Try(ctx, w.facts); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		return nil
	})
	w.same(before)
}

// A visit leaves no file open, and no goroutine; a namespace that was made is
// gone with its thread. Not parallel to others, whose files it would count.
func TestNothingStaysOpen(t *testing.T) {
	home := netnstest.New(t)
	goroutines, fds := runtime.NumGoroutine(), openFiles(t)
	netnstest.Do(t, home, func() error {
		_, err := Try(t.Context(), Facts{})
		return err
	})
	for range 20 {
		ns, err := newSpace()
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
	}
	netnstest.Until(t, "everything to be gone", func() bool {
		return runtime.NumGoroutine() <= goroutines && openFiles(t) <= fds
	})
}
