package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/linkrun/linkrun/bench/traffic"
)

// The workloads of the bench's own generator, see package traffic.

// warmup is what comes before what is measured, as a part of it.
const warmup = 0.15

// generate runs a plan against the load service, and says what processor time
// the peer took for all of it.
func (r run) generate(ctx context.Context, plan traffic.Plan) (result traffic.Result, cpu time.Duration, err error) {
	plan.Server = r.peer.address(r.stage.service(loadService))
	plan.Duration = r.time
	plan.Warmup = time.Duration(float64(r.time) * warmup)
	text, err := json.Marshal(plan)
	if err != nil {
		return result, 0, err
	}
	cpu, err = r.cost(func() error {
		out, err := place{netns: r.peer.netns()}.output(ctx, r.stage.client(r.peer, string(text))...)
		if err != nil {
			return err
		}
		return json.Unmarshal(out, &result)
	})
	if err == nil && result.Failed > result.TotalCount/1000 {
		err = fmt.Errorf("%d of %d connections failed", result.Failed, result.Failed+result.TotalCount)
	}
	return result, cpu, err
}

// cost is the processor time that the peer took while fn ran.
func (r run) cost(fn func() error) (time.Duration, error) {
	pids, err := r.peer.carriers()
	if err != nil {
		return 0, err
	}
	before, err := cpuTime(pids)
	if err != nil {
		return 0, err
	}
	if err := fn(); err != nil {
		return 0, err
	}
	after, err := cpuTime(pids)
	return after - before, err
}

// put adds a cost per a number of things, unless there is no process that it
// could be the cost of.
func (s sample) put(m metric, cpu time.Duration, per, of float64) {
	if cpu > 0 && of > 0 {
		s[m] = cpu.Seconds() * per / of
	}
}

func bulk(kind string, conns int) workload {
	return workload{
		name:    bulkName(kind, conns),
		group:   bulkGroup,
		metrics: []metric{throughput, costPerGB},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			res, cpu, err := r.generate(ctx, traffic.Plan{Kind: kind, Conns: conns})
			if err != nil {
				return nil, err
			}
			s := sample{throughput: float64(res.Bytes) * 8 / 1e9 / res.Seconds}
			s.put(costPerGB, cpu, 1e9, float64(res.TotalBytes))
			return s, nil
		},
	}
}

func bulkName(kind string, conns int) string {
	to := "to the source"
	if kind == traffic.Receive {
		to = "to the recipient"
	}
	return fmt.Sprintf("bulk %s, %s", to, plural(conns, "connection"))
}

func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func exchange(conns int) workload {
	return workload{
		name:    fmt.Sprintf("request and reply of 64 bytes, %s", plural(conns, "connection")),
		group:   requestGroup,
		metrics: []metric{requestRate, latency50, latency99, latency999, costPer100k},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			res, cpu, err := r.generate(ctx, traffic.Plan{Kind: traffic.Exchange, Conns: conns})
			return requestSample(requestRate, res, cpu), err
		},
	}
}

func connect(conns int) workload {
	return workload{
		name:    fmt.Sprintf("connect, request and reply, %d at a time", conns),
		group:   connectGroup,
		metrics: []metric{connectRate, latency50, latency99, latency999, costPer100k},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			res, cpu, err := r.generate(ctx, traffic.Plan{Kind: traffic.Connect, Conns: conns})
			return requestSample(connectRate, res, cpu), err
		},
	}
}

func requestSample(rate metric, res traffic.Result, cpu time.Duration) sample {
	s := sample{rate: res.Rate(), latency50: res.Latency.P50, latency99: res.Latency.P99, latency999: res.Latency.P999}
	s.put(costPer100k, cpu, 1e5, float64(res.TotalCount))
	return s
}

func replies(size int) workload {
	return workload{
		name:    fmt.Sprintf("replies of %s", bytesName(size)),
		group:   replyGroup,
		metrics: []metric{replyRate, latency50, latency99, costPerGB},
		kernel:  true,
		measure: func(ctx context.Context, r run) (sample, error) {
			res, cpu, err := r.generate(ctx, traffic.Plan{Kind: traffic.Exchange, Conns: 8, Reply: size})
			if err != nil {
				return nil, err
			}
			s := sample{replyRate: res.Rate(), latency50: res.Latency.P50, latency99: res.Latency.P99}
			s.put(costPerGB, cpu, 1e9, float64(res.TotalBytes))
			return s, nil
		},
	}
}

func bytesName(n int) string {
	if n < 1_000_000 {
		return fmt.Sprintf("%d kB", n/1000)
	}
	return fmt.Sprintf("%d MB", n/1_000_000)
}

// flood measures the rate at which datagrams arrive while more are sent, and
// then what is lost at half that rate.
func flood() workload {
	return workload{
		name:    "datagrams one way, 1 flow",
		group:   packetGroup,
		metrics: []metric{packetRate, lossFlooded, lossAtHalf, costPer100k},
		kernel:  true,
		packets: true,
		measure: func(ctx context.Context, r run) (sample, error) {
			res, cpu, err := r.generate(ctx, traffic.Plan{Kind: traffic.Flood})
			if err != nil {
				return nil, err
			}
			s := sample{packetRate: res.Rate(), lossFlooded: loss(res)}
			s.put(costPer100k, cpu, 1e5, float64(res.TotalCount))
			res, _, err = r.generate(ctx, traffic.Plan{Kind: traffic.Flood, Rate: max(1, int(res.Rate()/2))})
			s[lossAtHalf] = loss(res)
			return s, err
		},
	}
}

func echo(conns int) workload {
	return workload{
		name:    fmt.Sprintf("datagrams and their answers, %s", plural(conns, "flow")),
		group:   packetGroup,
		metrics: []metric{requestRate, latency50, latency99, lossOfEchoes, costPer100k},
		kernel:  true,
		packets: true,
		measure: func(ctx context.Context, r run) (sample, error) {
			res, cpu, err := r.generate(ctx, traffic.Plan{Kind: traffic.Echo, Conns: conns})
			if err == nil && res.Arrived == 0 {
				err = errors.New("nothing came back")
			}
			if err != nil {
				return nil, err
			}
			s := sample{requestRate: res.Rate(), latency50: res.Latency.P50, latency99: res.Latency.P99, lossOfEchoes: loss(res)}
			s.put(costPer100k, cpu, 1e5, float64(res.TotalCount))
			return s, nil
		},
	}
}

// loss is the part of datagrams that did not arrive, in percent.
func loss(r traffic.Result) float64 {
	if r.Sent == 0 {
		return 0
	}
	return 100 * (1 - float64(r.Arrived)/float64(r.Sent))
}
