package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Dial makes a session with a peer, and returns once the peer has answered.
type Dial func(context.Context) (*Session, error)

// Peer is another host, and the sessions with it: one as a rule, two while the
// younger takes over from the older. Streams that an older one still has end
// by themselves.
//
//	dialed, adopted ──► current ──► leaving ──► closed
//	                       └────────lost──────────▲
type Peer struct {
	// Name is what the log calls the peer, and Own this host. When both have
	// dialed at the same time, the session stays that was dialed by the host
	// whose name comes first.
	Name, Own string
	// Hold is how long Ask waits for a session when there is none. 0 is not at
	// all.
	Hold time.Duration
	// Handle gets the streams that the peer opens, see Session.Serve. nil
	// refuses them.
	Handle func(*Incoming)
	// Changed is called when a session has come or gone, or the reason why
	// there is none is another. It must not wait. nil is for nobody.
	Changed func()
	// MaxAge is how old a session gets before it is replaced. 0 is 12 h.
	MaxAge time.Duration
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger

	mu       sync.Mutex
	dial     Dial
	sessions []*member     // oldest first
	changed  chan struct{} // closed when something has changed, and replaced; nil until somebody waits
	reason   error         // why there is no session
	told     complaint     // what the log has of it
	since    time.Time     // when the peer came up, or went down
	up       bool
	renewals int // calls of Renew
	stopped  bool
	serving  sync.WaitGroup
}

// member is one session with the peer.
type member struct {
	*Session
	dialed   bool
	started  time.Time
	renewals int // calls of Renew before it was dialed
	leaving  bool
}

// PeerState is a moment of a peer's life.
type PeerState struct {
	Up      bool
	Since   time.Time // when it came up, or went down
	Reason  string    // why it is down
	Streams int       // of all sessions, in both directions

	// Of the session that new streams go to.
	Address string // the peer's
	Dialed  bool   // by this side
	RTT     time.Duration
}

// maxAdopted is how many sessions a peer may have dialed. Those that are left
// over from the past, with streams that do not end, come to a few a day.
const maxAdopted = 32

var (
	errNoSession = errors.New("there is no session yet")
	errNoWay     = errors.New("the peer has not connected, and how to reach it is not known")
	errExpired   = errors.New("the certificate of the session has expired")
	errSurplus   = errors.New("the peer has dialed too many sessions")
)

// Reach says how the peer is reached; nil is not at all.
func (p *Peer) Reach(dial Dial) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dial = dial
	p.change()
}

// Adopt takes a session that the peer has dialed, and owns it from then on.
func (p *Peer) Adopt(s *Session) { p.add(&member{Session: s}) }

// Renew has the sessions that this side has dialed replaced, since what they
// were proven with is. The others are the peer's to replace: it sees in the
// certificate when.
func (p *Peer) Renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewals++
	p.change()
}

// Ask is Session.Ask in the session of now.
func (p *Peer) Ask(ctx context.Context, r Request) (*Stream, error) {
	var hold <-chan time.Time
	for {
		m, changed, err := p.current()
		if m != nil {
			st, err := m.Ask(ctx, r)
			if err == nil || m.usable() {
				return st, err
			}
			continue // it has ended, or is about to, since current looked
		}
		if hold == nil {
			hold = time.After(p.Hold)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("reaching %q: %w", p.Name, context.Cause(ctx))
		case <-hold:
			return nil, fmt.Errorf("reaching %q: %w", p.Name, err)
		}
	}
}

// usable tells whether m takes new streams.
func (m *member) usable() bool {
	select {
	case <-m.Ending():
		return false
	default:
	}
	return m.Err() == nil && m.numbers.Load() < maxNumbers
}

// current is the session for new streams. If there is none, err says why, and
// changed is closed when that may be different.
func (p *Peer) current() (m *member, changed <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.newest(); m != nil {
		return m, nil, nil
	}
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return nil, p.changed, p.why()
}

