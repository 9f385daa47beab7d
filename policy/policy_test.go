package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
)

const patience = 20 * time.Second

func request(t testing.TB, s string) Request {
	t.Helper()
	who, what, _ := strings.Cut(s, " ")
	var q Request
	q.Host, q.Recipient, _ = strings.Cut(who, "/")
	source, port, err := cutPort(what)
	if err != nil {
		t.Fatal(err)
	}
	q.Source, q.Port = source, port
	if q.Port.Proto == "" {
		q.Port.Proto = link.TCP
	}
	return q
}

const rules = `
# comment
allow hosta/web   db:5432
allow host?/api-* db       # any port
allow hostb/*     dns:53/udp
deny  hostb/evil  *
allow hostc/*     *:80
`

func TestDecide(t *testing.T) {
	rs, err := Parse("policy", strings.NewReader(rules))
	if err != nil {
		t.Fatal(err)
	}
	for q, want := range map[string]Decision{
		"hosta/web db:5432":     {true, "allow hosta/web db:5432 (policy:3)"},
		"hosta/web db:5432/udp": {true, "allow hosta/web db:5432 (policy:3)"},
		"hosta/web db:5433":     {false, "no rule allows it"},
		"hosta/web2 db:5432":    {false, "no rule allows it"},
		"hostb/web db:5432":     {false, "no rule allows it"},
		"hosta/web db2:5432":    {false, "no rule allows it"},
		"hosta/api-1 db:1":      {true, "allow host?/api-* db (policy:4)"},
		"hostab/api-1 db:1":     {false, "no rule allows it"},
		"hostb/web dns:53/udp":  {true, "allow hostb/* dns:53/udp (policy:5)"},
		"hostb/web dns:53/tcp":  {false, "no rule allows it"},
		"hostb/evil dns:53/udp": {false, "deny hostb/evil * (policy:6)"},
		"hostc/x anything:80":   {true, "allow hostc/* *:80 (policy:7)"},
		"hostc/ anything:80":    {true, "allow hostc/* *:80 (policy:7)"},
		"/web db:5432":          {false, "no rule allows it"},
	} {
		if got := Decide(request(t, q), rs); got != want {
			t.Errorf("%s: %+v, want %+v", q, got, want)
		}
	}
	if d := Decide(request(t, "hosta/web db:5432")); d.Allowed {
		t.Error("without a rule, something is allowed")
	}
}

