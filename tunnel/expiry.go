package tunnel

import (
	"cmp"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errIdle   = errors.New("no byte has moved for too long")
	errLinger = errors.New("one direction is closed and the other silent for too long")
)

// expiry ends a pump over which nothing moves. It looks four times in the
// shortest timeout, rather than arm a timer for every byte.
type expiry struct {
	now          *atomic.Uint64 // what has moved
	finished     *atomic.Int32  // directions
	cut          func()
	idle, linger time.Duration // 0 is never
	period       time.Duration

	mu    sync.Mutex
	timer *time.Timer
	moved uint64
	quiet time.Duration
	why   error
}

// defaultClose is how long a connection that is closed to one side may be
// silent.
const defaultClose = 5 * time.Minute

func newExpiry(idle, linger time.Duration, moved *atomic.Uint64, finished *atomic.Int32, cut func()) *expiry {
	e := &expiry{now: moved, finished: finished, cut: cut, idle: max(idle, 0), linger: max(linger, 0)}
	e.period = max(min(cmp.Or(e.idle, e.linger), cmp.Or(e.linger, e.idle))/4, time.Millisecond)
	if e.idle > 0 || e.linger > 0 {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.timer = time.AfterFunc(e.period, e.look)
	}
	return e
}

func (e *expiry) look() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer == nil {
		return
	}
	e.quiet += e.period
	if now := e.now.Load(); now != e.moved {
		e.moved, e.quiet = now, 0
	}
	switch half := e.finished.Load() == 1; {
	case half && e.linger > 0 && e.quiet >= e.linger:
		e.why = errLinger
	case e.idle > 0 && e.quiet >= e.idle:
		e.why = errIdle
	default:
		e.timer.Reset(e.period)
		return
	}
	e.cut()
}

// stop ends the watch and returns why the pump has expired, nil if it has not.
func (e *expiry) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	return e.why
}
