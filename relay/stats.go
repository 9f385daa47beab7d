package relay

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is a moment of a link's life. The counters never go back.
type Stats struct {
	Open        int64  // connections and flows now
	Total       uint64 // connections and flows ever opened, those that failed to connect included
	ToSource    uint64 // bytes written towards the source
	ToRecipient uint64 // bytes written towards the recipient
	Failures    Failures
}

// Failures counts connections that did not come about or did not end by
// themselves, by cause.
type Failures struct {
	Refused     uint64 // the source answered a connect with a reset
	Unreachable uint64 // no way to the source
	Timeout     uint64 // the source did not answer within ConnectTimeout
	NoSocket    uint64 // Source had none to give, or the system had no descriptor
	Limit       uint64 // MaxConns were open
	Abandoned   uint64 // the recipient reset the connection before the source had answered
	Reset       uint64 // one end reset an established connection, or could not be written to
	Idle        uint64 // ended by IdleTimeout
	Lifetime    uint64 // ended by MaxLifetime
	HalfClosed  uint64 // ended by CloseTimeout
	Cut         uint64 // ended by Link.Cut or Engine.Close
	Dropped     uint64 // datagrams lost: no room, no flow, or not accepted by the other end
	Other       uint64
}

// cause is why a connection ended.
type cause uint8

const (
	finished cause = iota // both ends closed
	refused
	unreachable
	timedOut
	noSocket
	overLimit
	abandoned
	resetByEnd
	idledOut
	outlived
	lingered
	wasCut
	dropped
	otherCause
	causes
)

func (c cause) String() string {
	return [...]string{"finished", "refused", "unreachable", "timeout", "no socket", "limit", "abandoned",
		"reset", "idle", "lifetime", "half-closed", "cut", "dropped", "other"}[c]
}

// connectCause sorts what a connect, or the making of its socket, came to.
func connectCause(errno syscall.Errno) cause {
	switch errno {
	case unix.ECONNREFUSED:
		return refused
	case unix.ECONNRESET, unix.EPIPE: // it had been established by then
		return resetByEnd
	case unix.ETIMEDOUT:
		return timedOut
	case unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENETDOWN, unix.EHOSTDOWN, unix.EACCES, unix.EPERM, unix.EADDRNOTAVAIL:
		return unreachable
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return noSocket
	}
	return otherCause
}

// liveLink is the part of a Link the engine writes. Bytes are counted in one
// shard per worker, so that two workers that carry the same link do not pass
// a cache line to and fro for every message.
type liveLink struct {
	attach sync.Once
	engine atomic.Pointer[Engine]
	shards []shard
	limits limits

	open     atomic.Int64
	total    atomic.Uint64
	failures [causes]atomic.Uint64
}

type shard struct {
	bytes [2]atomic.Uint64 // read from the recipient, read from the source
	_     [112]byte        // two cache lines: the prefetcher takes them in pairs
}

// use makes l ready to be carried by e. A link stays with its first engine;
// it is false for another.
func (l *Link) use(e *Engine) bool {
	l.live.attach.Do(func() {
		l.live.shards = make([]shard, len(e.workers))
		l.live.limits = l.limits()
		l.live.engine.Store(e)
	})
	return l.live.engine.Load() == e
}

// admit counts one more connection, unless MaxConns are open.
func (l *Link) admit() bool {
	if n := l.live.open.Add(1); l.MaxConns > 0 && n > int64(l.MaxConns) {
		l.live.open.Add(-1)
		l.fail(overLimit)
		return false
	}
	l.live.total.Add(1)
	return true
}

// leave is the other end of admit.
func (l *Link) leave(why cause) {
	if why != finished {
		l.fail(why)
	}
	l.live.open.Add(-1)
}

func (l *Link) fail(why cause) { l.live.failures[why].Add(1) }

// Stats reads the counters of l. It may be called at any time, by anyone.
func (l *Link) Stats() Stats {
	s := Stats{Open: l.live.open.Load(), Total: l.live.total.Load()}
	if e := l.live.engine.Load(); e != nil {
		e.taken.Lock()
		defer e.taken.Unlock() // what ends meanwhile is counted once
		for i := range l.live.shards {
			s.ToSource += l.live.shards[i].bytes[fromRecipient].Load()
			s.ToRecipient += l.live.shards[i].bytes[fromSource].Load()
		}
		for t := range e.taken.of[l] {
			s.ToSource += t.ToSource.Load()
			s.ToRecipient += t.ToRecipient.Load()
		}
	}
	f := &l.live.failures
	s.Failures = Failures{
		Refused:     f[refused].Load(),
		Unreachable: f[unreachable].Load(),
		Timeout:     f[timedOut].Load(),
		NoSocket:    f[noSocket].Load(),
		Limit:       f[overLimit].Load(),
		Abandoned:   f[abandoned].Load(),
		Reset:       f[resetByEnd].Load(),
		Idle:        f[idledOut].Load(),
		Lifetime:    f[outlived].Load(),
		HalfClosed:  f[lingered].Load(),
		Cut:         f[wasCut].Load(),
		Dropped:     f[dropped].Load(),
		Other:       f[otherCause].Load(),
	}
	return s
}