// A label allows what the file does not, and not what the file denies.
func TestLabelAndFile(t *testing.T) {
	file, _ := Parse("policy", strings.NewReader("deny hosta/evil *"))
	label, err := ParseLabel("db", "hosta/*:5432, hostb/web,,hostc/x:53/udp")
	if err != nil {
		t.Fatal(err)
	}
	for q, want := range map[string]Decision{
		"hosta/web db:5432":    {true, "allow hosta/* db:5432 (label)"},
		"hosta/evil db:5432":   {false, "deny hosta/evil * (policy:1)"},
		"hostb/web db:1":       {true, "allow hostb/web db (label)"},
		"hostc/x db:53/udp":    {true, "allow hostc/x db:53/udp (label)"},
		"hostc/x db:53/tcp":    {false, "no rule allows it"},
		"hosta/web other:5432": {false, "no rule allows it"},
	} {
		if got := Decide(request(t, q), file, label); got != want {
			t.Errorf("%s: %+v, want %+v", q, got, want)
		}
		if got := Decide(request(t, q), label, file); got != want {
			t.Errorf("%s, the other way round: %+v, want %+v", q, got, want)
		}
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"allow":               `parsing policy "p", line 1: a rule is: allow|deny HOST/RECIPIENT SOURCE[:PORT[/PROTO]]`,
		"# x\n\npermit a/b c": `parsing policy "p", line 3: a rule is: allow|deny HOST/RECIPIENT SOURCE[:PORT[/PROTO]]`,
		"allow a/b c d":       `parsing policy "p", line 1: a rule is: allow|deny HOST/RECIPIENT SOURCE[:PORT[/PROTO]]`,
		"allow a b":           `parsing policy "p", line 1: "a" is not HOST/RECIPIENT`,
		"allow a/b/c d":       `parsing policy "p", line 1: "b/c" is not a name`,
		"allow /b c":          `parsing policy "p", line 1: "" is not a name`,
		"allow a/[ c":         `parsing policy "p", line 1: "[": syntax error in pattern`,
		"allow a/b c:0":       `parsing policy "p", line 1: "c:0": parsing port "0": the number has to be 1 to 65535`,
		"allow a/b c:x/icmp":  `parsing policy "p", line 1: "c:x/icmp": parsing port "x/icmp": the number has to be 1 to 65535`,
		"allow a/b " + strings.Repeat("x", 1<<17): `reading policy "p": bufio.Scanner: token too long`,
	} {
		if rs, err := Parse("p", strings.NewReader(text)); err == nil || err.Error() != want || rs != nil {
			t.Errorf("parsing %.40q gives %v, %v, want %s", text, rs, err, want)
		}
	}
	for value, want := range map[string]string{
		"web":       `parsing label "ambassador.allow" of "db": "web": "web" is not HOST/RECIPIENT`,
		"a/b,a/b:x": `parsing label "ambassador.allow" of "db": "a/b:x": parsing port "x": the number has to be 1 to 65535`,
		"a/b:1/2":   `parsing label "ambassador.allow" of "db": "a/b:1/2": parsing port "1/2": the protocol has to be tcp, udp or sctp`,
	} {
		if rs, err := ParseLabel("db", value); err == nil || err.Error() != want || rs != nil {
			t.Errorf("parsing %q gives %v, %v, want %s", value, rs, err, want)
		}
	}
}

