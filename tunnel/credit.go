package tunnel

import (
	"cmp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// firstWindow is the receive window every stream starts with; yamux's
	// protocol leaves no choice.
	firstWindow = 256 << 10
	// nearWindow is what a window may grow to however short the way. Within a
	// host bytes wait for a processor rather than for the way, and two processes
	// with a window of 256 KiB between them wait for each other: with this it is
	// a tenth to a fifth more.
	nearWindow = 1 << 20
	// maxWindow is the largest a window grows: 20 ms of 6.7 Gbit/s.
	maxWindow = 16 << 20
	// yamuxWindow is what yamux is told. It gives credit back once it has seen
	// half of that consumed, so twice maxWindow leaves room for all of
	// maxWindow at any moment.
	yamuxWindow = 2 * maxWindow
	// streamRate, in bytes a second, is what one stream is to reach. More
	// window than a round trip of it only fills the caches.
	streamRate = 2 << 30
)

// receiving is the account of what a stream has received, in bytes since its
// start: consumed ≤ received ≤ granted.
type receiving struct {
	granted, received, consumed int64
	window                      int64 // granted is kept at consumed + window
	grantedAt                   time.Time
	resting                     bool // nothing was received since rest looked last
	forgotten                   bool // what waits is counted no more
}

// Memory bounds what the sessions that share it keep for streams whose
// readers do not keep up. Sessions with the same peer share one. The zero
// value is ready to use.
type Memory struct {
	// Windows, in bytes, is what may be lent to streams on top of the 256 KiB
	// each has of itself. 0 is 64 MiB.
	Windows int64
	// Buffered, in bytes, is what may have been received and not been read,
	// by all streams together. Above it the stream with the most of it is
	// reset. 0 is 256 MiB.
	Buffered int64

	mu       sync.Mutex
	lent     int64
	buffered int64
}

// lend reports whether n bytes more can be lent.
func (m *Memory) lend(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > 0 && m.lent+n > cmp.Or(m.Windows, 64<<20) {
		return false
	}
	m.lent += n
	return true
}

// keep counts n bytes more, or less, and reports whether that is within
// bounds.
func (m *Memory) keep(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buffered += n
	return m.buffered <= cmp.Or(m.Buffered, 256<<20)
}

// consume is told of n bytes that the reader of l has got. It gives the peer
// new credit when half of the window is used up.
func (w *wire) consume(l *ledger, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.forgotten {
		return
	}
	l.consumed += int64(n)
	w.config.Memory.keep(int64(-n))
	used := l.window - (l.granted - l.consumed)
	if used < l.window/2 || l.finSeen || l.resetSent || l.removed {
		return
	}
	now := time.Now()
	used += w.widen(l, now)
	l.granted += used
	l.grantedAt = now
	w.out.queue(frame{kind: windowFrame, stream: l.id, length: uint32(used)})
}

// widen makes the window of l twice as large if its reader has used half of it
// within two round trips, and so may have been held up by it. It returns by
// how much. Caller holds mu.
func (w *wire) widen(l *ledger, now time.Time) int64 {
	rtt := w.rtt.least()
	wider := min(2*l.window, windowFor(rtt))
	if wider <= l.window || now.Sub(l.grantedAt) > 2*rtt || !w.config.Memory.lend(wider-l.window) {
		return 0
	}
	by := wider - l.window
	l.window = wider
	return by
}

// windowFor is the largest window for a round trip: small within a host or a
// rack, where it stays in the caches.
func windowFor(rtt time.Duration) int64 {
	return min(max(int64(rtt.Seconds()*streamRate), nearWindow), maxWindow)
}

// lingering is how many calls of rest a stream survives that this side has
// closed altogether, and the peer has not: about a minute, as for a socket.
const lingering = 4

// rest takes back what was lent to streams that have received nothing since
// the call before: a pool of idle connections is not to slow the others down.
// It returns those that need no buffer either.
func (w *wire) rest() (idle []*Stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.streams {
		if l.orphan {
			if l.rests++; l.rests > lingering {
				w.reset(l)
			}
			continue
		}
		if l.resting {
			w.narrow(l)
			if l.received == l.consumed && l.stream != nil {
				idle = append(idle, l.stream)
			}
		}
		l.resting = true
	}
	return idle
}

// narrow gives back what was lent to l. The credit the peer has already stays;
// it gets no more until that is used up. Caller holds mu.
func (w *wire) narrow(l *ledger) {
	w.config.Memory.lend(firstWindow - l.window)
	l.window = firstWindow
}

// forget ends the account of l. Caller holds mu.
func (w *wire) forget(l *ledger) {
	if l.forgotten {
		return
	}
	w.narrow(l)
	w.config.Memory.keep(l.consumed - l.received)
	l.forgotten = true
	if l.socket != noSocket {
		unix.Close(l.socket)
		l.socket = noSocket
	}
}

// fattest is the stream with the most bytes waiting for their reader. Caller
// holds mu.
func (w *wire) fattest() *ledger {
	var most *ledger
	for _, l := range w.streams {
		if !l.forgotten && (most == nil || l.received-l.consumed > most.received-most.consumed) {
			most = l
		}
	}
	return most
}

// roundTrip remembers how long the last pings took.
type roundTrip struct {
	mu   sync.Mutex
	last [8]time.Duration
	n    int
}

func (r *roundTrip) add(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[r.n%len(r.last)] = max(d, 1)
	r.n++
}

// least is the shortest of them, which has waited least in queues; 0 before
// the first.
func (r *roundTrip) least() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var least time.Duration
	for _, d := range r.last[:min(r.n, len(r.last))] {
		if least == 0 || d < least {
			least = d
		}
	}
	return least
}
