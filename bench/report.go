package main

import (
	_ "embed"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// notes is what people have to say of the results.
//
//go:embed notes.md
var notes string

// report is a run in words: Markdown, which is also for the terminal.
type report struct {
	results   *results
	workloads []workload
	peers     []string
	about     map[string]string // how each peer is set up
	missing   map[string]string
	failures  []string
	facts     []fact
	tunnels   string // the tables of tunnels
}

func newReport(b *bench, facts []fact) *report {
	r := &report{results: b.results, workloads: b.workloads, about: make(map[string]string), missing: b.missing, failures: b.failures, facts: facts}
	for _, p := range b.peers {
		r.peers = append(r.peers, b.names[p])
		r.about[b.names[p]] = p.about()
	}
	return r
}

// write writes RESULTS.md and its chart.
func (r *report) write(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "results.svg"), []byte(r.chart()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "RESULTS.md"), []byte(r.page()), 0o644)
}

// page is RESULTS.md.
func (r *report) page() string {
	var b strings.Builder
	b.WriteString("# Results\n\nWritten by `make bench`. What is measured and how is in [the source](main.go), what a link is in [the design](../doc/DESIGN.md).\n\n")
	b.WriteString("![The chart shows the figures of the tables below.](results.svg)\n\n")
	b.WriteString(r.goals())
	b.WriteString("\n## Made with\n\n| | |\n|---|---|\n")
	for _, f := range r.facts {
		fmt.Fprintf(&b, "| %s | %s |\n", f.name, f.value)
	}
	b.WriteString("\n## Peers\n\n| | |\n|---|---|\n")
	for _, p := range r.peers {
		fmt.Fprintf(&b, "| **%s** | %s |\n", p, r.about[p])
	}
	b.WriteString(r.tables())
	fmt.Fprintf(&b, "\n%s", notes)
	return b.String()
}

// goals says what was aimed at, and whether it is reached.
func (r *report) goals() string {
	var b strings.Builder
	b.WriteString("## Goals\n\n| workload | figure | goal | measured | |\n|---|---|---|---|---|\n")
	for _, g := range goals() {
		got, reached := g.result(r.results)
		if got.n == 0 {
			continue
		}
		word := "**missed**"
		if reached {
			word = "reached"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", g.workload, g.metric.label(), g.want(), got, word)
	}
	return b.String()
}

// tables has a table for each group of workloads, and what is missing.
func (r *report) tables() string {
	var b strings.Builder
	b.WriteString("\nMedians of all rounds, in parentheses the least and the most. The last columns are the ambassador's figure divided by that\nof the other, round by round, and of these ratios the median and the spread.\n")
	group := ""
	for _, w := range r.workloads {
		if w.group != group {
			group = w.group
			fmt.Fprintf(&b, "\n## %s\n\n| | |", group)
			for _, p := range r.peers {
				fmt.Fprintf(&b, " %s |", p)
			}
			fmt.Fprintf(&b, " ÷ %s | ÷ %s |\n|---|---|%s---:|---:|\n", haproxyName, directName, strings.Repeat("---:|", len(r.peers)))
		}
		for i, m := range w.metrics {
			b.WriteString(r.row(w, m, i == 0))
		}
	}
	b.WriteString(r.tunnels)
	for _, list := range []struct {
		title string
		lines []string
	}{
		{"Missing", r.missingLines()},
		{"Failed", r.failures},
	} {
		if len(list.lines) > 0 {
			fmt.Fprintf(&b, "\n## %s\n\n- %s\n", list.title, strings.Join(list.lines, "\n- "))
		}
	}
	return b.String()
}

// row is a figure of all peers.
func (r *report) row(w workload, m metric, first bool) string {
	var b strings.Builder
	name := ""
	if first {
		name = w.name
	}
	fmt.Fprintf(&b, "| %s | %s |", name, m.label())
	for _, p := range r.peers {
		fmt.Fprintf(&b, " %s |", r.results.of(w.name, p, m).spread())
	}
	ours := r.results.of(w.name, oursName, m)
	for _, p := range []string{haproxyName, directName} {
		fmt.Fprintf(&b, " %s |", ours.over(r.results.of(w.name, p, m)).spread())
	}
	return b.String() + "\n"
}

func (r *report) missingLines() (lines []string) {
	for _, what := range slices.Sorted(maps.Keys(r.missing)) {
		lines = append(lines, what+": "+r.missing[what])
	}
	return lines
}

// label is a metric's name and unit.
func (m metric) label() string {
	switch {
	case m.unit == "":
		return m.name
	case m.unit[0] == '/':
		return m.name + m.unit
	}
	return m.name + ", " + m.unit
}

// String is a median and its spread, or a dash.
func (s spread) String() string {
	switch {
	case s.n == 0:
		return "–"
	case figure(s.min) == figure(s.max):
		return figure(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", figure(s.median), figure(s.min), figure(s.max))
}

// figure has three significant digits, and marks between thousands.
func figure(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	if v < 0.001 {
		digits = 4
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	if scale := math.Pow(10, math.Floor(math.Log10(math.Abs(v)))-2); scale > 1 {
		text = strconv.FormatFloat(math.Round(v/scale)*scale, 'f', 0, 64)
	}
	for i := len(text) - 3; i > 0 && !strings.Contains(text, "."); i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
