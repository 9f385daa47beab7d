package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/iptables"
)

// fakeHost is a host's bridges and firewall, and an engine's networks.
type fakeHost struct {
	fakeEngine
	mu       sync.Mutex
	networks []docker.NetworkInfo
	err      error // of whatever is asked next

	closed []string
	policy iptables.Policy
	calls  []string
	tell   func(docker.Event) // the engine's events, once it is watched
}

func (h *fakeHost) lock(call string) (unlock func(), err error) {
	h.mu.Lock()
	h.calls = append(h.calls, call)
	return h.mu.Unlock, h.err
}

func (h *fakeHost) Networks(context.Context) ([]docker.NetworkInfo, error) {
	unlock, err := h.lock("networks")
	defer unlock()
	return h.networks, err
}

func (h *fakeHost) Events(ctx context.Context, ready func(), handle func(docker.Event)) error {
	h.mu.Lock()
	h.tell = handle
	h.mu.Unlock()
	ready()
	<-ctx.Done()
	return ctx.Err()
}

func (h *fakeHost) Read() (s bridge.State, err error) {
	for _, n := range h.networks {
		s.Bridges = append(s.Bridges, bridge.Bridge{Name: n.Device})
		s.Ports = append(s.Ports, bridge.Port{Name: "veth-" + n.Name, Bridge: n.Device, Kind: "veth", Isolated: slices.Contains(h.closed, n.Device)})
	}
	return s, nil
}

func (h *fakeHost) Enforce(names []string) ([]string, error) {
	unlock, err := h.lock(fmt.Sprintf("enforce %v", names))
	defer unlock()
	h.closed = names
	return nil, err
}

func (h *fakeHost) Follow(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (h *fakeHost) Netfilter() bool { return true }
func (h *fakeHost) Forwards() bool  { return true }

// fakeRules is the same host's firewall: both have a Check.
type fakeRules struct{ *fakeHost }

func (h *fakeHost) Check([]string) ([]string, error) { return nil, nil }

func (r fakeRules) Check(context.Context, iptables.Policy) ([]string, error) {
	return []string{"ip: made the jump from FORWARD"}, nil
}

func (r fakeRules) Reconcile(_ context.Context, p iptables.Policy) ([]string, error) {
	unlock, err := r.lock("reconcile")
	defer unlock()
	r.policy = p
	return nil, err
}

func (r fakeRules) Remove(context.Context) ([]string, error) {
	unlock, err := r.lock("remove")
	defer unlock()
	return []string{"ip: removed chain AMBASSADOR-ICC: 3 rules"}, err
}

func newFakeICC(t *testing.T, h *fakeHost) (*ICC, *logbook.Log) {
	var log logbook.Log
	return &ICC{Engine: h, Rules: fakeRules{h}, Ports: h, Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil))}, &log
}

var someNetworks = []docker.NetworkInfo{
	{ID: "1", Name: "bridge", Device: "docker0", Driver: "bridge", Default: true, ICC: true},
	{ID: "2", Name: "closed", Device: "br-2", Driver: "bridge"},
	{ID: "3", Name: "host", Driver: "host"},
	{ID: "4", Name: "open", Device: "br-4", Driver: "bridge", ICC: true, Labels: map[string]string{"ambassador.icc": "allow"}},
	{ID: "5", Name: "both", Device: "br-5", Driver: "bridge", Labels: map[string]string{"ambassador.icc": "allow"}},
}

func TestWantedBridges(t *testing.T) {
	for mode, want := range map[Mode]string{
		ICCOff: "docker0 open: nothing is enforced\nbr-2 open: nothing is enforced\nbr-4 open: nothing is enforced\nbr-5 open: nothing is enforced\n",
		ICCEnforce: "docker0 open: the network has ICC enabled\nbr-2 closed: the network has ICC disabled\n" +
			"br-4 open: the network has ICC enabled\nbr-5 closed: the network has ICC disabled\n",
		ICCDeny: "docker0 closed: every bridge is, with --icc=deny\nbr-2 closed: every bridge is, with --icc=deny\n" +
			"br-4 open: the network is labelled ambassador.icc=allow\nbr-5 open: the network is labelled ambassador.icc=allow\n",
	} {
		var got strings.Builder
		for _, b := range WantedBridges(someNetworks, mode) {
			fmt.Fprintf(&got, "%s %s: %s\n", b.Device, map[bool]string{true: "closed", false: "open"}[b.Closed], b.Why)
		}
		if got.String() != want {
			t.Errorf("%s: got\n%s\nwant\n%s", mode, &got, want)
		}
	}
	var m Mode
	if err := m.Set("everything"); err == nil || err.Error() != "the mode has to be off, enforce or deny" {
		t.Errorf("the error is %v", err)
	}
	if err := m.Set("deny"); err != nil || m != ICCDeny || m.String() != "deny" {
		t.Errorf("the mode is %q, %v", m, err)
	}
}

