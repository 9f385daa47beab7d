package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/internal/frame"
)

// Whatever happens to the tables, the engine, its networks and containers, in
// whatever order: it is put right, and no rule comes twice.
func TestDenySurvivesEvents(t *testing.T) {
	t.Parallel() // it has an engine of its own
	// Containers outlive the engine, so that there is always somebody to
	// keep apart.
	h := newHostToWreck(t, enginetest.Start(t, enginetest.Options{ICC: true, LiveRestore: true}), "--icc=deny")
	peers := h.populate(t)
	created := 0
	events := []struct {
		name  string
		often int
		do    func()
	}{
		{"iptables -F", 8, func() { h.inHost(t, "iptables", "-F") }},
		{"ip6tables -F", 4, func() { h.inHost(t, "ip6tables", "-F") }},
		{"the jump removed", 5, func() {
			for _, hook := range []string{"DOCKER-USER", "FORWARD"} {
				h.mayFail(t, "iptables", "-D", hook, "-j", "AMBASSADOR-ICC")
			}
		}},
		{"the jump doubled", 5, func() { h.inHost(t, "iptables", "-A", "FORWARD", "-j", "AMBASSADOR-ICC") }},
		{"the chain flushed", 5, func() { h.mayFail(t, "iptables", "-F", "AMBASSADOR-ICC") }},
		{"a foreign rule before ours", 4, func() { h.inHost(t, "iptables", "-I", "FORWARD", "1", "-i", "eth9", "-j", "ACCEPT") }},
		{"the ports opened", 5, func() {
			for line := range strings.Lines(h.inHost(t, "bridge", "link")) {
				_, rest, _ := strings.Cut(line, ": ")
				name, _, _ := strings.Cut(rest, "@")
				h.inHost(t, "bridge", "link", "set", "dev", name, "isolated", "off")
			}
		}},
		{"a network created", 4, func() {
			created++
			name := fmt.Sprintf("event-%d", created)
			h.docker(t, "network", "create", name)
			t.Cleanup(func() { h.docker(t, "network", "rm", name) })
		}},
		{"a container restarted", 6, func() {
			victim := &peers[rand.IntN(len(peers))]
			h.docker(t, "restart", "-t", "0", (*victim).name)
			*victim = h.peer(t, (*victim).name)
		}},
		{"the engine restarted", 4, func() {
			if err := h.Restart(); err != nil {
				t.Fatal(err)
			}
		}},
	}
	var order []int
	for i, e := range events {
		for range e.often {
			order = append(order, i)
		}
	}
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	if len(order) != 50 {
		t.Fatalf("%d events", len(order))
	}
	slowest := map[string]time.Duration{}
	var all volley
	for i, at := range order {
		name := events[at].name
		events[at].do()
		slowest[name] = max(slowest[name], h.enforced(t, name))
		if t.Failed() || i == len(order)-1 {
			break
		}
		v := passesAmong(t, grace/10, peers...)
		all.sent += v.sent
		for w, arrived := range v.arrived {
			t.Errorf("after event %d, %q, from %s to %s: %q", i+1, name, w.from, w.to, arrived)
		}
	}
	passesAmong(t, grace, peers...).nothing(t, "after all of them")
	t.Logf("after each of %d events, before that: %v", len(order), all)
	for _, e := range events {
		t.Logf("enforced at most %v after %s (%d times)", slowest[e.name], e.name, e.often)
	}
}

// mayFail runs a program on the engine's host that may have nothing to do.
func (h *host) mayFail(t *testing.T, argv ...string) {
	t.Helper()
	run(t, h.Command(t.Context(), argv[0], argv[1:]...))
}

