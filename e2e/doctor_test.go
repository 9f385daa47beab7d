package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/doctor"
	"github.com/linkrun/linkrun/internal/enginetest"
)

// diagnosis is what a doctor said, and its exit status.
type diagnosis struct {
	doctor.Report
	code int
}

func (h *host) doctor(t *testing.T, args ...string) diagnosis {
	t.Helper()
	r := h.ambassador(t, append([]string{"doctor", "--json"}, args...)...)
	d := diagnosis{code: r.code}
	if err := json.Unmarshal([]byte(r.out), &d.Report); err != nil {
		t.Fatalf("the doctor says %q, %q: %v", r.out, r.err, err)
	}
	return d
}

// has says whether there is a finding of a check, with a verdict, about a
// subject that holds the words.
func (d diagnosis) has(verdict doctor.Verdict, check, subject string) bool {
	return slices.ContainsFunc(d.Findings, func(f doctor.Finding) bool {
		return f.Verdict == verdict && f.Check == check && strings.Contains(f.Subject, subject)
	})
}

// names fails the test unless the doctor failed, and named this.
func (d diagnosis) names(t *testing.T, verdict doctor.Verdict, check, subject string) {
	t.Helper()
	if d.code != 1 || !d.has(verdict, check, subject) {
		t.Errorf("it exits with %d, and names no %s of %s at %s:\n%s", d.code, verdict, check, subject, d)
		return
	}
	for _, f := range d.Findings {
		if f.Verdict == verdict && f.Check == check && strings.Contains(f.Subject, subject) {
			t.Logf("%s, %s, CIS %s, %s, %s: %s %q", f.Verdict, f.How, f.CIS, f.Check, f.Subject, f.Detail, f.Frames)
		}
	}
}

func (d diagnosis) String() string {
	var lines []string
	for _, f := range d.Findings {
		if f.Verdict != doctor.OK && f.Verdict != doctor.Note {
			lines = append(lines, fmt.Sprintf("%s %s %s %s %s: %s %q", f.Verdict, f.How, f.CIS, f.Check, f.Subject, f.Detail, f.Frames))
		}
	}
	return strings.Join(lines, "\n")
}