// newest is the session for new streams, nil if there is none. Caller holds mu.
func (p *Peer) newest() *member {
	for _, m := range slices.Backward(p.sessions) {
		if !m.leaving && m.usable() {
			return m
		}
	}
	return nil
}

// why is the reason why there is no session. Caller holds mu.
func (p *Peer) why() error {
	switch {
	case p.dial == nil:
		return errNoWay
	case p.reason == nil:
		return errNoSession
	}
	return p.reason
}

// change wakes whoever waits. Caller holds mu.
func (p *Peer) change() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// State is how the peer is.
func (p *Peer) State() PeerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := PeerState{Up: p.up, Since: p.since}
	for _, m := range p.sessions {
		st.Streams += m.Stats().Open
	}
	if m := p.newest(); m != nil {
		st.RTT, st.Dialed, st.Address = m.RTT(), m.dialed, m.RemoteAddr().String()
	}
	if !p.up {
		st.Reason = p.why().Error()
	}
	return st
}

// Run keeps a session with the peer until ctx ends. When it returns, all are
// closed and all handlers have returned.
func (p *Peer) Run(ctx context.Context) {
	defer p.stop()
	var failures int
	var next time.Time
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if dial, renewals := p.wanted(); dial != nil && !time.Now().Before(next) {
			s, err := dial(ctx)
			if err == nil {
				p.add(&member{Session: s, dialed: true, renewals: renewals})
				failures, next = 0, time.Time{}
				continue
			}
			p.failed(ctx, err)
			failures++
			next = time.Now().Add(backOff(failures))
		}
		p.expire(time.Now())
		p.mu.Lock()
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-changed:
		case <-ticker.C:
		}
	}
}

// look is how often a peer is looked at without a reason.
const look = 100 * time.Millisecond

// backOff is how long to wait after so many failures: short enough to be back
// soon after the network, and never at the same moment as all others.
func backOff(failures int) time.Duration {
	d := min(50*time.Millisecond<<min(failures, 10), 500*time.Millisecond)
	return d/2 + rand.N(d/2)
}

// wanted returns how to make a session, if one is to be made, and how often
// Renew was called before that.
func (p *Peer) wanted() (Dial, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.newest(); m != nil && !p.due(m, time.Now()) {
		return nil, 0
	}
	return p.dial, p.renewals
}

// due tells whether m is to be replaced: because it is silent, which costs
// less if it was nothing than to wait until it is certain, or because it
// comes to its end.
func (p *Peer) due(m *member, now time.Time) bool {
	if m.Silent() > m.wire.config.DeadAfter/2 {
		return true
	}
	if !m.dialed {
		return false
	}
	life := cmp.Or(p.MaxAge, 12*time.Hour)
	if end := m.Expires(); !end.IsZero() {
		// By then the peer has a new certificate, too: it renews earlier.
		life = min(life, max(end.Sub(m.started)*3/4, time.Minute))
	}
	return m.renewals < p.renewals || now.Sub(m.started) > life || m.numbers.Load() > maxNumbers/2
}

// add makes m the session for new streams, and has those leave that are too
// many.
func (p *Peer) add(m *member) {
	m.started = time.Now()
	surplus, ok := p.enter(m)
	if !ok {
		m.Close()
		return
	}
	if surplus != nil {
		p.log().Warn("cutting the oldest of too many sessions", "peer", p.Name, "streams", surplus.Stats().Open)
		surplus.wire.fail(errSurplus)
	}
	p.tell()
}

// tell says that something has changed.
func (p *Peer) tell() {
	if p.Changed != nil {
		p.Changed()
	}
}

// enter is add, unless the peer is stopped. It returns the session that has to
// go for it, if there is one.
func (p *Peer) enter(m *member) (surplus *member, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, false
	}
	if !m.dialed {
		surplus = p.surplus()
	}
	// The other side does the same with those that it has dialed.
	first := p.Name < p.Own
	for _, older := range p.sessions {
		if older.dialed && (m.dialed || first) {
			p.leave(older)
		}
	}
	leaves := m.dialed && first && p.adopted() != nil
	p.sessions = append(p.sessions, m)
	p.serving.Go(func() { p.serve(m) })
	if leaves {
		p.leave(m)
	}
	if !p.up {
		p.up, p.since, p.told = true, m.started, complaint{}
		p.log().Info("peer up", "peer", p.Name, "address", m.RemoteAddr(), "dialed", m.dialed)
	}
	p.change()
	return surplus, true
}

