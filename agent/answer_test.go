package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/policy"
	"github.com/linkrun/linkrun/tunnel"
)

func TestAnswerTCP(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.tcp = echoes(t)
	h.engine.set(db())
	h.run()
	st, err := h.ask(tunnel.Request{Kind: tunnel.TCP, Source: "db", Recipient: "web", Port: 5432, From: netip.MustParseAddrPort("172.17.0.9:4000")})
	if err != nil {
		t.Fatal(err)
	}
	st.Write([]byte("question"))
	st.CloseWrite()
	if got, err := io.ReadAll(st); string(got) != "question" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if !h.log.Has("audit: allow", "host=hosta", "recipient=web", "source=db", "port=5432/tcp", "(label)", "from=172.17.0.9:4000") {
		t.Errorf("the log is\n%s", h.log.String())
	}
	until(t, "the source to be let go", func() bool { return len(h.agent.exports.all()) == 0 && h.dialers() == 0 })
	if n := h.agent.guard.Live(); n != 0 {
		t.Errorf("%d admissions are left", n)
	}
}

func TestAnswerTellsWhoCalls(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.tcp = echoes(t)
	h.engine.set(db(func(c *docker.Container) { c.Labels[LabelProxy] = "v2" }))
	h.run()
	from := netip.MustParseAddrPort("172.17.0.9:4000")
	st, err := h.ask(tunnel.Request{Kind: tunnel.TCP, Source: "db", Recipient: "web", Port: 5432, From: from})
	if err != nil {
		t.Fatal(err)
	}
	st.Write([]byte("question"))
	st.CloseWrite()
	want := string(tunnel.AppendProxyHeader(nil, from, h.dialer.tcp)) + "question"
	if got, err := io.ReadAll(st); string(got) != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestAnswerUDP(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.udp = echoesPackets(t)
	h.engine.set(db())
	h.run()
	st, err := h.ask(tunnel.Request{Kind: tunnel.UDP, Source: "db", Recipient: "web", Port: 53})
	if err != nil {
		t.Fatal(err)
	}
	d := tunnel.NewDatagrams(st)
	buf := make([]byte, 100)
	for _, want := range []string{"a", "", "bcd"} {
		d.Write([]byte(want))
		if n, err := d.Read(buf); string(buf[:n]) != want || err != nil {
			t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
		}
	}
}

func TestAnswerRefuses(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.tcp = echoes(t)
	h.agent.Policy = policyFile(t, "deny hosta/thief db\nallow hosta/by-file *\n")
	h.engine.set(db(labelled(policy.Label, "hosta/web,hosta/thief,hosta/half:53/udp")))
	h.engine.set(docker.Container{ID: id("2"), Name: "stopped", Image: "plain", Ports: db().Ports, Labels: db().Labels})
	h.engine.set(db(func(c *docker.Container) { c.ID, c.Name, c.Image = id("3"), "sly", "sly" }, labelled(policy.Label, "*/*")))
	h.engine.set(db(func(c *docker.Container) { c.ID, c.Name, c.Image = id("4"), "gone", "gone" }))
	h.engine.set(db(func(c *docker.Container) { c.ID, c.Name = id("5"), "wrong" }, labelled(policy.Label, "hosta/web", LabelProxy, "v1")))
	h.engine.set(db(func(c *docker.Container) { c.ID, c.Name, c.NetworkMode = id("6"), "joined", "container:"+id("1") }, labelled(policy.Label, "hosta/*")))
	h.run()
	nothing := func(source, recipient string) string {
		return fmt.Sprintf("no such source: there is no source %q that %q may be linked to", source, recipient)
	}
	for _, c := range []struct {
		name, source, recipient string
		port                    uint16
		want                    string
	}{
		{"no source", "none", "web", 5432, nothing("none", "web")},
		{"no permission", "db", "other", 5432, nothing("db", "other")},
		{"denied by the file", "db", "thief", 5432, nothing("db", "thief")},
		{"denied by another name", "joined", "thief", 5432, nothing("joined", "thief")},
		{"another port", "db", "half", 5432, nothing("db", "half")},
		{"its image's permission", "sly", "web", 5432, nothing("sly", "web")},
		{"whose image is gone", "gone", "web", 5432, nothing("gone", "web")},
		{"with a mistake in a label", "wrong", "web", 5432, nothing("wrong", "web")},
		{"by its id", id("1"), "web", 5432, nothing(id("1"), "web")},
		{"not exposed", "db", "web", 22, `port not exposed: source "db" does not expose 22/tcp`},
		{"not running", "stopped", "web", 5432, `source down: container "stopped" is not running`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := h.ask(tunnel.Request{Kind: tunnel.TCP, Source: c.source, Recipient: c.recipient, Port: c.port})
			if err == nil || err.Error() != c.want {
				t.Errorf("answer %v, want %q", err, c.want)
			}
		})
	}
	if _, err := h.ask(tunnel.Request{Kind: tunnel.TCP, Source: "db", Recipient: "by-file", Port: 5432}); err != nil {
		t.Error(err)
	}
	if _, err := h.ask(tunnel.Request{Kind: tunnel.Kind(9), Source: "db", Recipient: "web"}); err == nil || err.Error() != `unsupported: this host has nothing of the kind "kind 9"` {
		t.Errorf("answer %v", err)
	}
	if !h.log.Has("audit: deny", "recipient=thief", "deny hosta/thief db (policy:1)") {
		t.Errorf("the log is\n%s", h.log.String())
	}
}

