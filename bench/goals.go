package main

import (
	"fmt"

	"github.com/linkrun/linkrun/bench/traffic"
)

// goal is what the ambassador is meant to reach: a figure of its own or, with
// a peer to compare to, a ratio.
type goal struct {
	workload string
	metric   metric
	against  string // "": bound is the figure itself
	bound    float64
}

func goals() []goal {
	send, receive := bulkName(traffic.Send, 1), bulkName(traffic.Receive, 1)
	one, many := exchange(1).name, exchange(64).name
	return []goal{
		{send, throughput, directName, 1.0},
		{send, throughput, haproxyName, 1.15},
		{receive, throughput, directName, 1.0},
		{receive, throughput, haproxyName, 1.15},
		{send, costPerGB, haproxyName, 0.8},
		{receive, costPerGB, haproxyName, 0.8},
		{many, requestRate, haproxyName, 1.1},
		{many, costPer100k, haproxyName, 0.8},
		{one, latency50, haproxyName, 0.9},
		{connect(32).name, connectRate, haproxyName, 1.1},
		{connect(32).name, connectRate, proxyName, 2},
		{idle().name, memoryPer, "", 1000},
		{idle().name, pipes, "", 0},
		{flood().name, packetRate, socatName, 2},
		{flood().name, packetRate, proxyName, 2},
		{flood().name, lossAtHalf, "", 0},
	}
}

// result is the figure of a goal, and whether it is reached.
func (g goal) result(r *results) (spread, bool) {
	s := r.of(g.workload, oursName, g.metric)
	if g.against != "" {
		s = s.over(r.of(g.workload, g.against, g.metric))
	}
	got := s.spread()
	if g.metric.high {
		return got, got.median >= g.bound
	}
	return got, got.median <= g.bound
}

// want says what the goal is.
func (g goal) want() string {
	most := "at most"
	if g.metric.high {
		most = "at least"
	}
	if g.against == "" {
		return fmt.Sprintf("%s %s", most, figure(g.bound))
	}
	return fmt.Sprintf("%s %.2f × %s", most, g.bound, g.against)
}
