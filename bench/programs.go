package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/linkrun/linkrun/bench/traffic"
)

// The workloads of well-known programs, and the parsing of what they print.

// at is where the clients of a service of an image run, with the programs of
// that image.
func (r run) at(svc service) place {
	c := r.stage.sources[svc.name]
	return place{netns: r.peer.netns(), files: &c}
}

// seconds is the time of a measurement for programs that know whole seconds.
func (r run) seconds() string {
	return strconv.Itoa(max(1, int(math.Round(r.time.Seconds()))))
}

func iperf3(kind string, conns int) workload {
	return workload{
		name:    bulkName(kind, conns) + ", iperf3",
		group:   bulkGroup,
		metrics: []metric{throughput, costPerGB},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			svc := r.stage.service(iperfService)
			at := r.peer.address(svc)
			args := []string{"iperf3", "-J", "-c", at.Addr().String(), "-p", strconv.Itoa(int(at.Port())), "-P", strconv.Itoa(conns)}
			if r.brief {
				args = append(args, "-n", "10M")
			} else {
				args = append(args, "-t", r.seconds())
			}
			if kind == traffic.Receive {
				args = append(args, "-R")
			}
			// The server has one client at a time, and may not be done with
			// the last.
			var s sample
			err := poll(ctx, 10*time.Second, func() error {
				var out []byte
				cpu, err := r.cost(func() (err error) {
					out, err = r.at(svc).output(ctx, args...)
					return err
				})
				if err == nil {
					s, err = parseIperf3(out, cpu)
				}
				return err
			})
			return s, err
		},
	}
}

func parseIperf3(out []byte, cpu time.Duration) (sample, error) {
	var res struct {
		Error string
		End   struct {
			Received struct {
				Bytes float64
				Rate  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, fmt.Errorf("reading what iperf3 says: %w", err)
	}
	if res.Error != "" || res.End.Received.Rate <= 0 {
		return nil, fmt.Errorf("iperf3: nothing was received: %s", res.Error)
	}
	s := sample{throughput: res.End.Received.Rate / 1e9}
	s.put(costPerGB, cpu, 1e9, res.End.Received.Bytes)
	return s, nil
}

func pgbench() workload {
	return workload{
		name:    "pgbench -S, prepared, 8 connections",
		group:   programGroup,
		metrics: []metric{queryRate, latencyMean, costPer100k},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			svc := r.stage.service(dbService)
			at := r.peer.address(svc)
			args := []string{"env", "PGPASSWORD=" + password, "pgbench", "-n", "-S", "-M", "prepared", "-c", "8", "-j", "1",
				"-h", at.Addr().String(), "-p", strconv.Itoa(int(at.Port())), "-U", "postgres"}
			if r.brief {
				args = append(args, "-t", "10")
			} else {
				args = append(args, "-T", r.seconds())
			}
			var out []byte
			cpu, err := r.cost(func() (err error) {
				out, err = r.at(svc).output(ctx, append(args, "postgres")...)
				return err
			})
			if err != nil {
				return nil, err
			}
			return parsePgbench(string(out), cpu)
		},
	}
}

var (
	pgbenchCount   = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
	pgbenchLatency = regexp.MustCompile(`latency average = ([\d.]+) ms`)
	pgbenchRate    = regexp.MustCompile(`tps = ([\d.]+)`)
)

func parsePgbench(out string, cpu time.Duration) (sample, error) {
	count, err1 := find(pgbenchCount, out)
	mean, err2 := find(pgbenchLatency, out)
	rate, err3 := find(pgbenchRate, out)
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			return nil, fmt.Errorf("reading what pgbench says: %w", err)
		}
	}
	s := sample{queryRate: rate, latencyMean: mean * 1000}
	s.put(costPer100k, cpu, 1e5, count)
	return s, nil
}

// find is the number that the first group of a pattern matches.
func find(pattern *regexp.Regexp, text string) (float64, error) {
	m := pattern.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no %q in %q", pattern, text)
	}
	return strconv.ParseFloat(m[1], 64)
}

func redisBenchmark() workload {
	return workload{
		name:    "redis-benchmark GET, 50 connections",
		group:   programGroup,
		metrics: []metric{requestRate, latency50, latency99, costPer100k},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			svc := r.stage.service(cacheService)
			at := r.peer.address(svc)
			count := max(1000, int(60_000*r.time.Seconds())) // which takes about that time
			var out []byte
			cpu, err := r.cost(func() (err error) {
				out, err = r.at(svc).output(ctx, "redis-benchmark", "-h", at.Addr().String(), "-p", strconv.Itoa(int(at.Port())),
					"-t", "get", "-c", "50", "-n", strconv.Itoa(count), "--csv")
				return err
			})
			if err != nil {
				return nil, err
			}
			return parseRedisBenchmark(out, count, cpu)
		},
	}
}

func parseRedisBenchmark(out []byte, count int, cpu time.Duration) (sample, error) {
	rows, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 2 {
		return nil, fmt.Errorf("reading what redis-benchmark says: %q: %w", out, err)
	}
	s := sample{}
	for i, column := range rows[0] {
		value, err := strconv.ParseFloat(rows[1][i], 64)
		if err != nil {
			continue // the name of the test
		}
		switch column {
		case "rps":
			s[requestRate] = value
		case "p50_latency_ms":
			s[latency50] = value * 1000
		case "p99_latency_ms":
			s[latency99] = value * 1000
		}
	}
	if s[requestRate] <= 0 {
		return nil, fmt.Errorf("reading what redis-benchmark says: no rate in %q", out)
	}
	s.put(costPer100k, cpu, 1e5, float64(count))
	return s, nil
}

func wrk() workload {
	return workload{
		name:    "wrk with nginx, 64 connections",
		group:   programGroup,
		metrics: []metric{requestRate, latency50, latency99, costPer100k},
		needs:   []string{"wrk"},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			at := r.peer.address(r.stage.service(webService))
			var out []byte
			cpu, err := r.cost(func() (err error) {
				out, err = place{netns: r.peer.netns()}.output(ctx, "wrk", "-t", "1", "-c", "64", "-d", r.seconds()+"s",
					"--latency", "http://"+at.String()+"/index.html")
				return err
			})
			if err != nil {
				return nil, err
			}
			return parseWrk(string(out), cpu)
		},
	}
}

var (
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkCount  = regexp.MustCompile(`(\d+) requests in`)
	wrkErrors = regexp.MustCompile(`(Socket errors|Non-2xx).*`)
)

func parseWrk(out string, cpu time.Duration) (sample, error) {
	if bad := wrkErrors.FindString(out); bad != "" {
		return nil, fmt.Errorf("wrk: %s", bad)
	}
	s := sample{}
	// What stands above it has percentages of its own.
	_, distribution, _ := strings.Cut(out, "Latency Distribution")
	for m, pattern := range map[metric]string{latency50: "50%", latency99: "99%"} {
		_, rest, _ := strings.Cut(distribution, pattern)
		text := strings.Fields(rest + " ?")[0]
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("reading what wrk says: %w", err)
		}
		s[m] = float64(d) / float64(time.Microsecond)
	}
	rate, err := find(wrkRate, out)
	if err != nil {
		return nil, fmt.Errorf("reading what wrk says: %w", err)
	}
	count, err := find(wrkCount, out)
	if err != nil {
		return nil, fmt.Errorf("reading what wrk says: %w", err)
	}
	s[requestRate] = rate
	s.put(costPer100k, cpu, 1e5, count)
	return s, nil
}