// stamps are the parts of a listing that differ from one to the next.
var stamps = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// TestOffLeavesWhatWasFound compares the rules of both families and the ports
// of the bridges, with all that the kernel tells of them, to the byte.
func TestOffLeavesWhatWasFound(t *testing.T) {
	t.Parallel() // it has an engine of its own
	for _, serving := range []bool{true, false} {
		t.Run(fmt.Sprintf("serving=%t", serving), func(t *testing.T) {
			e := enginetest.Start(t, enginetest.Options{ICC: true})
			h := newHostOn(t, e, "--icc=deny")
			h.agent.stop(t)
			if r := h.ambassador(t, "icc", "off"); r.code != 0 {
				t.Fatal(r.err)
			}
			for _, name := range []string{"one", "two"} {
				h.source(t, name, h.busybox, "sleep", "1000")
			}
			found := func() (text string) {
				for _, argv := range [][]string{
					{"iptables-save"}, {"ip6tables-save"}, {"bridge", "-d", "link"}, {"ip", "-d", "link"}, {"bridge", "fdb", "show", "permanent"},
					{"ip", "netns", "exec", filepath.Base(h.NetNS()), "sysctl", "-a", "--pattern", "^net.bridge"},
				} {
					text += strings.Join(argv, " ") + "\n" + stamps.ReplaceAllString(h.inHost(t, argv...), "")
				}
				for _, name := range []string{"one", "two"} {
					text += h.docker(t, "exec", name, "ip", "neigh")
				}
				return timers.ReplaceAllString(text, "")
			}
			before := found()
			h.startAgent(t)
			h.enforced(t, "the start")
			if r := h.ambassador(t, "icc", "allow", "one", "two", "80"); r.code != 0 {
				t.Fatal(r.err)
			}
			h.enforced(t, "a permission")
			if found() == before {
				t.Fatal("nothing is enforced")
			}
			if !serving {
				h.agent.kill()
			}
			r := h.ambassador(t, "icc", "off")
			if r.code != 0 {
				t.Fatalf("icc off: %s", r.err)
			}
			for _, want := range []string{
				"ip: removed rule -A DOCKER-USER -j AMBASSADOR-ICC", "ip: removed chain AMBASSADOR-ICC: 4 rules",
				"ip6: removed the filter table, which was not there before", "gave port veth", "revoked the permission of one to reach 80/tcp of two",
			} {
				if !strings.Contains(r.out, want) {
					t.Errorf("%q is missing in what it says:\n%s", want, r.out)
				}
			}
			if after := found(); after != before {
				t.Fatalf("before\n%s\nafter\n%s", before, after)
			}
			t.Logf("the same %d bytes as before; icc off says\n%s", len(before), r.out)
			if r := h.ambassador(t, "icc", "off"); r.out != "nothing was enforced\n" {
				t.Errorf("a second time it says %q", r.out)
			}
			if !serving {
				h.startAgent(t) // for the clean-up to stop
			}
		})
	}
}

// timers are the parts of what the kernel tells that run by themselves.
var timers = regexp.MustCompile(`\w+_timer +[0-9.]+`)

