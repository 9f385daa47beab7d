package main

import (
	"fmt"
	"html"
	"slices"
	"strings"

	"github.com/linkrun/linkrun/bench/traffic"
)

// panel is one part of the chart: a figure of every peer, as bars.
type panel struct {
	title    string
	workload string
	metric   metric
}

func panels() []panel {
	return []panel{
		{"Bulk to the source, Gbit/s", bulkName(traffic.Send, 1), throughput},
		{"Bulk to the recipient, Gbit/s", bulkName(traffic.Receive, 1), throughput},
		{"Proxy CPU for a GB, seconds", bulkName(traffic.Receive, 1), costPerGB},
		{"64 connections, requests/s", exchange(64).name, requestRate},
		{"1 connection, median µs", exchange(1).name, latency50},
		{"Proxy CPU for 100,000 requests, seconds", exchange(64).name, costPer100k},
		{"Connect and request, 32 at a time, /s", connect(32).name, connectRate},
		{"Datagrams of 64 bytes, /s", flood().name, packetRate},
		{"User memory of an idle connection, bytes", idle().name, memoryPer},
	}
}

// The measures of the chart, in pixels.
const (
	chartColumns = 3
	panelWidth   = 320
	panelHead    = 34
	rowHeight    = 20
	barHeight    = 13
	labelWidth   = 86
	valueWidth   = 62
	margin       = 12
	chartFoot    = 20
)

// chart is results.svg. Bars begin at zero.
func (r *report) chart() string {
	height := panelHead + rowHeight*len(r.peers) + margin
	shown := slices.DeleteFunc(panels(), func(p panel) bool { return r.results.most(p, r.peers) == 0 })
	rows := (len(shown) + chartColumns - 1) / chartColumns
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui,sans-serif" font-size="12">
<style>
text{fill:#1f2328} .page{fill:#fff} .other{fill:#9aa7b5} .ours{fill:#0969da} .spread{stroke:#1f2328;stroke-width:1} .title{font-weight:600}
@media (prefers-color-scheme:dark){text{fill:#e6edf3} .page{fill:#0d1117} .other{fill:#57606a} .ours{fill:#4493f8} .spread{stroke:#e6edf3}}
</style>
<rect class="page" width="100%%" height="100%%"/>
`, chartColumns*panelWidth, rows*height+margin+chartFoot)
	for i, p := range shown {
		fmt.Fprintf(&b, "<g transform=\"translate(%d,%d)\">\n%s</g>\n", i%chartColumns*panelWidth+margin, i/chartColumns*height+margin, r.bars(p))
	}
	fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\">↓ less is better. Bars are medians, lines the least and the most of all rounds.</text>\n</svg>\n", margin, rows*height+margin+chartFoot/2)
	return b.String()
}

// most is the longest that a panel has to show; 0 if it has nothing.
func (r *results) most(p panel, peers []string) (most float64) {
	for _, peer := range peers {
		if s := r.of(p.workload, peer, p.metric).spread(); s.n > 0 {
			most = max(most, s.max)
		}
	}
	return most
}

// bars draws a panel.
func (r *report) bars(p panel) string {
	title := p.title
	if !p.metric.high {
		title += " ↓"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<text class=\"title\" y=\"14\">%s</text>\n", html.EscapeString(title))
	scale := float64(panelWidth-2*margin-labelWidth-valueWidth) / r.results.most(p, r.peers)
	for i, peer := range r.peers {
		s, y := r.results.of(p.workload, peer, p.metric).spread(), panelHead-8+i*rowHeight
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", labelWidth-6, y+11, html.EscapeString(peer))
		if s.n == 0 {
			fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\">–</text>\n", labelWidth, y+11)
			continue
		}
		class := "other"
		if peer == oursName {
			class = "ours"
		}
		fmt.Fprintf(&b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", class, labelWidth, y, s.median*scale, barHeight)
		middle := float64(y) + barHeight/2.0
		fmt.Fprintf(&b, "<line class=\"spread\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", labelWidth+s.min*scale, labelWidth+s.max*scale, middle, middle)
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", labelWidth+s.max*scale+5, y+11, figure(s.median))
	}
	return b.String()
}
