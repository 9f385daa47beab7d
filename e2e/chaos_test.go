package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/internal/exchange"
)

// chaos is a source and a recipient on two hosts, between which connections
// are made all the time that know their every byte.
type chaos struct {
	a, b *host
}

// gap is a time during which no connection was answered.
type gap struct{ From, To time.Time }

// TestChaosBetweenHosts has everything befall two hosts that may, in random
// order, while a container of one works with a container of the other. No byte
// is wrong, every connection ends, and the link is back.
func TestChaosBetweenHosts(t *testing.T) {
	seed := rand.Uint64() >> 32
	if s := os.Getenv("LINKRUN_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LINKRUN_TEST_SEED=%d", seed)
	program := filepath.Join(t.TempDir(), "exchanger")
	build := exec.Command("go", "build", "-o", program, "../internal/exchange/exchanger")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the exchanger: %v\n%s", err, out)
	}
	a, b := twoHosts(t)
	c := &chaos{a, b}
	b.source(t, "db", "--expose=7000", "--label", allowed, "-v", program+":/exchanger:ro", b.busybox, "/exchanger", "serve", ":7000")
	a.start(t, "web", "--link", "db@hostb:webdb", "-v", program+":/exchanger:ro", a.busybox,
		"/exchanger", "load", "webdb:7000", "16", fmt.Sprint(seed))
	enginetest.Poll(t, 2*soon, func() error {
		links := a.links(t)
		if len(links) != 1 || links[0].ToSource < 1_000_000 {
			return fmt.Errorf("%+v", links)
		}
		return nil
	})

	faults := []struct {
		name string
		do   func(t *testing.T) time.Time // returns when the network, or the ambassador, was back
	}{
		{"loss of 3 %", func(t *testing.T) time.Time {
			return c.filter(t, time.Second, "-m", "statistic", "--mode", "random", "--probability", "0.03", "-j", "DROP")
		}},
		{"session reset", func(t *testing.T) time.Time {
			return c.filter(t, 300*time.Millisecond, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
		}},
		{"partition of 5 s", func(t *testing.T) time.Time { return c.partition(t, a, 5*time.Second) }},
		{"partition of 5 s, at the other end", func(t *testing.T) time.Time { return c.partition(t, b, 5*time.Second) }},
		{"silence", func(t *testing.T) time.Time {
			return c.filtered(t, func() { c.noticed(t, time.Now()) }, "-j", "DROP")
		}},
		{"recipient's ambassador killed", func(t *testing.T) time.Time { return c.kill(t, a) }},
		{"source's ambassador killed", func(t *testing.T) time.Time { return c.kill(t, b) }},
		{"both ambassadors killed", func(t *testing.T) time.Time { return c.kill(t, a, b) }},
	}
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for _, f := range faults {
		before := c.logged()
		back := f.do(t)
		c.back(t, f.name, back)
		if n := c.logged() - before; n > 40 {
			t.Errorf("%s: the ambassadors have logged %d lines more", f.name, n)
		} else {
			t.Logf("%s: %d lines logged", f.name, max(n, 0))
		}
	}
	c.count(t)
	for name, h := range map[string]*host{"hosta": a, "hostb": b} {
		for line := range strings.Lines(h.agent.log.String()) {
			if strings.Contains(line, "peer") && !strings.Contains(line, "level=DEBUG") {
				t.Logf("%s: %s", name, strings.TrimSpace(line))
			}
		}
	}
}

// partition takes one end of the cable down for a while.
func (c *chaos) partition(t *testing.T, h *host, d time.Duration) time.Time {
	t.Helper()
	cable := func(state string) {
		t.Helper()
		if out, err := h.Command(t.Context(), "ip", "link", "set", wire, state).CombinedOutput(); err != nil {
			t.Fatalf("ip link set: %v\n%s", err, out)
		}
	}
	cable("down")
	time.Sleep(d) // the length of a partition is what it is about
	cable("up")
	return time.Now()
}

// filter has hostb's firewall treat what comes over the cable as a rule says,
// for a while.
func (c *chaos) filter(t *testing.T, d time.Duration, rule ...string) time.Time {
	t.Helper()
	return c.filtered(t, func() { time.Sleep(d) }, rule...)
}

