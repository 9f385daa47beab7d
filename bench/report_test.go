package main

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// example is a report whose figures are made up: HAProxy has 100 of
// everything in the first round, and others have multiples of that.
func example() *report {
	r := &report{
		results: newResults(3),
		peers:   peerNames,
		about:   make(map[string]string),
		missing: map[string]string{"wrk with nginx, 64 connections": "wrk is not installed"},
		failures: []string{
			"round 2, socat, bulk to the source, 1 connection: no answer",
		},
		facts: []fact{{"date", "2006-01-02"}, {"machine", "2 cores"}},
	}
	for i, name := range peerNames {
		r.about[name] = newPeer(name).about()
		for _, w := range workloads() {
			if name == directName && !w.kernel || name == haproxyName && w.packets || len(w.needs) > 0 {
				continue
			}
			for round := range 3 {
				s := sample{}
				for j, m := range w.metrics {
					if name != directName || m != costPerGB && m != costPer100k {
						s[m] = float64(100+10*round) * float64(1+i*j) / 3
					}
				}
				r.results.add(w.name, name, round, s)
			}
		}
	}
	r.workloads = slices.DeleteFunc(workloads(), func(w workload) bool { return len(w.needs) > 0 })
	return r
}

// TestReport compares a report with one that somebody has looked at.
func TestReport(t *testing.T) {
	for name, got := range map[string]string{
		"report.md": strings.TrimSuffix(example().page(), notes),
		"chart.svg": example().chart(),
	} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs; see what `go test -run TestReport -update` changes\n%s", name, firstDifference(got, string(want)))
		}
	}
}

func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return "got:  " + a[i] + "\nwant: " + b[i]
		}
	}
	return "one is longer"
}

func TestChartIsXML(t *testing.T) {
	for name, r := range map[string]*report{"full": example(), "empty": {results: newResults(1), peers: peerNames}} {
		d := xml.NewDecoder(strings.NewReader(r.chart()))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("the %s chart: %v", name, err)
				break
			}
		}
	}
}

// TestNothingIsAimedAtThatIsNotMeasured holds goals and chart to workloads.
func TestNothingIsAimedAtThatIsNotMeasured(t *testing.T) {
	measured := make(map[string][]metric)
	for _, w := range workloads() {
		if measured[w.name] != nil {
			t.Errorf("two workloads are called %q", w.name)
		}
		measured[w.name] = w.metrics
	}
	for _, g := range goals() {
		if !slices.Contains(measured[g.workload], g.metric) {
			t.Errorf("nothing measures the %s of %q; there are %q", g.metric.label(), g.workload, slices.Sorted(maps.Keys(measured)))
		}
	}
	for _, p := range panels() {
		if !slices.Contains(measured[p.workload], p.metric) {
			t.Errorf("nothing measures the %s of %q", p.metric.label(), p.workload)
		}
	}
}

func TestGoals(t *testing.T) {
	r := newResults(3)
	put := func(peer string, m metric, values ...float64) {
		for round, v := range values {
			r.add("w", peer, round, sample{m: v})
		}
	}
	put(oursName, throughput, 11, 12, 13)
	put(haproxyName, throughput, 10, 10, 10)
	put(oursName, pipes, 0, 0, 0)
	for _, tt := range []struct {
		goal    goal
		want    string
		got     string
		reached bool
	}{
		{goal{"w", throughput, haproxyName, 1.2}, "at least 1.20 × HAProxy", "1.20 (1.10–1.30)", true},
		{goal{"w", throughput, haproxyName, 1.21}, "at least 1.21 × HAProxy", "1.20 (1.10–1.30)", false},
		{goal{"w", throughput, directName, 1}, "at least 1.00 × direct", "–", false},
		{goal{"w", pipes, "", 0}, "at most 0", "0", true},
	} {
		got, reached := tt.goal.result(r)
		if tt.goal.want() != tt.want || got.String() != tt.got || reached != tt.reached {
			t.Errorf("%+v: %q, %q, %t, want %q, %q, %t", tt.goal, tt.goal.want(), got, reached, tt.want, tt.got, tt.reached)
		}
	}
}

// TestNotes: nobody has left a gap in what people have to say.
func TestNotes(t *testing.T) {
	if !strings.Contains(notes, "cannot show") || strings.Contains(notes, "TODO") {
		t.Errorf("the notes are %q", notes)
	}
}