func TestAnswerToWhatRefuses(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.err = fmt.Errorf("connecting to 172.17.0.2:5432/tcp: %w", syscall.ECONNREFUSED)
	h.engine.set(db())
	h.run()
	_, err := h.ask(tunnel.Request{Kind: tunnel.TCP, Source: "db", Recipient: "web", Port: 5432})
	if want := `refused: source "db", port 5432`; err == nil || err.Error() != want || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("answer %v, want %q", err, want)
	}
}

// A source that goes while it is connected to does not keep anybody waiting.
func TestAnswerWhenTheSourceGoes(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.hang = make(chan struct{}, 1)
	h.engine.set(db())
	h.run()
	st, err := h.session().Ask(t.Context(), tunnel.Request{Kind: tunnel.TCP, Source: "db", Recipient: "web", Port: 5432})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Abort()
	<-h.dialer.hang
	h.engine.set(db(func(c *docker.Container) { c.Running = false }))
	if err := st.Answer(patience); err == nil || err.Error() != `source down: source "db", port 5432` {
		t.Errorf("answer %v", err)
	}
}

func policyFile(t *testing.T, text string) *policy.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "policy")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := policy.OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A permission that is taken back, by the file or by the label of another
// container under the name, ends what is open.
func TestWithdrawnPermissionCuts(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.tcp = echoes(t)
	name := filepath.Join(t.TempDir(), "policy")
	os.WriteFile(name, []byte("allow hosta/op db\n"), 0o600)
	h.agent.Policy, _ = policy.OpenFile(name)
	h.engine.set(db())
	h.run()
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() {
		h.agent.Policy.Follow(ctx, time.Millisecond, h.agent.PolicyChanged, slog.New(slog.DiscardHandler))
	})
	defer following.Wait()
	defer cancel()

	open := func(recipient string) *tunnel.Stream {
		st, err := h.ask(tunnel.Request{Kind: tunnel.TCP, Source: "db", Recipient: recipient, Port: 5432})
		if err != nil {
			t.Fatal(err)
		}
		st.Write([]byte("x"))
		if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return st
	}
	byFile, byLabel := open("op"), open("web")
	told := h.watch("db", "op")
	if got := told(); got.Status != tunnel.OK {
		t.Errorf("told %+v", got)
	}
	os.WriteFile(name, []byte("# nobody\n"), 0o600)
	if _, err := byFile.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrReset) {
		t.Errorf("reading gives %v, want a reset", err)
	}
	if got := told(); got.Status != tunnel.NoSource || got.Name != "" {
		t.Errorf("told %+v", got)
	}
	h.engine.set(db(func(c *docker.Container) { c.ID = id("2") }, labelled(policy.Label, "hosta/other")))
	if _, err := byLabel.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrReset) {
		t.Errorf("reading gives %v, want a reset", err)
	}
	for _, who := range []string{"op", "web"} {
		until(t, "the record of "+who, func() bool {
			return h.log.Has("audit: cut", "host=hosta", "recipient="+who, "source=db", "port=5432/tcp", "since=", "no rule allows it")
		})
	}
}

