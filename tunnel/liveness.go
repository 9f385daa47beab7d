package tunnel

import (
	"sync"
	"time"
)

const (
	// measureEvery is how often the round trip is measured at the least.
	measureEvery = 5 * time.Second
	// restEvery is how long a stream keeps a wide window it does not use.
	restEvery = 15 * time.Second
)

// probe is the ping under way.
type probe struct {
	mu     sync.Mutex
	number uint32
	sent   time.Time // zero when there is none
	once   sync.Once
}

// drainPing is the number of the ping that follows the announcement of the
// end. The others count from 1.
const drainPing = 1<<32 - 1

// ping asks the peer for an answer, unless one is due already: a lost question
// is asked again by the transport.
func (w *wire) ping() {
	p := &w.probe
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.sent.IsZero() {
		return
	}
	p.number = p.number%(drainPing-1) + 1
	p.sent = time.Now()
	w.out.queue(frame{kind: pingFrame, flags: synFlag, length: p.number})
}

// pong is for the answer to a ping.
func (w *wire) pong(number uint32) {
	if number == drainPing {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.settled = true
		w.checkDrained()
		return
	}
	p := &w.probe
	p.mu.Lock()
	defer p.mu.Unlock()
	if number == p.number && !p.sent.IsZero() {
		w.rtt.add(time.Since(p.sent))
		p.sent = time.Time{}
		p.once.Do(func() { close(w.answered) })
	}
}

// keepAlive looks after the session until it ends: a peer that has been silent
// for DeadAfter is dead. The silence is counted in pulses, so that a process
// that was stopped itself does not take that time for the peer's.
func (s *Session) keepAlive() {
	w := s.wire
	dead := w.config.DeadAfter
	pulse, quiet := dead/16, dead/3 // 500 ms and 2.7 s
	ticker := time.NewTicker(pulse)
	defer ticker.Stop()
	w.ping()
	heard := w.counts.heard.Load()
	var silent, unmeasured, unrested time.Duration
	for {
		select {
		case <-s.mux.CloseChan():
			return
		case <-ticker.C:
		}
		silent += pulse
		if now := w.counts.heard.Load(); now != heard {
			heard, silent = now, 0
		}
		s.silent.Store(int64(silent))
		if silent >= dead {
			w.fail(ErrSilent)
			return
		}
		if unmeasured += pulse; silent >= quiet || unmeasured >= measureEvery {
			unmeasured = 0
			w.ping()
		}
		if unrested += pulse; unrested >= restEvery {
			unrested = 0
			for _, idle := range w.rest() {
				idle.mux.Shrink()
			}
			w.out.trim()
		}
	}
}