// run runs k until the test ends, and returns when it is ready.
func run(t *testing.T, k *ICC, mode Mode) {
	t.Helper()
	if err := k.Begin(mode); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error)
	go func() { done <- k.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatal("waited in vain for what is wanted to be enforced")
	}
}

func (h *fakeHost) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		ok := cond()
		h.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A new network is closed because the engine tells of it, and what fails is
// tried again, and said once.
func TestICCFollowsTheEngine(t *testing.T) {
	h := &fakeHost{networks: someNetworks[:1]}
	k, log := newFakeICC(t, h)
	run(t, k, ICCDeny)
	h.until(t, "the first bridge", func() bool { return slices.Equal(h.closed, []string{"docker0"}) })
	h.mu.Lock()
	h.networks = someNetworks[:2]
	tell := h.tell
	h.mu.Unlock()
	tell(docker.Event{Type: "network", Action: "create", Network: "2"})
	h.until(t, "the second bridge", func() bool {
		return slices.Equal(h.closed, []string{"docker0", "br-2"}) && len(h.policy.Bridges) == 2
	})

	h.mu.Lock()
	h.err, h.calls = errors.New("out of order"), nil
	h.mu.Unlock()
	h.until(t, "two tries", func() bool { return countOf(h.calls, "reconcile") >= 2 })
	if n := strings.Count(log.String(), "trying again"); n != 1 {
		t.Errorf("the failure was said %d times:\n%s", n, log)
	}
	h.mu.Lock()
	h.err = nil
	h.mu.Unlock()
	h.until(t, "the end of the failure", func() bool { return strings.Contains(log.String(), "as closed as it should be again") })
}