// The classic link: one direction, one port, and it follows both containers.
func TestAllow(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h := newHostOn(t, enginetest.Start(t, enginetest.Options{ICC: true}), "--icc=deny")
	h.docker(t, "network", "create", "icc-a")
	t.Cleanup(func() { h.docker(t, "network", "rm", "icc-a") })
	h.source(t, "elsewhere", h.busybox, "sleep", "1000")
	h.inHost(t, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
	serves := []string{h.busybox, "sh", "-c", "nc -ll -p 80 -e echo http & nc -ll -p 81 -e echo other & wait"}
	for _, name := range []string{"web", "db", "stranger"} {
		h.source(t, name, append([]string{"--network", "icc-a"}, serves...)...)
	}
	allow := func(words ...string) string {
		t.Helper()
		r := h.ambassador(t, append([]string{"icc"}, words...)...)
		if r.code != 0 {
			t.Fatalf("icc %q: %s", words, r.err)
		}
		return r.out
	}
	if out := allow("allow", "web", "db", "80/tcp"); out != "" {
		t.Errorf("it says %q", out)
	}
	only := func(when string) {
		t.Helper()
		h.answers(t, "web", h.address(t, "db"), 80, "http")
		var tries sync.WaitGroup
		for _, c := range []struct {
			from, to string
			port     int
		}{{"web", "db", 81}, {"db", "web", 80}, {"stranger", "db", 80}, {"web", "stranger", 80}} {
			from, to := h.peer(t, c.from), fmt.Sprintf("%s:%d", h.address(t, c.to), c.port)
			tries.Go(func() {
				if got, err := dialFrom(from.Namespace, 0, to); err == nil {
					t.Errorf("%s, %s reached port %d of %s and got %q", when, c.from, c.port, c.to, got)
				}
			})
		}
		tries.Wait()
	}
	only("at first")
	// The reverse-rule attack: a source that listens nowhere, so that the
	// allowed port is free to attack from.
	h.source(t, "idle", "--network", "icc-a", h.busybox, "sleep", "1000")
	allow("allow", "web", "idle", "80")
	h.enforced(t, "a permission")
	web, idle := h.peer(t, "web"), h.peer(t, "idle")
	for _, c := range []struct {
		from, to     *peer
		sport, dport uint16
		want         bool
	}{
		{web, idle, 61000, 80, true},
		{web, idle, 61000, 81, false},
		{idle, web, 80, 81, false},
	} {
		flow := frame.Flow{From: netip.AddrPortFrom(c.from.ip4, c.sport), To: netip.AddrPortFrom(c.to.ip4, c.dport)}
		v := shoot(t, grace, [][2]*peer{{c.from, c.to}}, func(a, b *peer) []shot {
			return []shot{{"a SYN", func(t frame.Token) []byte { return frame.SYN(frame.Hop{From: a.mac, To: a.gateway}, flow, t) }}}
		})
		if got := len(v.arrived) > 0; got != c.want {
			t.Errorf("a SYN from %v to %v arrives: %t, want %t", flow.From, flow.To, got, c.want)
		} else {
			t.Logf("web may reach port 80 of idle; a SYN from port %d of %s to port %d of %s arrives: %t", c.sport, c.from.name, c.dport, c.to.name, got)
		}
	}
	allow("revoke", "web", "idle", "80")

	h.docker(t, "restart", "-t", "0", "db")
	only("after the source's restart")
	h.docker(t, "restart", "-t", "0", "web")
	only("after the recipient's restart")
	h.agent.stop(t)
	only("without the ambassador")
	h.startAgent(t)
	h.docker(t, "rm", "-f", "db")
	if s := h.icc(t); len(s.Allowed) != 1 {
		t.Errorf("allowed are %+v", s.Allowed)
	}
	h.docker(t, append([]string{"run", "-d", "--name", "db", "--network", "icc-a"}, serves...)...)
	only("with another source of the same name")

	allow("revoke", "web", "db", "80")
	if got, err := h.ask("web", h.address(t, "db"), 80); err == nil {
		t.Errorf("after it was revoked, got %q", got)
	}
	if out := h.docker(t, "exec", "web", "ip", "neigh", "show", "nud", "permanent"); out != "" {
		t.Errorf("the recipient still has %q", out)
	}
	if out := allow("allow", "web", "elsewhere", "80"); !strings.Contains(out, "the two have no bridge in common") {
		t.Errorf("it says %q", out)
	}
}

// An engine whose rules are legacy ones, on a host whose default is the other
// backend: the rules go where the engine's are, and leave from there.
func TestEngineWithLegacyRules(t *testing.T) {
	enginetest.Require(t, enginetest.Root, enginetest.Dockerd, enginetest.Programs("iptables-legacy", "iptables-nft"))
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"} {
		target := strings.Replace(name, "tables", "tables-legacy", 1)
		if err := os.Symlink("/usr/sbin/"+target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	e := func() *enginetest.Engine {
		path := os.Getenv("PATH")
		defer os.Setenv("PATH", path)
		os.Setenv("PATH", dir+":"+path)
		return enginetest.Start(t, enginetest.Options{ICC: true})
	}()
	t.Parallel() // it has an engine of its own; not before, for the PATH is everybody's
	// The kernel makes a legacy table when somebody first asks for it, and
	// never removes it.
	if out, err := e.Command(t.Context(), "ip6tables-legacy", "-L").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h := newHostToWreck(t, e, "--icc=off")
	peers := h.populate(t)
	found := func() (text string) {
		for _, program := range []string{"iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"} {
			text += stamps.ReplaceAllString(h.inHost(t, program), "")
		}
		return text
	}
	before := found()
	h.agent.stop(t)
	h.serve = []string{"--icc=deny"}
	h.startAgent(t)
	h.enforced(t, "the start")
	if legacy := h.inHost(t, "iptables-legacy-save"); !strings.Contains(legacy, "-A DOCKER-USER -j AMBASSADOR-ICC") {
		t.Errorf("the engine's rules are\n%s", legacy)
	}
	if nft := h.inHost(t, "iptables-nft-save"); strings.Contains(nft, "AMBASSADOR") {
		t.Errorf("the other rules are\n%s", nft)
	}
	passesAmong(t, grace, peers...).nothing(t, "with legacy rules")
	r := h.ambassador(t, "icc", "off")
	if r.code != 0 {
		t.Fatalf("icc off: %s", r.err)
	}
	if after := found(); after != before {
		t.Fatalf("before\n%s\nafter\n%s", before, after)
	}
	t.Logf("the same %d bytes as before; icc off says\n%s", len(before), r.out)

	h.agent.stop(t)
	h.startAgent(t)
	h.enforced(t, "the start")
	h.inHost(t, "iptables-legacy", "-F")
	h.enforced(t, "iptables-legacy -F")
	passesAmong(t, grace, peers...).nothing(t, "after a flush")
}
