package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/netns"
)

// The networks of these tests besides the default bridge.
var iccNetworks = [][]string{
	{"icc-a", "--ipv6", "--subnet", "10.91.0.0/24", "--subnet", "fd91::/64"},
	{"icc-b", "--ipv6", "--subnet", "10.92.0.0/24", "--subnet", "fd92::/64"},
}

// newDenyHost is an engine that lets containers talk, with three bridges and
// two containers on each, and an ambassador that denies it.
func newDenyHost(t *testing.T) (*host, []*peer) {
	t.Helper()
	h := newHostOn(t, enginetest.Start(t, enginetest.Options{ICC: true}), "--icc=deny")
	return h, h.populate(t)
}

// populate makes the networks, and two containers on each.
func (h *host) populate(t *testing.T) (peers []*peer) {
	t.Helper()
	h.inHost(t, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	networks := []string{"bridge"}
	for _, n := range iccNetworks {
		h.docker(t, append([]string{"network", "create", n[0]}, n[1:]...)...)
		t.Cleanup(func() { h.docker(t, "network", "rm", n[0]) })
		networks = append(networks, n[0])
	}
	for _, n := range networks {
		for i := range 2 {
			name := fmt.Sprintf("%s-%d", n, i)
			h.source(t, name, "--network", n, h.busybox, "sh", "-c", "nc -ll -p 80 -e echo "+name)
			peers = append(peers, h.peer(t, name))
		}
	}
	return peers
}

// Nothing passes between any two containers but links, whatever bridge
// netfilter is set to on the host; links, the outside and published ports
// work.
func TestDenyPassesNothingButLinks(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h, peers := newDenyHost(t)
	outside, server := h.outside(t)

	// What the test looks for, it can see: without the ambassador it passes.
	if r := h.ambassador(t, "icc", "off"); r.code != 0 {
		t.Fatal(r.err)
	}
	netfilter := func(value string) {
		t.Helper()
		h.inHost(t, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables="+value, "net.bridge.bridge-nf-call-ip6tables="+value)
	}
	netfilter("0")
	open := passesAmong(t, grace, peers...)
	for i := 0; i < len(peers); i += 2 {
		a, b := peers[i], peers[i+1]
		arrived := open.arrived[way{a.name, b.name}]
		for _, s := range shots(a, b) {
			if !strings.HasSuffix(s.name, "by the host") && !slices.Contains(arrived, s.name) {
				t.Fatalf("on the open bridge %s does not arrive from %s at %s, only %q", s.name, a.name, b.name, arrived)
			}
		}
		t.Logf("open, %s to %s: %q arrive", a.name, b.name, arrived)
		if got, err := h.ask(a.name, b.ip4.String(), 80); err != nil || got != b.name {
			t.Fatalf("on the open bridge %s does not reach %s: %q, %v", a.name, b.name, got, err)
		}
	}
	h.agent.stop(t)
	h.startAgent(t)

	h.echo(t, "db", nil, 5432)
	h.start(t, "web", "--network", "icc-a", "--link", "db", h.busybox, "sleep", "1000")
	h.source(t, "published", "-p", "8080:80", h.busybox, "nc", "-ll", "-p", "80", "-e", "echo", "published")
	peers = append(peers, h.peer(t, "db"), h.peer(t, "web"), h.peer(t, "published"))
	for _, value := range []string{"1", "0"} {
		t.Run("bridge-nf-call-iptables="+value, func(t *testing.T) {
			netfilter(value)
			h.enforced(t, "nothing")
			passesAmong(t, grace, peers...).nothing(t, fmt.Sprintf("between any two of %d containers on 3 bridges", len(peers)))
			h.reachNothing(t, [2]*peer{peers[0], peers[1]}, [2]*peer{peers[2], peers[3]}, [2]*peer{peers[2], peers[0]})

			h.answers(t, "web", "db", 5432, "db")
			for _, c := range []string{"bridge-0", "icc-a-0", "icc-b-0"} {
				h.answers(t, c, server.Addr().String(), int(server.Port()), "outside")
			}
			host := h.namespace(t)
			for _, c := range []struct {
				what, address, want string
				from                *netns.Namespace
			}{
				{"a published port from the host", "127.0.0.1:8080", "published", host},
				{"a published port by the host's address", "10.250.0.1:8080", "published", host},
				{"a published port from outside", "10.250.0.1:8080", "published", outside},
				{"a container from the host", peers[0].ip4.String() + ":80", "bridge-0", host},
			} {
				if got, err := dialFrom(c.from, 0, c.address); err != nil || got != c.want {
					t.Errorf("%s, %s: %q, %v", c.what, c.address, got, err)
				} else {
					t.Logf("%s, %s, answers %q", c.what, c.address, got)
				}
			}
		})
	}
}

// reachNothing has programs try inside the containers, which ask for
// addresses first.
func (h *host) reachNothing(t *testing.T, pairs ...[2]*peer) {
	t.Helper()
	var tries sync.WaitGroup
	try := func(from, to *peer, program ...string) {
		tries.Go(func() {
			out, err := h.Docker(append([]string{"exec", from.name}, program...)...)
			if err == nil {
				t.Errorf("in %s, %q reached %s: %q", from.name, program, to.name, out)
			}
		})
	}
	for _, p := range pairs {
		try(p[0], p[1], "nc", "-w", "1", p[1].ip4.String(), "80")
		try(p[0], p[1], "ping", "-c", "1", "-W", "1", p[1].ip4.String())
		if p[0].ip6.IsValid() && p[1].ip6.IsValid() {
			try(p[0], p[1], "ping", "-6", "-c", "1", "-W", "1", p[1].ip6.String())
		}
	}
	tries.Wait()
}

// A container that appears cannot reach another one even as the first thing
// it does, while bridge netfilter is off.
func TestNewContainersAreIsolatedAtOnce(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h, peers := newDenyHost(t)
	h.inHost(t, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
	for i := range 3 {
		out, err := h.Docker("run", "--rm", "--network", peers[2].network, h.busybox, "nc", "-w", "1", peers[2].ip4.String(), "80")
		if err == nil {
			t.Fatalf("container %d got %q", i, out)
		}
	}
	h.source(t, "new", "--network", peers[2].network, h.busybox, "sleep", "1000")
	started := time.Now()
	port := h.portOf(t, "new")
	enginetest.Poll(t, soon, func() error {
		if !strings.Contains(h.inHost(t, "bridge", "-d", "link", "show", "dev", port), "isolated on") {
			return fmt.Errorf("port %s is not isolated", port)
		}
		return nil
	})
	t.Logf("port %s is isolated at most %v after its container's start", port, time.Since(started).Round(time.Millisecond))
	// On a network that the ambassador has not seen yet, either.
	for i := range 2 {
		name := fmt.Sprintf("fresh-%d", i)
		h.docker(t, "network", "create", name)
		h.source(t, "on-"+name, "--network", name, h.busybox, "nc", "-ll", "-p", "80", "-e", "echo", "reached")
		out, err := h.Docker("run", "--rm", "--network", name, h.busybox, "nc", "-w", "1", h.address(t, "on-"+name), "80")
		if err == nil {
			t.Errorf("on network %s a container got %q", name, out)
		}
		h.docker(t, "rm", "-f", "on-"+name)
		h.source(t, "on-"+name, h.busybox, "sleep", "1000") // for the clean-up
		h.docker(t, "network", "rm", name)
	}
}

// What is enforced stands without the ambassador, also for IP between
// containers that start then.
func TestDenyOutlivesTheAmbassador(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h, peers := newDenyHost(t)
	h.agent.kill()
	if arrived := passes(t, peers[0], peers[1]); len(arrived) > 0 {
		t.Errorf("%q arrive", arrived)
	}
	h.source(t, "late", h.busybox, "sleep", "1000")
	late := h.peer(t, "late")
	for _, what := range passes(t, late, peers[0]) {
		if strings.Contains(what, "IPv") {
			t.Errorf("%s arrives from a container that started without the ambassador", what)
		}
	}
	h.startAgent(t)
	h.enforced(t, "the ambassador's return")
	if arrived := passes(t, late, peers[0]); len(arrived) > 0 {
		t.Errorf("with the ambassador back, %q arrive", arrived)
	}
}

// A network that is labelled stays open in a host that denies.
func TestLabelledNetworkStaysOpen(t *testing.T) {
	t.Parallel() // it has an engine of its own
	e := enginetest.Start(t, enginetest.Options{ICC: true})
	h := newHostOn(t, e, "--icc=deny")
	h.docker(t, "network", "create", "--label", "ambassador.icc=allow", "lab")
	t.Cleanup(func() { h.docker(t, "network", "rm", "lab") })
	for _, name := range []string{"lab-0", "lab-1"} {
		h.source(t, name, "--network", "lab", h.busybox, "sleep", "1000")
	}
	h.source(t, "other", h.busybox, "sleep", "1000")
	h.enforced(t, "nothing")
	lab, other := h.peer(t, "lab-0"), h.peer(t, "other")
	if arrived := passes(t, lab, h.peer(t, "lab-1")); len(arrived) < 5 {
		t.Errorf("between containers of the labelled network only %q arrive", arrived)
	}
	if arrived := append(passes(t, lab, other), passes(t, other, lab)...); len(arrived) > 0 {
		t.Errorf("between the labelled network and another, %q arrive", arrived)
	}
}

// Docker's own link lets the source reach any port of the recipient from the
// exposed port. The attack succeeds there, and fails on ours, side by side.
func TestReverseRule(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h := newHostOn(t, enginetest.Start(t, enginetest.Options{ICC: false}), "--icc=off")
	// The source exposes a port, and listens nowhere: it is free to attack from.
	h.source(t, "db", "--expose", "5432", h.busybox, "sleep", "1000")
	recipients := []string{"docker-web", "our-web"}
	serves := []string{"--link", "db:db", h.busybox, "nc", "-ll", "-p", "22", "-e", "echo", "inside"}
	h.source(t, recipients[0], serves...)
	h.start(t, recipients[1], serves...)
	db := h.peer(t, "db")
	attack := func(on string) (string, error) {
		got, err := dialFrom(db.Namespace, 5432, h.address(t, on)+":22")
		t.Logf("from port 5432 of db to port 22 of %s: %q, %v", on, got, err)
		return got, err
	}
	for _, on := range recipients {
		if got, err := h.ask("db", h.address(t, on), 22); err == nil {
			t.Errorf("from any port db reaches %s, %q: this engine refuses nothing, and the attack shows nothing", on, got)
		}
	}
	if got, err := attack("docker-web"); err != nil || got != "inside" {
		t.Errorf("the attack on Docker's link: %q, %v; it should succeed", got, err)
	}
	if got, err := attack("our-web"); err == nil {
		t.Errorf("the attack on our link succeeds: %q", got)
	}

	// With the bridge closed, it fails on either.
	h.agent.stop(t)
	h.serve = []string{"--icc=enforce"}
	h.startAgent(t)
	h.enforced(t, "the start")
	for _, on := range recipients {
		if got, err := attack(on); err == nil {
			t.Errorf("the attack on %s with the bridge closed: %q", on, got)
		}
	}
	// Nor does the source get anywhere by way of the host.
	if arrived := passes(t, db, h.peer(t, "our-web")); len(arrived) > 0 {
		t.Errorf("%q arrive", arrived)
	}
}