// What a rule is printed as is read as the same rule.
func TestRulesRoundTrip(t *testing.T) {
	name := rapid.StringMatching(`[a-z0-9*?._-]{1,10}`)
	rapid.Check(t, func(t *rapid.T) {
		r := Rule{
			Deny: rapid.Bool().Draw(t, "deny"),
			Host: name.Draw(t, "host"), Recipient: name.Draw(t, "recipient"), Source: name.Draw(t, "source"),
			Port:   rapid.Uint16().Draw(t, "port"),
			Origin: "p:1",
		}
		if r.Port != 0 {
			r.Proto = rapid.SampledFrom([]link.Proto{"", link.TCP, link.UDP}).Draw(t, "proto")
		}
		got, err := Parse("p", strings.NewReader(r.String()))
		if err != nil || len(got) != 1 || got[0] != r {
			t.Fatalf("%q became %+v, %v", r, got, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(rules)
	f.Add("allow a/[b-c]* d:1/udp#x")
	f.Fuzz(func(t *testing.T, text string) {
		rs, err := Parse("p", strings.NewReader(text))
		if err != nil {
			return
		}
		for _, r := range rs {
			again, err := Parse("p", strings.NewReader(r.String()))
			if err != nil || len(again) != 1 || again[0].String() != r.String() {
				t.Fatalf("%q became %v, %v", r, again, err)
			}
		}
		Decide(Request{Host: "a", Recipient: "b", Source: "c"}, rs)
	})
}

func TestFileIsFollowed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "policy")
	write := func(text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := OpenFile(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(f, err)
	}
	write(rules)
	f, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	changes := make(chan int, 10)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		f.Follow(ctx, time.Millisecond, func() {
			rs, err := f.Rules()
			if err != nil {
				changes <- -1
				return
			}
			changes <- len(rs)
		}, slog.New(slog.DiscardHandler))
	})
	defer wg.Wait()
	defer cancel()
	for _, step := range []struct {
		what string
		do   func()
		want int
	}{
		{"withdrawn", func() { write("allow hosta/web db:5432\n") }, 1},
		{"broken", func() { write("allow hosta/web\n") }, -1},
		{"mended", func() { write("\n\n") }, 0},
		{"gone", func() { os.Remove(name) }, -1},
		{"too long", func() { write(strings.Repeat("#\n", maxFile)) }, -1},
		{"another in its place", func() { os.WriteFile(name+".new", []byte(rules), 0o600); os.Rename(name+".new", name) }, 5},
	} {
		step.do()
		for got := -2; got != step.want; {
			select {
			case got = <-changes:
			case <-time.After(patience):
				t.Fatalf("%s: not noticed", step.what)
			}
		}
	}
}

func TestGuard(t *testing.T) {
	var rs atomic.Pointer[Rules]
	set := func(text string) {
		parsed, err := Parse("p", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		rs.Store(&parsed)
	}
	var out bytes.Buffer
	g := &Guard{
		Decide: func(q Request) Decision { return Decide(q, *rs.Load()) },
		Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindTime {
				return slog.Attr{}
			}
			return a
		}})),
	}
	set("allow hosta/* *")
	cut := map[string]int{}
	admit := func(q string) *Admission {
		a, d := g.Admit(request(t, q), func() { cut[q]++ }, "from", "10.0.0.1:2")
		if (a != nil) != d.Allowed {
			t.Errorf("%s: %v, %+v", q, a, d)
		}
		return a
	}
	web, api, gone := admit("hosta/web db:1"), admit("hosta/api db:1"), admit("hosta/gone db:1")
	if admit("hostb/web db:1") != nil {
		t.Error("hostb is let in")
	}
	gone.End()
	if n := g.Recheck(); n != 0 || g.Live() != 2 {
		t.Errorf("%d were cut for nothing, %d live", n, g.Live())
	}
	set("allow hosta/api *")
	if n := g.Recheck(); n != 1 || cut["hosta/web db:1"] != 1 || len(cut) != 1 || g.Live() != 1 {
		t.Errorf("%d were cut: %v, %d live", n, cut, g.Live())
	}
	web.End() // it has ended, being cut
	api.End()
	if g.Live() != 0 {
		t.Errorf("%d live", g.Live())
	}
	want := `level=INFO msg="audit: allow" host=hosta recipient=web source=db port=1/tcp rule="allow hosta/* * (p:1)" from=10.0.0.1:2
level=INFO msg="audit: allow" host=hosta recipient=api source=db port=1/tcp rule="allow hosta/* * (p:1)" from=10.0.0.1:2
level=INFO msg="audit: allow" host=hosta recipient=gone source=db port=1/tcp rule="allow hosta/* * (p:1)" from=10.0.0.1:2
level=WARN msg="audit: deny" host=hostb recipient=web source=db port=1/tcp rule="no rule allows it" from=10.0.0.1:2
level=WARN msg="audit: cut" host=hosta recipient=web source=db port=1/tcp rule="no rule allows it" was="allow hosta/* * (p:1)"
`
	if out.String() != want {
		t.Errorf("the record is\n%s\nwant\n%s", out.String(), want)
	}
}

// No connection slips in between a policy and the one after it.
func TestGuardUnderChange(t *testing.T) {
	var allowed atomic.Bool
	g := &Guard{Decide: func(Request) Decision { return Decision{Allowed: allowed.Load()} }}
	var alive atomic.Int64
	var wg sync.WaitGroup
	done := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				ended := make(chan struct{})
				a, _ := g.Admit(Request{Host: fmt.Sprint(i)}, func() { close(ended) })
				if a == nil {
					continue
				}
				alive.Add(1)
				select {
				case <-ended:
				case <-done:
				}
				alive.Add(-1)
				a.End()
			}
		})
	}
	for range 200 {
		allowed.Store(true)
		allowed.Store(false)
		g.Recheck()
		for deadline := time.Now().Add(patience); alive.Load() != 0; {
			if time.Now().After(deadline) {
				t.Fatal("a connection outlives its permission")
			}
		}
		if g.Live() != 0 {
			t.Fatalf("%d live", g.Live())
		}
	}
	close(done)
	wg.Wait()
}
