package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestPeers: three commands from nothing to a session between two hosts, while
// their ambassadors serve. Only the tunnel's port listens.
func TestPeers(t *testing.T) {
	a, b := unjoinedHosts(t)
	if r := b.ambassador(t, "peers"); r.out != "this host has no identity: make an authority with `ambassador ca init`, or join one with `ambassador join`\n" {
		t.Errorf("before it joins, hostb says\n%s%s", r.out, r.err)
	}
	token := a.identityCommand(t, "", "token", "hostb").mustPrint(t)
	if out, want := b.identityCommand(t, token, "join", addrA, "-").mustPrint(t),
		"this host is spiffe://ambassador/host/hostb; hosta has the authority\n"; out != want {
		t.Errorf("joining prints %q, want %q", out, want)
	}
	up := b.eventuallySession(t, "hosta", isUp)
	if up.Address != addrA+":7443" || !up.Dialed || !up.Wanted {
		t.Errorf("hostb's session is %+v", up)
	}
	if up := a.eventuallySession(t, "hostb", isUp); up.Dialed || up.Wanted || !strings.HasPrefix(up.Address, addrB+":") {
		t.Errorf("hosta's session is %+v", up)
	}
	a.eventuallyLogs(t, `msg="a host has joined" host=hostb from=`+addrB)
	for _, h := range []*host{a, b} {
		out, err := h.Command(t.Context(), "ss", "-Htln").CombinedOutput()
		if err != nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), ":7443 ") {
			t.Errorf("these listen on a host (%v), want :7443 alone\n%s", err, out)
		}
	}
}

// TestDeadPeer: a host that cannot be reached any more is noticed within 10 s,
// said to be down with the reason why, and back once it can be.
func TestDeadPeer(t *testing.T) {
	a, b := twoHosts(t)
	b.eventuallySession(t, "hosta", isUp)
	link := func(state string) {
		t.Helper()
		if out, err := b.Command(t.Context(), "ip", "link", "set", wire, state).CombinedOutput(); err != nil {
			t.Fatalf("ip link set: %v\n%s", err, out)
		}
	}
	defer link("up")
	link("down")
	cut := time.Now()
	for name, h := range map[string]*host{"hosta": b, "hostb": a} {
		// hosta has no use of its own for hostb, and forgets it.
		enginetest.Poll(t, 2*soon, func() error {
			p, err := h.session(t, name)
			if err == nil && p.State == control.StateUp {
				return fmt.Errorf("%s is still said to be up %v after the cut", name, time.Since(cut))
			}
			return nil
		})
	}
	t.Logf("both noticed within %v", time.Since(cut))
	down := b.eventuallySession(t, "hosta", func(p control.Peer) bool { return strings.Contains(p.Reason, "network is unreachable") })
	if down.Since.IsZero() {
		t.Errorf("it is not said since when: %+v", down)
	}
	a.eventuallyLogs(t, `msg="peer down" peer=hostb`)
	link("up")
	b.eventuallySession(t, "hosta", isUp)
	a.eventuallySession(t, "hostb", isUp)

	// One that is killed, or stopped and started, likewise.
	a.agent.kill()
	b.eventuallySession(t, "hosta", func(p control.Peer) bool { return strings.HasSuffix(p.Reason, "connect: connection refused") })
	a.startAgent(t)
	b.eventuallySession(t, "hosta", isUp)
	b.agent.stop(t)
	b.startAgent(t)
	b.eventuallySession(t, "hosta", isUp)
}

// TestServeRefuses: what is wrong about other hosts is said before anything is
// done, with what to do about it.
func TestServeRefuses(t *testing.T) {
	h := newHostToWreck(t, suite.Engine(t), "--listen", "127.0.0.1:7443")
	h.identity = t.TempDir()
	for _, c := range []struct{ flag, value, err, hint string }{
		{"--listen", "127.0.0.1:7443", "address already in use", "choose another port with --listen"},
		{"--listen", "203.0.113.9", "cannot assign requested address", "name an address of this host with --listen"},
		{"--listen", "no-such-host.invalid", "no-such-host.invalid", ""},
	} {
		r := h.ambassador(t, "serve", "--dir", t.TempDir(), "--identity", h.identity, c.flag, c.value)
		if r.code != 1 || !strings.Contains(r.err, c.err) || !strings.Contains(r.err, "ambassador: hint: "+c.hint) && c.hint != "" {
			t.Errorf("serve %s %s: exit status %d\n%s", c.flag, c.value, r.code, r.err)
		}
	}
	r := h.ambassador(t, "serve", "--dir", t.TempDir(), "--cert", "none.pem", "--key", "none.pem", "--roots", "none.pem")
	if want := "ambassador: error: loading an identity: open none.pem: no such file or directory\n"; r.code != 1 || r.err != want {
		t.Errorf("serve with files that are not there: exit status %d, %q, want %q", r.code, r.err, want)
	}
}