func countOf(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// What is enforced stands when the agent ends, and when the engine is away.
func TestICCFailsClosed(t *testing.T) {
	h := &fakeHost{networks: someNetworks[:2]}
	k, _ := newFakeICC(t, h)
	t.Run("", func(t *testing.T) { run(t, k, ICCDeny) })
	if slices.Contains(h.calls, "remove") || len(h.closed) != 2 {
		t.Errorf("after the end %v are closed; it did %q", h.closed, h.calls)
	}
	k.step(t.Context(), reasons{networks: true})
	h.networks, h.err = nil, errors.New("the engine is away")
	k.step(t.Context(), reasons{networks: true})
	if len(h.closed) != 2 || len(h.policy.Bridges) != 2 {
		t.Errorf("without the engine %v are closed, by %+v", h.closed, h.policy)
	}
}

// A program waits until its container's ports are isolated, also on a network
// that the events have not told of yet; and for nothing where nothing is
// enforced.
func TestSettled(t *testing.T) {
	h := &fakeHost{networks: someNetworks[:1]}
	k, _ := newFakeICC(t, h)
	run(t, k, ICCDeny)
	h.mu.Lock()
	h.networks, h.calls = someNetworks[:2], nil
	h.mu.Unlock()
	ctr := docker.Container{Networks: []docker.Network{{Name: "bridge", ID: "1"}, {Name: "closed", ID: "2"}}}
	if err := k.Settled(t.Context(), ctr); err != nil || !slices.Equal(h.closed, []string{"docker0", "br-2"}) {
		t.Errorf("closed are %v, %v", h.closed, err)
	}
	h.mu.Lock()
	h.err = errors.New("no such port")
	h.mu.Unlock()
	if err := k.Settled(t.Context(), ctr); err == nil {
		t.Error("the program runs though its port could not be isolated")
	}
	if _, err := k.ICCOff(t.Context()); err == nil {
		t.Error("the removal failed, and nobody is told")
	}
	h.mu.Lock()
	h.calls = nil
	h.mu.Unlock()
	if err := k.Settled(t.Context(), ctr); err != nil || len(h.calls) != 0 {
		t.Errorf("with nothing enforced: %v, did %q", err, h.calls)
	}
}

// Before the networks were looked at for the first time, nothing that stands is
// opened, and nobody is told that all is well.
func TestFirstMoments(t *testing.T) {
	start := func() (*fakeHost, *ICC) {
		h := &fakeHost{networks: someNetworks[:2], closed: []string{"docker0", "br-2"}} // by an earlier ambassador
		k, _ := newFakeICC(t, h)
		if err := k.Begin(ICCDeny); err != nil {
			t.Fatal(err)
		}
		return h, k
	}
	h, k := start()
	if err := k.Settled(t.Context(), docker.Container{}); err != nil || slices.Contains(h.calls, "enforce []") || len(h.closed) != 2 {
		t.Errorf("closed are %v, %v, after %q", h.closed, err, h.calls)
	}
	h, k = start()
	h.err = errors.New("no answer")
	if err := k.Settled(t.Context(), docker.Container{}); err == nil || len(h.closed) != 2 {
		t.Errorf("without an engine closed are %v, %v", h.closed, err)
	}
	if s, err := k.ICC(t.Context()); err == nil {
		t.Errorf("without an engine the report is %+v", s)
	}
	_, k = start()
	if s, err := k.ICC(t.Context()); err != nil || len(s.Bridges) != 2 || len(s.Missing) == 0 {
		t.Errorf("the report is %+v, %v", s, err)
	}
}

// While a container is not kept apart, its links are not announced to its
// program.
func TestNoWordBeforeItIsKeptApart(t *testing.T) {
	r := new(recipient)
	r.view.Store(&docker.Container{Name: "web"})
	a := &Agent{Settled: func(_ context.Context, ctr docker.Container) error {
		if ctr.Name != "web" {
			t.Errorf("asked about %q", ctr.Name)
		}
		return errors.New("its port is open")
	}}
	if err := a.letIn(t.Context(), r); err == nil || r.gate != nil || err.Error() != `keeping "web" apart: its port is open` {
		t.Errorf("the gate is %v, %v", r.gate, err)
	}
}

// With --icc=off nothing is touched, and what stands can be removed.
func TestICCOff(t *testing.T) {
	h := &fakeHost{networks: someNetworks}
	k, _ := newFakeICC(t, h)
	run(t, k, ICCOff)
	if h.calls != nil {
		t.Errorf("did %q", h.calls)
	}
	removed, err := k.ICCOff(t.Context())
	if err != nil || !slices.Equal(removed, []string{"ip: removed chain AMBASSADOR-ICC: 3 rules"}) {
		t.Errorf("removed %q, %v", removed, err)
	}
	var refused *control.RefusedError
	err = k.ICCAllow(t.Context(), control.ICCPermission{Recipient: "web", Source: "db", Port: "1"})
	if !errors.As(err, &refused) || refused.Status != 409 || refused.Hint == "" {
		t.Errorf("allowing where nothing is enforced: %v", err)
	}
}

func TestPermissions(t *testing.T) {
	h := &fakeHost{networks: someNetworks}
	k, _ := newFakeICC(t, h)
	run(t, k, ICCDeny)
	ctx := t.Context()
	ask := func(recipient, source, port string) control.ICCPermission {
		return control.ICCPermission{Recipient: recipient, Source: source, Port: port}
	}
	for _, c := range []struct {
		p    control.ICCPermission
		text string
	}{
		{ask("web", "db", "0"), `parsing port "0": the number has to be 1 to 65535`},
		{ask("web", "db", "1/sctp"), "port 1/sctp is neither tcp nor udp"},
		{ask("", "db", "1"), "it takes a recipient and a source"},
		{ask("db", "db", "1"), `"db" is both the recipient and the source`},
	} {
		var refused *control.RefusedError
		if err := k.ICCAllow(ctx, c.p); !errors.As(err, &refused) || refused.Status != 400 || err.Error() != c.text {
			t.Errorf("%+v: the error is %v, want %s", c.p, err, c.text)
		}
	}
	for range 2 { // twice is as good as once
		for _, p := range []control.ICCPermission{ask("web", "db", "5432"), ask("web", "db", "53/UDP"), ask("app", "db", "5432/tcp")} {
			if err := k.ICCAllow(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	const down = `there is no container "app"`
	s, err := k.ICC(ctx)
	if err != nil || len(s.Allowed) != 3 || s.Allowed[0] != (control.ICCPermission{Recipient: "app", Source: "db", Port: "5432/tcp", State: "down", Reason: down}) {
		t.Errorf("allowed are %+v, %v", s.Allowed, err)
	}
	if err := k.ICCRevoke(ctx, ask("web", "db", "53/udp")); err != nil {
		t.Error(err)
	}
	var refused *control.RefusedError
	if err := k.ICCRevoke(ctx, ask("web", "db", "53/udp")); !errors.As(err, &refused) || refused.Status != 404 ||
		err.Error() != "there is no permission of web to reach 53/udp of db" {
		t.Errorf("revoking twice: %v", err)
	}

	// They are kept for the next agent.
	next := &ICC{Dir: k.Dir}
	if err := next.Begin(ICCDeny); err != nil || len(next.allowed.list) != 2 {
		t.Errorf("kept are %v, %v", next.allowed.list, err)
	}
	var kept []control.ICCPermission
	text, err := os.ReadFile(filepath.Join(k.Dir, "icc.json"))
	if err != nil || json.Unmarshal(text, &kept) != nil || len(kept) != 2 || kept[0] != ask("app", "db", "5432/tcp") {
		t.Errorf("the file is %s, %v", text, err)
	}
	if _, err := k.ICCOff(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(k.Dir, "icc.json")); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}

	// One that cannot be read is not taken for an empty one.
	if err := os.WriteFile(filepath.Join(k.Dir, "icc.json"), []byte(`[{"port": "x"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := next.Begin(ICCDeny); err == nil || !strings.HasPrefix(err.Error(), `reading the permissions in "`) {
		t.Errorf("the error is %v", err)
	}
}

func TestWaysOfAPermission(t *testing.T) {
	addr := netip.MustParseAddr
	on := func(network, ip4, ip6 string) docker.Network {
		n := docker.Network{ID: network, IPv4: addr(ip4)}
		if ip6 != "" {
			n.IPv6 = addr(ip6)
		}
		return n
	}
	running := func(name string, networks ...docker.Network) docker.Container {
		return docker.Container{ID: name, Name: name, Running: true, NetworkMode: "bridge", Networks: networks}
	}
	h := &fakeHost{networks: someNetworks}
	h.containers = []docker.Container{
		running("web", on("1", "10.0.0.2", "fd00::2"), on("4", "10.4.0.2", "")),
		running("db", on("1", "10.0.0.3", "fd00::3")),
		running("far", on("2", "10.2.0.2", "")),
		running("near", on("4", "10.4.0.3", "")),
	}
	k, _ := newFakeICC(t, h)
	for _, c := range []struct{ source, ways, down string }{
		{"db", "docker0 10.0.0.2 10.0.0.3; docker0 fd00::2 fd00::3", "the two have no bridge in common"},
		{"far", "", "the two have no bridge in common"},
		{"near", "", ""}, // on a bridge that is open
		{"gone", "", `there is no container "gone"`},
	} {
		ways, down, err := k.ways(t.Context(), newLookup(h), permission{Recipient: "web", Source: c.source}, WantedBridges(someNetworks, ICCDeny))
		var got []string
		for _, w := range ways {
			got = append(got, fmt.Sprintf("%s %v %v", w.bridge.Device, w.addrs[0], w.addrs[1]))
		}
		if err != nil || strings.Join(got, "; ") != c.ways || down != c.down {
			t.Errorf("%s: %q, %q, %v", c.source, got, down, err)
		}
	}
	k.Who.Firewall = "nftables"
	closed := someNetworks[1:2]
	closed[0].ID = "2"
	h.containers = []docker.Container{running("web", on("2", "10.2.0.2", "")), running("db", on("2", "10.2.0.3", ""))}
	_, down, _ := k.ways(t.Context(), newLookup(h), permission{Recipient: "web", Source: "db"}, WantedBridges(closed, ICCEnforce))
	if down != "the engine's nftables rules refuse it, and nothing can overrule them; use a link" {
		t.Errorf("with the engine's nftables: %q", down)
	}
}

func TestICCReport(t *testing.T) {
	h := &fakeHost{networks: someNetworks}
	k, _ := newFakeICC(t, h)
	run(t, k, ICCDeny)
	s, err := k.ICC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != "deny" || len(s.Bridges) != 4 || !slices.Equal(s.Missing, []string{"ip: made the jump from FORWARD"}) {
		t.Errorf("the report is %+v", s)
	}
	if b := s.Bridges[0]; b != (control.ICCBridge{Network: "bridge", Bridge: "docker0", Wanted: "closed", Found: "rules missing",
		Why: "every bridge is, with --icc=deny", Ports: 1, Isolated: 1}) {
		t.Errorf("the bridge is %+v", b)
	}
}