func TestWatchTells(t *testing.T) {
	h := newSourceHost(t)
	h.run()
	told := h.watch("db", "web")
	stranger := h.watch("db", "stranger")
	expect := func(want telling) {
		t.Helper()
		got := told()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("told %+v, want %+v", got, want)
		}
	}
	nobody := telling{Status: tunnel.NoSource, Reason: `there is no source "db" that "web" may be linked to`}
	expect(nobody)
	h.engine.set(db())
	whole := telling{Name: "db", Hostname: "dbhost", Env: db().Env, Ports: []string{"5432/tcp", "53/udp"}}
	expect(whole)

	stopped := whole
	stopped.Status, stopped.Reason = tunnel.Down, `container "db" is not running`
	h.engine.set(db(func(c *docker.Container) { c.Running = false }))
	expect(stopped)

	some := whole
	some.Env, some.Ports = []string{"LEVEL=9"}, []string{"5432/tcp"}
	h.engine.set(db(func(c *docker.Container) { c.ID = id("2") }, labelled(policy.Label, "hosta/web:5432", policy.EnvLabel, "L*")))
	expect(some)

	some.Env, some.Ports = nil, nil
	h.engine.set(db(func(c *docker.Container) { c.ID, c.Ports = id("3"), nil }, labelled(policy.Label, "hosta/web", policy.EnvLabel, "none")))
	expect(some)

	h.engine.set(docker.Container{Name: "db"})
	expect(nobody)

	// Whoever has no permission has heard the same all along, once.
	if got := stranger(); got.Status != tunnel.NoSource || got.Reason != `there is no source "db" that "stranger" may be linked to` || got.Env != nil {
		t.Errorf("a stranger was told %+v", got)
	}
	if !h.log.Has("audit: deny", "recipient=stranger", "source=db") || !h.log.Has("audit: allow", "recipient=web", "source=db") {
		t.Errorf("the log is\n%s", h.log.String())
	}
}

func TestSharesAreBounded(t *testing.T) {
	var x exports
	for i := range maxHostWatches {
		if x.use("hosta", fmt.Sprint("source", i%10), true) == nil {
			t.Fatalf("refused after %d", i)
		}
	}
	if x.use("hosta", "one more", true) != nil {
		t.Error("a host may watch as much as it likes")
	}
	if x.use("hostb", "one", true) == nil {
		t.Error("one host uses up what another may have")
	}
	e := x.use("hosta", "source1", false)
	for i := range maxHostStreams - maxHostWatches - 1 {
		if x.use("hosta", "source1", false) == nil {
			t.Fatalf("refused after %d", i)
		}
	}
	if x.use("hosta", "source1", false) != nil {
		t.Error("a host may open as many streams as it likes")
	}
	if x.leave(e, "hosta", false) {
		t.Error("the export is said to be unused")
	}
	if x.use("hosta", "source1", false) == nil {
		t.Error("what was given back cannot be used again")
	}
	if len(x.all()) != 11 {
		t.Errorf("there are %d exports", len(x.all()))
	}
}

// An engine that does not answer refuses nobody for good.
func TestExportIsTriedAgain(t *testing.T) {
	h := newSourceHost(t)
	h.dialer.tcp = echoes(t)
	h.engine.set(db())
	failures := 1
	h.agent.dialTo = func(docker.Container) (dialer, error) {
		if failures--; failures >= 0 {
			return nil, errOnFire
		}
		h.count(1)
		d := h.dialer
		return &d, nil
	}
	h.run()
	told := h.watch("db", "web")
	if got := told(); got.Status != tunnel.Down || got.Reason != "it is there, and cannot be reached" {
		t.Errorf("told %+v", got)
	}
	if got := told(); got.Status != tunnel.OK {
		t.Errorf("told %+v", got)
	}
	if !h.log.Has("engine on fire") {
		t.Error("nothing is said about why")
	}
}

// A session that is lost leaves nothing open.
func TestSessionLost(t *testing.T) {
	h := newSourceHost(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h.dialer.tcp = ln.Addr().(*net.TCPAddr).AddrPort()
	h.engine.set(db())
	h.run()
	h.watch("db", "web")()
	if _, err := h.ask(tunnel.Request{Kind: tunnel.TCP, Source: "db", Recipient: "web", Port: 5432}); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h.stop()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the source reads %v, want a reset", err)
	}
	until(t, "the source to be let go", func() bool { return len(h.agent.exports.all()) == 0 })
}

func TestExposes(t *testing.T) {
	if exposes(slices.Clone(db().Ports), link.Port{Number: 5432, Proto: link.UDP}) {
		t.Error("a port of another protocol counts")
	}
}
