package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

// What the programs print, shortened.
const (
	iperf3Says = `{"end": {"streams": [], "sum_sent": {"bytes": 10485760, "bits_per_second": 22525800214.8},
		"sum_received": {"start": 0, "end": 0.004776, "bytes": 2000000000, "bits_per_second": 15368576214.4}}}`
	iperf3Refuses = `{"start": {}, "error": "the server is busy running a test. try again later"}`
	pgbenchSays   = `pgbench (15.18 (Debian 15.18-0+deb12u1))
scaling factor: 5
number of transactions actually processed: 50000
number of failed transactions: 0 (0.000%)
latency average = 0.519 ms
initial connection time = 12.410 ms
tps = 15414.123 (without initial connection time)
`
	redisSays = `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"GET","55555.56","0.579","0.176","0.567","0.887","1.167","1.327"
`
	wrkSays = `Running 1s test @ http://127.77.0.5:80/index.html
  1 threads and 64 connections
  Latency Distribution
     50%  850.00us
     75%    1.20ms
     90%    2.32ms
     99%   12.10ms
  20000 requests in 1.00s, 4.88MB read
Requests/sec:  19987.12
Transfer/sec:      4.87MB
`
)

func TestProgramsAreUnderstood(t *testing.T) {
	const cpu = 2 * time.Second
	for _, tt := range []struct {
		name string
		read func() (sample, error)
		want sample
	}{
		{"iperf3", func() (sample, error) { return parseIperf3([]byte(iperf3Says), cpu) },
			sample{throughput: 15.3685762144, costPerGB: 1}},
		{"pgbench", func() (sample, error) { return parsePgbench(pgbenchSays, cpu) },
			sample{queryRate: 15414.123, latencyMean: 519, costPer100k: 4}},
		{"redis-benchmark", func() (sample, error) { return parseRedisBenchmark([]byte(redisSays), 100_000, cpu) },
			sample{requestRate: 55555.56, latency50: 567, latency99: 1167, costPer100k: 2}},
		{"wrk", func() (sample, error) { return parseWrk(wrkSays, cpu) },
			sample{requestRate: 19987.12, latency50: 850, latency99: 12100, costPer100k: 10}},
		{"no process to blame", func() (sample, error) { return parseIperf3([]byte(iperf3Says), 0) },
			sample{throughput: 15.3685762144}},
	} {
		got, err := tt.read()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		for m, want := range tt.want {
			if math.Abs(got[m]-want) > 1e-6*want {
				t.Errorf("%s: %s is %v, want %v", tt.name, m.label(), got[m], want)
			}
		}
	}
}

func TestProgramsThatFailedAreNotBelieved(t *testing.T) {
	for name, tt := range map[string]struct {
		read func() (sample, error)
		want string
	}{
		"iperf3 that is refused": {func() (sample, error) { return parseIperf3([]byte(iperf3Refuses), 0) },
			"iperf3: nothing was received: the server is busy running a test. try again later"},
		"iperf3 that says nothing": {func() (sample, error) { return parseIperf3(nil, 0) },
			"reading what iperf3 says: unexpected end of JSON input"},
		"pgbench": {func() (sample, error) { return parsePgbench("pgbench: error: connection refused", 0) },
			`reading what pgbench says: no "number of transactions actually processed: (\\d+)" in "pgbench: error: connection refused"`},
		"redis-benchmark": {func() (sample, error) { return parseRedisBenchmark([]byte("Could not connect\n"), 1, 0) },
			`reading what redis-benchmark says: "Could not connect\n"`},
		"wrk with errors": {func() (sample, error) {
			return parseWrk(wrkSays+"Socket errors: connect 0, read 3, write 0, timeout 0\n", 0)
		},
			"wrk: Socket errors: connect 0, read 3, write 0, timeout 0"},
		"wrk that says nothing": {func() (sample, error) { return parseWrk("", 0) },
			`reading what wrk says: time: invalid duration "?"`},
	} {
		_, err := tt.read()
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}
