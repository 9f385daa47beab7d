package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/enginetest"
)

var everything = regexp.MustCompile("")

// TestEveryMeasurement runs every workload over every peer once, as short as
// can be, so that none of them rots.
func TestEveryMeasurement(t *testing.T) {
	enginetest.Require(t, enginetest.Root, enginetest.Dockerd)
	ctx := t.Context()
	s, err := newStage(ctx, t, "")
	if err != nil {
		t.Fatal(err)
	}
	c := config{rounds: 1, time: 50 * time.Millisecond, brief: true, only: everything, peers: everything}
	b, err := newBench(ctx, c, s)
	if err != nil {
		t.Fatal(err)
	}
	tryAll(t, b)
	parts, err := newTunnels(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		tryAll(t, p.bench)
		table := p.table()
		for _, name := range p.order {
			if !strings.Contains(table, "- **"+name+"**: ") && p.bench.missing[name] == "" {
				t.Errorf("the report does not say what %s is:\n%s", name, table)
			}
		}
		if strings.Count(table, "- goal: ") != len(p.goals) && len(p.bench.missing) == 0 {
			t.Errorf("the report does not have all goals:\n%s", table)
		}
	}
	page := newReport(b, environment(ctx, b, nil, time.Now())).page()
	for _, p := range b.peers {
		if !strings.Contains(page, "**"+b.names[p]+"** | "+p.about()) {
			t.Errorf("the report does not say what %s is", b.names[p])
		}
	}
	for _, w := range b.workloads {
		if !strings.Contains(page, "| "+w.name+" |") {
			t.Errorf("the report does not have %s", w.name)
		}
	}
	if strings.Contains(page, "not installed") && len(b.missing) == 0 {
		t.Errorf("a version is not known:\n%s", page)
	}
}

// tryAll runs every step of a bench.
func tryAll(t *testing.T, b *bench) {
	ctx, s := t.Context(), b.stage
	for what, why := range b.missing {
		t.Run(what, func(t *testing.T) {
			enginetest.Require(t, func() error { return &os.PathError{Op: "finding", Path: why, Err: os.ErrNotExist} })
		})
	}
	for _, st := range b.steps(0) {
		t.Run(b.title(st), func(t *testing.T) {
			var got sample
			eventually(t, func() (err error) { // a server may not be up yet
				if err := s.fallen(); err != nil {
					t.Fatal(err)
				}
				got, err = b.try(ctx, st)
				if first := st.workload.metrics[0]; err == nil && first.high && got[first] <= 0 {
					err = fmt.Errorf("%s is %v", first.label(), got[first]) // a busy machine may stand still for that long
				}
				return err
			})
			for m, v := range got {
				if !slices.Contains(st.workload.metrics, m) {
					t.Errorf("it measures %s, and does not say so", m.label())
				}
				if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
					t.Errorf("%s is %v", m.label(), v)
				}
			}
			b.results.add(st.workload.name, b.names[st.peer], 0, got)
		})
	}
}

// TestPeersTakeTurns: another peer begins in each round, and they follow each
// other with each workload.
func TestPeersTakeTurns(t *testing.T) {
	b := &bench{names: make(map[peer]string), missing: map[string]string{"b, two": "it is broken"}}
	for _, name := range []string{"a", "b", "c"} {
		p := &still{name}
		b.peers = append(b.peers, p)
		b.names[p] = name
	}
	for _, name := range []string{"one", "two"} {
		b.workloads = append(b.workloads, workload{name: name, kernel: true})
	}
	for round, want := range []string{
		"a, one; b, one; c, one; a, two; c, two",
		"b, one; c, one; a, one; c, two; a, two",
		"c, one; a, one; b, one; c, two; a, two",
		"a, one; b, one; c, one; a, two; c, two",
	} {
		var titles []string
		for _, st := range b.steps(round) {
			titles = append(titles, b.title(st))
		}
		if got := strings.Join(titles, "; "); got != want {
			t.Errorf("round %d: %s, want %s", round, got, want)
		}
	}
}

// still is a peer that does nothing.
type still struct{ name string }

func (*still) about() string                       { return "" }
func (*still) needs() []string                     { return nil }
func (*still) start(context.Context, *stage) error { return nil }
func (*still) netns() string                       { return "" }
func (*still) address(service) netip.AddrPort      { return netip.AddrPort{} }
func (*still) carriers() ([]int, error)            { return nil, nil }
func (*still) renew(context.Context) error         { return nil }
func (*still) packets() bool                       { return false }
func (*still) link(context.Context, int) (int, func() error, error) {
	return 0, nil, nil
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		args   string
		rounds int
		out    string
		err    string
	}{
		{"", 7, "bench", ""},
		{"--rounds 3 --duration 2s", 3, "bench", ""},
		{"--only bulk", 7, "", ""},
		{"--peers socat --out /tmp/", 7, "/tmp", ""},
		{"--quick", 1, "", ""},
		{"--only (", 0, "", "parsing --only: error parsing regexp: missing closing ): `(`"},
		{"--rounds 0", 0, "", "--rounds and --duration must be positive"},
		{"bulk", 0, "", `unexpected argument "bulk"`},
	} {
		c, out, err := parseFlags(strings.Fields(tt.args), new(bytes.Buffer))
		if err != nil || tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%q: error %v, want %q", tt.args, err, tt.err)
			}
			continue
		}
		if c.rounds != tt.rounds || out != tt.out {
			t.Errorf("%q: %d rounds into %q, want %d into %q", tt.args, c.rounds, out, tt.rounds, tt.out)
		}
	}
}

func TestProgressWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out}
	p.begin("", 4)
	for round, name := range []string{"round 1 of 2", "round 2 of 2"} {
		p.phase = name
		for range 2 {
			p.step("anything")
			p.done(round)
		}
	}
	if got := regexp.MustCompile(`[\d.]+m?s left`).ReplaceAllString(out.String(), "T left"); got != "round 1 of 2, T left\nround 2 of 2, T left\n" {
		t.Errorf("%q", got)
	}
}
