package exchange

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Server answers clients.
type Server struct {
	// Patience is how long a connection may do nothing. 0 is 5 minutes: who
	// waits for a client that is held up far away waits long.
	Patience time.Duration
	Tally    Tally
}

// Serve answers connections from ln until that is closed, and returns when all
// are over.
func (s *Server) Serve(ln net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	patience := s.Patience
	if patience == 0 {
		patience = 5 * time.Minute
	}
	for {
		conn, err := ln.Accept()
		if isClosed(err) {
			return nil
		}
		if err != nil {
			return err
		}
		conns.Go(func() { s.Tally.add(serve(conn.(Conn), patience)) })
	}
}

// Load is many clients at once, each with one connection after the other.
type Load struct {
	Dial func(context.Context) (Conn, error)
	// Clients is how many there are, Seed what they draw their plans from, and
	// Most the most bytes that a plan has for one direction.
	Clients int
	Seed    uint64
	Most    int64
	// Patience is how long a connection may do nothing before that is wrong.
	Patience time.Duration
	// Pause is the most that a client waits between two connections. 0 is none.
	Pause time.Duration
	Tally Tally
}

// Run begins connections until ctx ends, and returns when all are over.
func (l *Load) Run(ctx context.Context) {
	var clients sync.WaitGroup
	for i := range l.Clients {
		clients.Go(func() {
			chance := rand.New(rand.NewPCG(l.Seed, uint64(i)))
			for n := uint64(0); ctx.Err() == nil; n++ {
				l.once(ctx, l.plan(chance, uint64(i)<<32|n))
				if l.Pause > 0 {
					pause(ctx, time.Duration(chance.Int64N(int64(l.Pause))))
				}
			}
		})
	}
	clients.Wait()
}

// plan draws a plan: small ones as a rule.
func (l *Load) plan(chance *rand.Rand, number uint64) Plan {
	size := func() int64 {
		return chance.Int64N(1 + l.Most>>chance.UintN(12))
	}
	return Plan{Number: number, Kind: 1 + Kind(chance.UintN(uint(kinds)-1)), Up: size(), Down: size()}
}

func (l *Load) once(ctx context.Context, p Plan) {
	conn, err := l.Dial(ctx)
	if err != nil {
		l.Tally.refuse(ctx, err)
		pause(ctx, 20*time.Millisecond) // or it would be a thousand times a second
		return
	}
	l.Tally.add(Run(conn, p, l.Patience))
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Tally counts outcomes.
type Tally struct {
	mu sync.Mutex
	Counts
}

// Counts is a moment of a Tally.
type Counts struct {
	Whole   int   // connections that came to their end as planned
	Failed  int   // connections that were told of an error
	Refused int   // connections that could not be made
	Bytes   int64 // both ways
	// Longest is how long the longest of those that failed has lasted.
	Longest time.Duration
	Wrong   []string // the first few that went wrong
	Wrongs  int      // how many did
	Errors  map[string]int
}

func (t *Tally) add(o Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Bytes += o.Sent + o.Got
	switch {
	case o.Wrong != nil:
		if t.Wrongs++; len(t.Wrong) < 10 {
			t.Wrong = append(t.Wrong, o.String())
		}
	case o.Err != nil:
		t.Failed++
		t.Longest = max(t.Longest, o.Took)
		t.note(o.Err)
	default:
		t.Whole++
	}
}

func (t *Tally) refuse(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Refused++
	t.note(err)
}

// note counts an error by what is at the bottom of it: addresses differ.
func (t *Tally) note(err error) {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	if t.Errors == nil {
		t.Errors = make(map[string]int)
	}
	t.Errors[err.Error()]++
}

// Now returns the counts.
func (t *Tally) Now() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.Counts
	c.Wrong = append([]string(nil), c.Wrong...)
	c.Errors = nil
	for text, n := range t.Errors {
		if c.Errors == nil {
			c.Errors = make(map[string]int)
		}
		c.Errors[text] = n
	}
	return c
}

func (c Counts) String() string {
	return fmt.Sprintf("%d whole, %d failed (the longest after %v), %d refused, %d wrong, %.1f MB",
		c.Whole, c.Failed, c.Longest.Round(time.Millisecond), c.Refused, c.Wrongs, float64(c.Bytes)/1e6)
}

// Heart makes a connection every Every and exchanges a byte, to see when a way
// carries and when it does not.
type Heart struct {
	Dial  func(context.Context) (Conn, error)
	Every time.Duration
	// Answer is called for every connection that is answered, one after the
	// other.
	Answer func(at time.Time)

	mu sync.Mutex
}

// Run beats until ctx ends, and returns when all connections are over.
func (h *Heart) Run(ctx context.Context) {
	var beats sync.WaitGroup
	defer beats.Wait()
	ticker := time.NewTicker(h.Every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		beats.Go(func() { h.beat(ctx) })
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func (h *Heart) beat(ctx context.Context) {
	conn, err := h.Dial(ctx)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() {
		conn.SetLinger(0) // or it would look like an end that came too early
		conn.Close()
	})()
	if !Run(conn, Plan{Kind: Talk, Up: 1, Down: 1}, time.Minute).Whole() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Answer(time.Now())
}