// TestDoctor opens one hole after the other on a live engine, and closes it
// again. With the hole the doctor names it; without, nothing passes.
func TestDoctor(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h := newHostToWreck(t, enginetest.Start(t, enginetest.Options{ICC: true, Args: []string{"--userland-proxy=false"}}), "--icc=deny")
	h.docker(t, "network", "create", "lab")
	// A bridge gets addresses with its first container, whoever that is.
	h.docker(t, "run", "--rm", h.busybox, "true")
	quiet := []string{"--network", "lab", "--cap-drop", "NET_RAW"}
	h.source(t, "db", append(quiet, "--expose", "5432", h.busybox, "nc", "-ll", "-p", "5432", "-e", "echo", "db")...)
	h.start(t, "web", append(quiet, "--link", "db", h.busybox, "sleep", "1000")...)
	h.enforced(t, "the start")
	left := leftOnHost(t, h)

	healthy := h.doctor(t, "--strict")
	if healthy.code != 0 {
		t.Fatalf("with nothing wrong it exits with %d:\n%s", healthy.code, healthy)
	}
	for _, check := range []string{"tcp", "udp", "icmp", "ipv6-tcp", "arp", "raw-frame", "forged-source", "reverse-rule", "routed-tcp", "link-port", "stranger"} {
		if !healthy.has(doctor.OK, check, "") {
			t.Errorf("%s was not tried", check)
		}
	}
	if !healthy.has(doctor.OK, "link-port", "link web to db, port 5432/tcp") {
		t.Errorf("the link was not tried:\n%+v", healthy.Findings)
	}
	if after := leftOnHost(t, h); after != left {
		t.Errorf("before the visit\n%s\nafter\n%s", left, after)
	}

	for _, c := range []struct {
		name, check string
		args        []string
	}{
		{"host network", "host-network", []string{"--network", "host", "--cap-drop", "NET_RAW"}},
		{"engine's socket", "engine-socket", append(quiet, "-v", strings.TrimPrefix(h.Host(), "unix://")+":/s")},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.docker(t, append(append([]string{"run", "-d", "--name", "bad"}, c.args...), h.busybox, "sleep", "1000")...)
			defer h.remove(t, "bad")
			h.doctor(t).names(t, doctor.Hole, c.check, "container bad")
		})
	}
	t.Run("warnings", func(t *testing.T) {
		// By which nothing passes as yet: it fails if it is strict.
		h.inHost(t, "sysctl", "-qw", "net.ipv4.ip_forward=0")
		defer h.inHost(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
		h.source(t, "raw", "--network", "lab", h.busybox, "sleep", "1000")
		h.source(t, "published", append(quiet, "-p", "80", h.busybox, "sleep", "1000")...)
		h.source(t, "default", "--cap-drop", "NET_RAW", h.busybox, "sleep", "1000")
		d := h.doctor(t, "--strict")
		for check, subject := range map[string]string{
			"forwarding": "engine", "net-raw": "container raw", "published-everywhere": "container published", "default-bridge": "bridge docker0 (network bridge)",
		} {
			d.names(t, doctor.Warning, check, subject)
		}
	})

	// What the ambassador would close at once is opened while it is away; what
	// it left is judged by what is asked for.
	port := h.portOf(t, "db")
	db := h.address(t, "db")
	bridge := "br-" + h.docker(t, "network", "inspect", "-f", "{{.Id}}", "lab")[:12]
	h.agent.kill()
	deny := []string{"--icc=deny"}
	for _, c := range []struct {
		name        string
		open, close []string
		check, on   string
	}{
		{"a container's port",
			[]string{"bridge link set dev " + port + " isolated off"},
			[]string{"bridge link set dev " + port + " isolated on"}, "isolation", bridge},
		{"the jump",
			[]string{"iptables -D DOCKER-USER -j AMBASSADOR-ICC"},
			[]string{"iptables -I DOCKER-USER 1 -j AMBASSADOR-ICC"}, "routed-tcp", bridge},
		{"a rule for everybody",
			[]string{"iptables -I FORWARD 1 -p tcp --dport 5432 -j ACCEPT"},
			[]string{"iptables -D FORWARD -p tcp --dport 5432 -j ACCEPT"}, "link-port", "link web to db, port 5432/tcp"},
		{"the reverse rule",
			[]string{"iptables -I FORWARD 1 -s " + db + " -p tcp --sport 5432 -j ACCEPT"},
			[]string{"iptables -D FORWARD -s " + db + " -p tcp --sport 5432 -j ACCEPT"}, "reverse-rule", "link web to db, port 5432/tcp"},
		{"bridge netfilter",
			[]string{"sysctl -qw net.bridge.bridge-nf-call-iptables=0", "ip link set dev " + bridge + " type bridge nf_call_iptables 0"},
			[]string{"ip link set dev " + bridge + " type bridge nf_call_iptables 1"}, "tcp", bridge},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, words := range c.open {
				h.inHost(t, strings.Fields(words)...)
			}
			d := h.doctor(t, deny...)
			for _, words := range c.close {
				h.inHost(t, strings.Fields(words)...)
			}
			d.names(t, doctor.Hole, c.check, c.on)
		})
	}
	t.Run("new containers", func(t *testing.T) {
		// Nobody isolates them: below IP, they reach each other. The holes from
		// before are closed.
		d := h.doctor(t, deny...)
		for _, check := range []string{"new-port", "arp", "raw-frame", "broadcast"} {
			d.names(t, doctor.Hole, check, bridge)
		}
		for _, check := range []string{"tcp", "routed-tcp", "isolation", "link-port", "reverse-rule"} {
			if d.has(doctor.Hole, check, "") {
				t.Errorf("%s is a hole, though what was enforced stands:\n%s", check, d)
			}
		}
	})
	t.Run("an open bridge", func(t *testing.T) {
		d := h.doctor(t)
		d.names(t, doctor.Hole, "icc", "bridge docker0")
		d.names(t, doctor.Warning, "icc", bridge)
	})
	h.startAgent(t)
	h.enforced(t, "the ambassador's return")
	if d := h.doctor(t, "--strict"); d.code != 0 {
		t.Errorf("in the end it exits with %d:\n%s", d.code, d)
	}
}