// ConnStats is a moment of one connection's life.
type ConnStats struct {
	Client      netip.AddrPort // the recipient's end; invalid if that is no IP socket
	Local       netip.AddrPort // the address it was made to
	Established bool           // the source has answered; false if somebody else has it, see Link.Take
	Age         time.Duration  // since it was accepted
	Quiet       time.Duration  // since a byte last moved; 0 if somebody else has it
	ToSource    uint64         // bytes
	ToRecipient uint64         // bytes
}

// Conns lists the connections of l that are open now, in no order.
func (l *Link) Conns() []ConnStats {
	e := l.live.engine.Load()
	if e == nil {
		return nil
	}
	var all []ConnStats
	e.everyWorker(func(w *worker) {
		w.slab.each(func(c *conn) {
			if c.link == l {
				client, local := c.addrs()
				all = append(all, ConnStats{
					Client:      client,
					Local:       local,
					Established: c.state == established,
					Age:         ticksToDuration(w.now - c.born),
					Quiet:       ticksToDuration(w.now - c.active),
					ToSource:    c.ends[fromRecipient].moved,
					ToRecipient: c.ends[fromSource].moved,
				})
			}
		})
	})
	now := uint32(time.Since(e.workers[0].start) >> tickShift)
	e.taken.each(l, func(t *Taken) {
		all = append(all, ConnStats{
			Client:      t.Client,
			Local:       t.Local,
			Age:         ticksToDuration(now - t.born),
			ToSource:    t.ToSource.Load(),
			ToRecipient: t.ToRecipient.Load(),
		})
	})
	return all
}

// addrs asks the kernel: nothing else wants to know.
func (c *conn) addrs() (client, local netip.AddrPort) {
	if c.flow != nil {
		return c.flow.key.client.addrPort(), c.flow.key.local.addrPort()
	}
	client, _ = remoteAddr(c.ends[fromRecipient].fd)
	local, _ = localAddr(c.ends[fromRecipient].fd)
	return client, local
}

// Cut resets every connection and forgets every flow of l, and returns how
// many there were. Those that were taken over are reset by their takers, who
// have been told when it returns. What is accepted afterwards is up to the listener's route:
// take the link out of it first. Cut waits for the workers, so it is not
// called from a Source or a route.
func (l *Link) Cut() int {
	e := l.live.engine.Load()
	if e == nil {
		return 0
	}
	for n := 0; ; {
		moves := e.moves.Load()
		e.everyWorker(func(w *worker) {
			w.slab.each(func(c *conn) {
				if c.link == l {
					w.end(c, wasCut)
					n++
				}
			})
		})
		n += e.taken.cut(l)
		// A connection that changed hands meanwhile may have been missed.
		if e.moves.Load() == moves {
			return n
		}
	}
}

// GiveUp resets the connections of l which are not known to have been answered
// by the source yet, and returns how many there were. It is for a source that went away: a server that
// is gone refuses, but a network that is gone is silent until ConnectTimeout.
// Otherwise it is as Cut.
func (l *Link) GiveUp() (n int) {
	e := l.live.engine.Load()
	if e == nil {
		return 0
	}
	e.everyWorker(func(w *worker) {
		w.slab.each(func(c *conn) {
			if c.link == l && c.state == connecting {
				w.end(c, unreachable)
				n++
			}
		})
	})
	return n
}

// EngineStats is a moment of an engine's life.
type EngineStats struct {
	Open      int64  // connections and flows now
	Unrouted  uint64 // connections reset because no link wanted them
	Pipes     int64  // pipes open, lent or idle
	Wakeups   uint64 // times a worker came back from waiting for events
	Copied    uint64 // bytes that went through user space
	Spliced   uint64 // bytes that did not
	BackedOff uint64 // times accepting paused for want of descriptors or memory
}

func (s EngineStats) String() string {
	return fmt.Sprintf("%d open, %d unrouted, %d pipes, %d wakeups, %d bytes copied, %d spliced, %d back-offs",
		s.Open, s.Unrouted, s.Pipes, s.Wakeups, s.Copied, s.Spliced, s.BackedOff)
}

// Stats reads the counters of e.
func (e *Engine) Stats() EngineStats {
	s := EngineStats{Pipes: e.pipes.Load(), Unrouted: e.unrouted.Load(), BackedOff: e.backedOff.Load()}
	for _, w := range e.workers {
		s.Open += w.load.Load()
		s.Wakeups += w.wakeups.Load()
		s.Copied += w.copied.Load()
		s.Spliced += w.spliced.Load()
	}
	return s
}
