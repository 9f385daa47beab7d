package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/linkrun/linkrun/bench/traffic"
)

// part is a table of tunnels: some of them, measured in turn like the other
// peers, and what the first of them is compared to.
type part struct {
	title  string
	bench  *bench
	goals  []tunnelGoal
	order  []string // of the peers; the first is the ambassador's
	others []string // of them, for the ratios
}

// tunnelGoal is what the first peer of a part is meant to reach.
type tunnelGoal struct {
	workload string
	metric   metric
	against  string // "": bound is the figure itself
	bound    float64
}

// newTunnels starts what is to be measured beside what links has started.
func newTunnels(ctx context.Context, links *bench) (parts []*part, err error) {
	c, s := links.config, links.stage
	var inAgent peer
	for p, name := range links.names {
		if name == oursName {
			inAgent = p
		}
	}
	f, err := newField(ctx, s)
	if err != nil {
		return nil, err
	}
	send, receive := bulkName(traffic.Send, 1), bulkName(traffic.Receive, 1)
	limit := 0.9 * lineRate / 1000
	parts = []*part{
		{
			title: "Tunnels over a veth", order: []string{tunnelName, stunnelName, plainName, rawName, wireName}, others: []string{stunnelName, plainName, rawName},
			goals: []tunnelGoal{
				{send, throughput, rawName, 0.85}, {receive, throughput, rawName, 0.85}, {connect(32).name, connectRate, stunnelName, 5},
			},
		},
		{
			title: fmt.Sprintf("Tunnels over a line of %v and %d Gbit/s", 2*lineDelay, lineRate/1000), order: []string{tunnelName, stunnelName, wireName}, others: []string{stunnelName, wireName},
			goals: []tunnelGoal{{send, throughput, "", limit}, {receive, throughput, "", limit}},
		},
		{
			title: "Sidecars on one host", order: []string{sidecarName, oursName}, others: []string{oursName},
			goals: []tunnelGoal{{send, throughput, oursName, 0.95}, {receive, throughput, oursName, 0.95}},
		},
	}
	peers := []map[string]peer{
		{tunnelName: f.ours(false), stunnelName: f.stunnel(false), plainName: f.plain(), rawName: f.raw(), wireName: f.wire(false)},
		{tunnelName: f.ours(true), stunnelName: f.stunnel(true), wireName: f.wire(true)},
		{sidecarName: f.sidecars(), oursName: inAgent},
	}
	workloads := [][]workload{tunnelWorkloads(), farWorkloads(), sidecarWorkloads()}
	for i, p := range parts {
		p.bench = &bench{config: c, stage: s, names: make(map[peer]string), missing: make(map[string]string), results: newResults(c.rounds)}
		for _, w := range workloads[i] {
			if c.only.MatchString(w.name) {
				p.bench.workloads = append(p.bench.workloads, w)
			}
		}
		for _, name := range p.order {
			if err := p.add(ctx, name, peers[i][name]); err != nil {
				return nil, err
			}
		}
	}
	return parts, nil
}

func (p *part) add(ctx context.Context, name string, of peer) error {
	b := p.bench
	t, is := of.(*tunnel)
	switch {
	case of == nil || !b.config.peers.MatchString(name):
		return nil
	case !is: // it has been started already
	default:
		if program := lacks(t.needs()); program != "" {
			b.missing[name] = program + " is not installed"
			return nil
		}
		if err := t.start(ctx, b.stage); err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
	}
	b.peers = append(b.peers, of)
	b.names[of] = name
	return nil
}

// measureTunnels measures all parts, and returns their tables.
func measureTunnels(ctx context.Context, links *bench, progress *progress) (string, error) {
	parts, err := newTunnels(ctx, links)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, p := range parts {
		if err := p.bench.rehearse(ctx, progress); err != nil {
			return "", err
		}
		if err := p.bench.measure(ctx, progress); err != nil {
			return "", err
		}
		text.WriteString(p.table())
	}
	return text.String(), nil
}

func (p *part) table() string {
	var b strings.Builder
	r := p.bench.results
	fmt.Fprintf(&b, "\n## %s\n\n| | |", p.title)
	for _, name := range p.order {
		fmt.Fprintf(&b, " %s |", name)
	}
	for _, name := range p.others {
		fmt.Fprintf(&b, " ÷ %s |", name)
	}
	fmt.Fprintf(&b, "\n|---|---|%s\n", strings.Repeat("---:|", len(p.order)+len(p.others)))
	for _, w := range p.bench.workloads {
		for i, m := range w.metrics {
			title := ""
			if i == 0 {
				title = w.name
			}
			fmt.Fprintf(&b, "| %s | %s |", title, m.label())
			for _, name := range p.order {
				fmt.Fprintf(&b, " %s |", r.of(w.name, name, m).spread())
			}
			for _, name := range p.others {
				fmt.Fprintf(&b, " %s |", r.of(w.name, p.order[0], m).over(r.of(w.name, name, m)).spread())
			}
			b.WriteString("\n")
		}
	}
	b.WriteString("\n")
	for _, g := range p.goals {
		s := r.of(g.workload, p.order[0], g.metric)
		want := figure(g.bound) + " " + g.metric.unit
		if g.against != "" {
			s = s.over(r.of(g.workload, g.against, g.metric))
			want = fmt.Sprintf("%.2f × %s", g.bound, g.against)
		}
		got := s.spread()
		if got.n == 0 {
			continue
		}
		word := "**missed**"
		if got.median >= g.bound {
			word = "reached"
		}
		fmt.Fprintf(&b, "- goal: %s, %s, at least %s: %s, %s\n", g.workload, g.metric.name, want, got, word)
	}
	for _, name := range p.order {
		for of, is := range p.bench.names {
			if is == name {
				fmt.Fprintf(&b, "- **%s**: %s\n", name, of.about())
			}
		}
	}
	for what, why := range p.bench.missing {
		fmt.Fprintf(&b, "- missing: %s: %s\n", what, why)
	}
	for _, f := range p.bench.failures {
		fmt.Fprintf(&b, "- failed: %s\n", f)
	}
	return b.String()
}