// TestDoctorOfFlags reads how the engine was started, and finds the holes of
// ICC disabled by the engine alone.
func TestDoctorOfFlags(t *testing.T) {
	t.Parallel() // it has an engine of its own
	h := newHostToWreck(t, enginetest.Start(t, enginetest.Options{ICC: true, Args: []string{"--iptables=false"}}), "--icc=off")
	h.docker(t, "network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "closed")
	d := h.doctor(t)
	for _, c := range []struct {
		verdict        doctor.Verdict
		check, subject string
	}{
		{doctor.Warning, "iptables", "engine"},
		{doctor.Warning, "userland-proxy", "engine"},
		{doctor.Warning, "enforcement", "ambassador"},
		{doctor.Hole, "icc", "bridge docker0 (network bridge)"},
		{doctor.Hole, "tcp", "(network closed)"},
		{doctor.Hole, "raw-frame", "(network closed)"},
		{doctor.Hole, "ipv6-tcp", "(network closed)"},
	} {
		d.names(t, c.verdict, c.check, c.subject)
	}
	// Without the engine's own chains there is a hook of ours.
	h.agent.stop(t)
	h.serve = []string{"--icc=enforce"}
	h.startAgent(t)
	h.enforced(t, "the start")
	if d := h.doctor(t); d.has(doctor.Hole, "tcp", "(network closed)") || d.has(doctor.Hole, "routed-tcp", "(network closed)") {
		t.Errorf("enforced, it says\n%s", d)
	}
}

// A doctor that is killed leaves nothing, either: what it made is gone with it.
func TestKilledDoctor(t *testing.T) {
	h := newHost(t)
	h.docker(t, "run", "--rm", h.busybox, "true") // see TestDoctor
	before := leftOnHost(t, h)
	for _, after := range []time.Duration{50, 300, 900} {
		cmd := h.Command(t.Context(), h.bin.Ambassador, "doctor", "--dir", h.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(after*time.Millisecond, func() { cmd.Process.Kill() })
		cmd.Wait()
	}
	enginetest.Poll(t, soon, func() error {
		if now := leftOnHost(t, h); now != before {
			return fmt.Errorf("before\n%s\nafter\n%s", before, now)
		}
		return nil
	})
}

// portOf is the port of the bridge that a container is behind.
func (h *host) portOf(t *testing.T, container string) string {
	t.Helper()
	index := strings.TrimSpace(h.docker(t, "exec", container, "cat", "/sys/class/net/eth0/iflink"))
	for line := range strings.Lines(h.inHost(t, "ip", "-o", "link")) {
		if rest, found := strings.CutPrefix(line, index+": "); found {
			name, _, _ := strings.Cut(rest, "@")
			return name
		}
	}
	t.Fatalf("no interface %s on the host", index)
	return ""
}

// leftOnHost is everything on the host in which a visit could leave
// something.
func leftOnHost(t *testing.T, h *host) string {
	t.Helper()
	var facts []string
	for _, command := range []string{"ip -o link", "ip -o addr", "iptables-save", "ip6tables-save", "ip route", "ip -6 route"} {
		out := stamps.ReplaceAllString(h.inHost(t, strings.Fields(command)...), "")
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			if strings.HasPrefix(command, "ip -o") {
				words = words[:min(4, len(words))] // states and life times follow
			}
			words = slices.DeleteFunc(words, func(s string) bool { return s == "linkdown" })
			facts = append(facts, command+": "+strings.Join(words, " "))
		}
	}
	namespaces, err := os.ReadDir("/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range namespaces {
		if strings.HasPrefix(n.Name(), "ambdoc") {
			facts = append(facts, "namespace "+n.Name())
		}
	}
	if out, err := exec.Command("pgrep", "-f", "ambassador doctor --dir "+h.dir).Output(); err == nil {
		facts = append(facts, "process "+string(out))
	}
	slices.Sort(facts)
	return strings.Join(facts, "\n")
}
