package traffic

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"
)

// Run does what a plan says, and returns when it is done.
func Run(p Plan) (Result, error) {
	p.Conns = max(p.Conns, 1)
	if p.Reply == 0 {
		p.Reply = RequestSize
	}
	if !p.Server.Addr().Is4() {
		return Result{}, fmt.Errorf("running a load: %v is no IPv4 address", p.Server)
	}
	if err := raiseFileLimit(); err != nil {
		return Result{}, err
	}
	// There is next to nothing to collect.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	switch p.Kind {
	case Exchange, Connect:
		return exchange(p)
	case Send:
		return send(p)
	case Receive:
		return receive(p)
	case Flood:
		return flood(p)
	case Echo:
		return echo(p)
	}
	return Result{}, fmt.Errorf("running a load: there is no kind %q", p.Kind)
}

// stopwatch tells the phases of a run.
type stopwatch struct{ start, warm, end time.Time }

func (p Plan) start() stopwatch {
	now := time.Now()
	return stopwatch{now, now.Add(p.Warmup), now.Add(p.Warmup + p.Duration)}
}

func (s stopwatch) over(now time.Time) bool     { return !now.Before(s.end) }
func (s stopwatch) measured(now time.Time) bool { return !now.Before(s.warm) }
