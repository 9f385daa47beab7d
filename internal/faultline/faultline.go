// Package faultline is a TCP relay that behaves as bad networks do: late, slow,
// torn, mute or rude. It is for tests only, and knows nothing of what it
// carries.
package faultline

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Faults is how one direction of a line behaves. The zero value is a good line.
type Faults struct {
	// Delay is how late everything arrives, and Jitter the most that comes on
	// top by chance. The order stays.
	Delay, Jitter time.Duration
	// Loss is the part of reads whose bytes arrive later by Stall, and with
	// them all that is behind: what a lost segment does to a TCP connection.
	Loss  float64
	Stall time.Duration
	// Rate, in bytes a second, is what passes at the most. 0 is no bound.
	Rate int
	// Slice, in bytes, is the most that is written at a time. 0 is no bound.
	Slice int
	// Mute has nothing pass, neither bytes nor ends. Connections are accepted
	// all the same, and are made once the line is not mute any more: what was
	// sent meanwhile arrives then.
	Mute bool
}

// Line is a relay between whoever connects to it and what Dial connects to.
type Line struct {
	// Dial makes the far end of a connection.
	Dial func(context.Context) (net.Conn, error)
	// Seed is what chance starts from.
	Seed uint64

	passed atomic.Int64

	mu      sync.Mutex
	faults  [2]Faults     // by the side that the bytes come from
	changed chan struct{} // closed when one of these is; nil until somebody waits
	counted bool
	left    int64 // if counted is set: bytes until the line is mute
	calls   map[*call]struct{}
	number  uint64 // of calls so far
}

// Side is one of the two sides of a line.
type Side int

const (
	Near Side = iota // who has connected to the line
	Far              // what the line has connected to
)

// call is one connection through the line. Its fields belong to Line.mu.
type call struct {
	ends  [2]net.Conn // the far one is nil until it is there
	cut   bool        // one side was told that it is over
	knows Side        // which
}

// Serve relays connections from ln until ctx ends, and closes ln and all of
// them. When it returns, no goroutine is left. The error is nil, or why ln
// cannot be accepted from any more.
func (l *Line) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		calls.Go(func() { l.relay(ctx, conn) })
	}
}

// Set has both directions behave from now on as f says, also of connections
// that are there.
func (l *Line) Set(f Faults) { l.SetEach(f, f) }

// SetEach is Set for what comes from each of the sides.
func (l *Line) SetEach(fromNear, fromFar Faults) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = [2]Faults{Near: fromNear, Far: fromFar}
	l.counted = false
	l.change()
}

// MuteAfter has the line fall silent once n bytes more have passed, whatever
// they are in the middle of, until Set is called.
func (l *Line) MuteAfter(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left, l.counted = n, true
}

// Reset resets all connections at both ends, and returns how many there were.
func (l *Line) Reset() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.calls {
		c.resetBoth()
	}
	return len(l.calls)
}

// Forget resets all connections at one side, and leaves the other in the
// belief that nothing has happened: as after a crash, or with a firewall that
// has lost its tables. It returns how many there were.
func (l *Line) Forget(side Side) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for c := range l.calls {
		if !c.cut && c.ends[Far] != nil {
			c.cut, c.knows = true, side
			c.reset(side)
			n++
		}
	}
	l.change()
	return n
}

// Calls is how many connections there are.
func (l *Line) Calls() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}

// Passed is how many bytes have passed, both ways.
func (l *Line) Passed() int64 { return l.passed.Load() }

// change wakes whoever waits. Caller holds mu.
func (l *Line) change() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// reset closes one end so that its peer sees a reset. Caller holds mu.
func (c *call) reset(side Side) {
	end := c.ends[side]
	if end == nil {
		return
	}
	if tcp, ok := end.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	end.Close()
}

// resetBoth is reset for both ends. Caller holds mu.
func (c *call) resetBoth() {
	c.reset(Near)
	c.reset(Far)
}

// enter makes a call of an accepted connection, and what its chances in each
// direction are drawn from.
func (l *Line) enter(near net.Conn) (*call, [2]*rand.Rand) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &call{ends: [2]net.Conn{Near: near}}
	if l.calls == nil {
		l.calls = make(map[*call]struct{})
	}
	l.calls[c] = struct{}{}
	l.number++
	return c, [2]*rand.Rand{
		rand.New(rand.NewPCG(l.Seed, 2*l.number)),
		rand.New(rand.NewPCG(l.Seed, 2*l.number+1)),
	}
}

// join adds the far end.
func (l *Line) join(c *call, far net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.ends[Far] = far
}

// cut resets a call.
func (l *Line) cut(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.resetBoth()
}

// leave closes a call that is over.
func (l *Line) leave(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.calls, c)
	for _, end := range c.ends {
		if end != nil {
			end.Close()
		}
	}
}

// secret tells whether one side of c does not know that it is over.
func (l *Line) secret(c *call) (yes bool, knows Side) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return c.cut, c.knows
}

// await returns once the line lets something of c pass from a side.
func (l *Line) await(ctx context.Context, c *call, from Side) error {
	for {
		l.mu.Lock()
		if !l.faults[from].Mute && !(l.counted && l.left <= 0) && !c.cut {
			l.mu.Unlock()
			return nil
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