func (c *chaos) filtered(t *testing.T, meanwhile func(), rule ...string) time.Time {
	t.Helper()
	iptables := func(do string) {
		t.Helper()
		args := append([]string{"-w", do, "INPUT", "-i", wire}, rule...)
		if out, err := c.b.Command(t.Context(), "iptables", args...).CombinedOutput(); err != nil {
			t.Fatalf("iptables %q: %v\n%s", args, err, out)
		}
	}
	iptables("-I")
	meanwhile()
	iptables("-D")
	return time.Now()
}

// kill kills ambassadors, and starts them again.
func (c *chaos) kill(t *testing.T, victims ...*host) time.Time {
	t.Helper()
	for _, h := range victims {
		h.agent.kill()
	}
	if len(victims) == 1 && victims[0] == c.b {
		c.noticed(t, time.Now())
	}
	var logs []string
	for _, h := range victims {
		logs = append(logs, h.agent.log.String())
		h.startAgent(t)
	}
	for i, h := range victims {
		h.agent.log.Write([]byte(logs[i])) // what it said before counts, too
	}
	return time.Now()
}

// noticed waits until the link is down, and logs what `links` says about it.
func (c *chaos) noticed(t *testing.T, since time.Time) {
	t.Helper()
	enginetest.Poll(t, 2*soon, func() error {
		links := c.a.links(t)
		if len(links) != 1 || links[0].State != control.StateDown {
			return fmt.Errorf("%+v", links)
		}
		l := links[0]
		t.Logf("noticed after %v, at %v; links says: %s", time.Since(since).Round(10*time.Millisecond), time.Now().UTC().Format("15:04:05.000"), l.Reason)
		if !strings.HasPrefix(l.Reason, `host "hostb" `) {
			t.Errorf("links does not say why: %s", l.Reason)
		}
		return nil
	})
}

// gaps is when connections were not answered, as the recipient says.
func (c *chaos) gaps(t *testing.T) (gaps []gap) {
	t.Helper()
	for line := range strings.Lines(c.a.logs(t, "web")) {
		var g gap
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			t.Errorf("the recipient says %s", line)
		} else if !g.To.IsZero() {
			gaps = append(gaps, g)
		}
	}
	return gaps
}

// back waits until connections are answered again, and logs how long after the
// network that is.
func (c *chaos) back(t *testing.T, what string, network time.Time) {
	t.Helper()
	out, err := c.a.Docker("exec", "web", "/exchanger", "probe", "webdb:7000")
	if err != nil {
		t.Fatalf("%s: the link is not back: %v", what, err)
	}
	answered, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	// The recipient's own connections tell it better, and how long it was.
	for _, g := range c.gaps(t) {
		if g.From.Before(network) && g.To.After(network) {
			t.Logf("%s: no answer for %v", what, g.To.Sub(g.From).Round(time.Millisecond))
			answered = g.To
		}
	}
	t.Logf("%s: the link is back after %v", what, answered.Sub(network).Round(time.Millisecond))
}

// logged is how many lines the ambassadors have for an operator, without those
// about every single connection.
func (c *chaos) logged() int {
	n := 0
	for _, h := range []*host{c.a, c.b} {
		for line := range strings.Lines(h.agent.log.String()) {
			if !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, `msg="audit: `) {
				n++
			}
		}
	}
	return n
}

// count ends both programs, and looks at what became of their connections.
func (c *chaos) count(t *testing.T) {
	t.Helper()
	for _, end := range []struct {
		h    *host
		name string
	}{{c.a, "web"}, {c.b, "db"}} {
		end.h.docker(t, "stop", "-t", "60", end.name)
		var counts *exchange.Counts
		for line := range strings.Lines(end.h.logs(t, end.name)) {
			var said struct{ Counts *exchange.Counts }
			if err := json.Unmarshal([]byte(line), &said); err == nil && said.Counts != nil {
				counts = said.Counts
			}
		}
		if counts == nil {
			t.Errorf("%s does not say what became of its connections:\n%s", end.name, end.h.logs(t, end.name))
			continue
		}
		t.Logf("%s: %v %v", end.name, *counts, counts.Errors)
		for _, wrong := range counts.Wrong {
			t.Errorf("%s: %s", end.name, wrong)
		}
		if counts.Whole < 100 {
			t.Errorf("%s: only %d connections came to their end", end.name, counts.Whole)
		}
	}
}
