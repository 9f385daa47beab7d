package main

import (
	"context"
	"time"

	"github.com/linkrun/linkrun/bench/traffic"
)

// workload is something that clients do, and that is measured.
type workload struct {
	name    string
	group   string // whose tables it is in
	metrics []metric
	needs   []string // programs of Debian packages of the same name
	kernel  bool     // also measured where no process carries
	packets bool     // only for peers that carry datagrams
	measure func(ctx context.Context, r run) (sample, error)
}

// run is one measurement.
type run struct {
	stage *stage
	peer  peer
	time  time.Duration // for how long
	brief bool          // as short as it can be: nobody reads the figures
}

// sample is what one measurement gave.
type sample map[metric]float64

// metric is one figure of a workload. Lower is better unless high.
type metric struct {
	name string
	unit string
	high bool
}

var (
	throughput   = metric{"throughput", "Gbit/s", true}
	requestRate  = metric{"requests", "/s", true}
	connectRate  = metric{"connections", "/s", true}
	replyRate    = metric{"replies", "/s", true}
	packetRate   = metric{"datagrams", "/s", true}
	queryRate    = metric{"queries", "/s", true}
	latency50    = metric{"p50", "µs", false}
	latency99    = metric{"p99", "µs", false}
	latency999   = metric{"p99.9", "µs", false}
	latencyMean  = metric{"mean latency", "µs", false}
	costPerGB    = metric{"proxy CPU", "s/GB", false}
	costPer100k  = metric{"proxy CPU", "s/100,000", false}
	lossFlooded  = metric{"lost when flooded", "%", false}
	lossAtHalf   = metric{"lost at half the rate", "%", false}
	lossOfEchoes = metric{"lost", "%", false}
	memoryPer    = metric{"user memory", "B", false}
	descriptors  = metric{"descriptors", "", false}
	pipes        = metric{"descriptors of pipes", "", false}
	connsHeld    = metric{"measured with, connections", "", true}
	linksHeld    = metric{"measured with, links", "", true}
)

// The groups of workloads, in the order of the report.
const (
	bulkGroup    = "Bulk"
	requestGroup = "Requests"
	connectGroup = "Connections"
	replyGroup   = "Replies of a size, on 8 connections"
	packetGroup  = "Datagrams of 64 bytes"
	programGroup = "Programs"
	idleGroup    = "Idle connections and links"
)

// workloads lists all, in the order they are run in.
func workloads() []workload {
	var all []workload
	add := func(w ...workload) { all = append(all, w...) }
	for _, conns := range []int{1, 8} {
		for _, kind := range []string{traffic.Send, traffic.Receive} {
			add(bulk(kind, conns), iperf3(kind, conns))
		}
	}
	for _, conns := range []int{1, 64} {
		add(exchange(conns))
	}
	for _, conns := range []int{1, 32} {
		add(connect(conns))
	}
	for _, size := range []int{1_000, 10_000, 100_000, 1_000_000} {
		add(replies(size))
	}
	add(flood(), echo(64))
	add(pgbench(), redisBenchmark(), wrk())
	add(idle(), links())
	return all
}
