package policy

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Guard admits connections by a policy that changes, and cuts those that it
// allows no more. Everything it does goes on record.
type Guard struct {
	// Decide answers a request by the policy of now. It is called with the
	// guard locked, and does not call back.
	Decide func(Request) Decision
	// Log gets the record. nil discards it.
	Log *slog.Logger

	mu   sync.Mutex
	live map[*Admission]struct{}
}

// Admission is a connection that was allowed and has not ended.
type Admission struct {
	Request  Request
	Decision Decision
	Since    time.Time

	guard *Guard
	cut   func()
}

// Admit decides about a connection. If it is allowed, the admission lasts
// until End is called, and cut is called should the policy take it back: from
// a goroutine of the policy's, so it must not wait. If it is denied, there is
// no admission. attributes go on record.
func (g *Guard) Admit(q Request, cut func(), attributes ...any) (*Admission, Decision) {
	// The decision and the entry are one step: a policy that changes in
	// between would not find the connection.
	g.mu.Lock()
	d := g.Decide(q)
	var a *Admission
	if d.Allowed {
		a = &Admission{Request: q, Decision: d, Since: time.Now(), guard: g, cut: cut}
		if g.live == nil {
			g.live = make(map[*Admission]struct{})
		}
		g.live[a] = struct{}{}
	}
	g.mu.Unlock()
	if a == nil {
		g.record(slog.LevelWarn, "deny", q, d, attributes...)
	} else {
		g.record(slog.LevelInfo, "allow", q, d, attributes...)
	}
	return a, d
}

// End is for a connection that has ended by itself, or was cut.
func (a *Admission) End() {
	a.guard.mu.Lock()
	defer a.guard.mu.Unlock()
	delete(a.guard.live, a)
}

// Recheck is called after the policy has changed. It cuts the connections that
// are allowed no more, and returns how many they were.
func (g *Guard) Recheck() int {
	type verdict struct {
		a *Admission
		d Decision
	}
	var cut []verdict
	g.mu.Lock()
	for a := range g.live {
		if d := g.Decide(a.Request); !d.Allowed {
			cut = append(cut, verdict{a, d})
			delete(g.live, a)
		}
	}
	g.mu.Unlock()
	for _, v := range cut {
		v.a.cut()
		g.record(slog.LevelWarn, "cut", v.a.Request, v.d, "since", v.a.Since, "was", v.a.Decision.Rule)
	}
	return len(cut)
}

// Live is how many connections are admitted now.
func (g *Guard) Live() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.live)
}

// record writes who, what, and by which rule; the log adds when.
func (g *Guard) record(level slog.Level, what string, q Request, d Decision, more ...any) {
	if g.Log == nil {
		return
	}
	attributes := append([]any{
		"host", q.Host, "recipient", q.Recipient, "source", q.Source, "port", q.Port.String(), "rule", d.Rule,
	}, more...)
	g.Log.Log(context.Background(), level, "audit: "+what, attributes...)
}
