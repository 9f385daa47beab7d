package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/internal/enginetest"
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
	h.inHost(t, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
	arrived := passesAmong(t, peers...)
	for i := 0; i < len(peers); i += 2 {
		a, b := peers[i].name, peers[i+1].name
		if arrived := arrived[[2]string{a, b}]; len(arrived) < 7 {
			t.Fatalf("from %s to %s on an open bridge only %q arrive", a, b, arrived)
		}
	}
	h.agent.stop(t)
	h.startAgent(t)

	h.echo(t, "db", nil, 5432)
	h.start(t, "web", "--network", "icc-a", "--link", "db", h.busybox, "sleep", "1000")
	h.source(t, "published", "-p", "8080:80", h.busybox, "nc", "-ll", "-p", "80", "-e", "echo", "published")
	peers = append(peers, h.peer(t, "db"), h.peer(t, "web"), h.peer(t, "published"))
	for _, netfilter := range []string{"1", "0"} {
		t.Run("bridge-nf-call-iptables="+netfilter, func(t *testing.T) {
			h.inHost(t, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables="+netfilter, "net.bridge.bridge-nf-call-ip6tables="+netfilter)
			h.enforced(t, "nothing")
			for way, arrived := range passesAmong(t, peers...) {
				t.Errorf("from %s to %s: %q", way[0], way[1], arrived)
			}
			// As programs see it, which ask for addresses first.
			for _, c := range [][2]*peer{{peers[0], peers[1]}, {peers[2], peers[3]}, {peers[2], peers[0]}} {
				if got, err := h.ask(c[0].name, c[1].addrs[0].String(), 80); err == nil {
					t.Errorf("%s reached %s and got %q", c[0].name, c[1].name, got)
				}
			}

			h.answers(t, "web", "db", 5432, "db")
			for _, c := range []string{"bridge-0", "icc-a-0", "icc-b-0"} {
				h.answers(t, c, server.Addr().String(), int(server.Port()), "outside")
			}
			for where, address := range map[string]string{"the host": "127.0.0.1:8080", "the host's address": "10.250.0.1:8080"} {
				if got, err := dialFrom(h.namespace(t), 0, address); err != nil || got != "published" {
					t.Errorf("the published port from %s: %q, %v", where, got, err)
				}
			}
			if got, err := dialFrom(outside, 0, "10.250.0.1:8080"); err != nil || got != "published" {
				t.Errorf("the published port from outside: %q, %v", got, err)
			}
			if got, err := dialFrom(h.namespace(t), 0, peers[0].addrs[0].String()+":80"); err != nil || got != "bridge-0" {
				t.Errorf("a container from the host: %q, %v", got, err)
			}
		})
	}
}

// A container that appears cannot reach another one even as the first thing
// it does, while bridge netfilter is off.
func TestNewContainersAreIsolatedAtOnce(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h, peers := newDenyHost(t)
	h.inHost(t, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
	for i := range 5 {
		out, err := h.Docker("run", "--rm", "--network", peers[2].network, h.busybox, "nc", "-w", "1", peers[2].addrs[0].String(), "80")
		if err == nil {
			t.Fatalf("container %d got %q", i, out)
		}
	}
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
// exposed port. The attack succeeds there, and fails on ours.
func TestReverseRule(t *testing.T) {
	t.Parallel() // it has an engine of its own
	e := enginetest.Start(t, enginetest.Options{ICC: false})
	h := newHostOn(t, e)
	h.agent.stop(t)
	if r := h.ambassador(t, "icc", "off"); r.code != 0 {
		t.Fatal(r.err)
	}
	// The sources expose a port, and listen nowhere: it is free to attack from.
	h.source(t, "db", "--expose", "5432", h.busybox, "sleep", "1000")
	h.source(t, "docker-web", "--link", "db:db", h.busybox, "nc", "-ll", "-p", "22", "-e", "echo", "inside")
	db := h.peer(t, "db")
	attack := func(on string) (string, error) {
		return dialFrom(db.Namespace, 5432, h.address(t, on)+":22")
	}
	if got, err := attack("docker-web"); err != nil || got != "inside" {
		t.Errorf("the attack on Docker's link: %q, %v; it should succeed", got, err)
	}
	if got, err := h.ask("db", h.address(t, "docker-web"), 22); err == nil {
		t.Errorf("from any port it reaches %q: this engine refuses nothing, and the attack shows nothing", got)
	}

	h.startAgent(t)
	h.enforced(t, "the start")
	h.start(t, "our-web", "--link", "db:db", h.busybox, "nc", "-ll", "-p", "22", "-e", "echo", "inside")
	for _, on := range []string{"our-web", "docker-web"} {
		if got, err := attack(on); err == nil {
			t.Errorf("the attack on %s with the ambassador: got %q", on, got)
		}
	}
	// Nor does the source get anywhere by way of the host.
	if arrived := passes(t, db, h.peer(t, "our-web")); len(arrived) > 0 {
		t.Errorf("%q arrive", arrived)
	}
}