// surplus is the oldest session that the peer has dialed, if it may not have
// another one. Caller holds mu.
func (p *Peer) surplus() (oldest *member) {
	n := 0
	for _, m := range slices.Backward(p.sessions) {
		if !m.dialed && m.Err() == nil {
			oldest = m
			n++
		}
	}
	if n < maxAdopted {
		return nil
	}
	return oldest
}

// adopted is a session that the peer has dialed and that takes new streams.
// Caller holds mu.
func (p *Peer) adopted() *member {
	for _, m := range p.sessions {
		if !m.dialed && !m.leaving && m.usable() && !p.due(m, time.Now()) {
			return m
		}
	}
	return nil
}

// leave has m take no new streams, and end with its last one. Caller holds mu.
func (p *Peer) leave(m *member) {
	if m.leaving {
		return
	}
	m.leaving = true
	p.serving.Go(func() { m.Drain(context.Background()) }) // or until stop closes it
}

// serve handles the streams of m until it has ended.
func (p *Peer) serve(m *member) {
	handle := p.Handle
	if handle == nil {
		handle = func(in *Incoming) { in.Refuse(Unsupported, "this host takes no requests") }
	}
	err := m.Serve(handle)
	m.Close()
	p.forget(m, err)
	p.tell()
}

// forget is for a session that has ended.
func (p *Peer) forget(m *member, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions = slices.DeleteFunc(p.sessions, func(other *member) bool { return other == m })
	if p.up && p.newest() == nil {
		p.up, p.since, p.reason = false, time.Now(), err
		if !p.stopped {
			p.log().Warn("peer down", "peer", p.Name, "err", err)
		}
	}
	p.change()
}

// complaint is what the log has been told last.
type complaint struct {
	text string
	at   time.Time
}

// complainAgain is how long the log is spared another reason: there are those
// that are never twice the same.
const complainAgain = time.Minute

// failed notes why the peer cannot be reached.
func (p *Peer) failed(ctx context.Context, err error) {
	if ctx.Err() == nil && p.note(err) {
		p.log().Warn("peer cannot be reached; trying again", "peer", p.Name, "err", err)
		p.tell()
	}
}

// note is failed, and reports whether anybody has to be told.
func (p *Peer) note(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.since.IsZero() {
		p.since = now
	}
	p.reason = err
	if text := err.Error(); text != p.told.text && now.Sub(p.told.at) > complainAgain {
		p.told = complaint{text, now}
		return true
	}
	return false
}

// expire closes the sessions whose proof has run out, unless a younger one
// vouches for the peer: it has shown since then that it still is who it was.
// So streams outlive a certificate, but not the right to have one.
func (p *Peer) expire(now time.Time) {
	for _, m := range p.expired(now) {
		p.log().Warn("cutting a session whose certificate has expired", "peer", p.Name, "streams", m.Stats().Open)
		m.wire.fail(errExpired)
	}
}

func (p *Peer) expired(now time.Time) (over []*member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range slices.Backward(p.sessions) {
		end := m.Expires()
		if m.Err() != nil {
			continue
		}
		if end.IsZero() || now.Before(end) {
			return over // it vouches for those that are older
		}
		over = append(over, m)
	}
	return over
}

// stop closes everything.
func (p *Peer) stop() {
	p.mu.Lock()
	p.stopped = true
	all := slices.Clone(p.sessions)
	p.change()
	p.mu.Unlock()
	for _, m := range all {
		m.Close()
	}
	p.serving.Wait()
}

func (p *Peer) log() *slog.Logger {
	if p.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Log
}
