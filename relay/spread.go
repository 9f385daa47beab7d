package relay

import (
	"bytes"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// One thread that is busy moves a message for less than two that sleep and
// wake: it finds more to do each time it looks, and keeps its caches. So
// connections go to the first worker until that has no time left while the
// machine still has; then it gives half of what is busy to another. When the
// load is gone the last worker gives back what it has.
//
// Measured on two processors with 64 connections that ping-pong: all on one
// worker 10 to 12 µs of processor time for a request, spread over two 15 µs, and
// a sixth fewer of them, since two take the time of those they work for. With
// idleEnough at 15 that happened whenever the load came close to the machine's.
const (
	lookEvery  = 6   // ticks, 100 ms: how often a worker looks at its own load
	saturated  = 85  // percent of a processor
	hotLooks   = 2   // in a row, before anything is moved
	idleEnough = 50  // percent of a processor nobody uses
	calm       = 50  // percent of a processor, all workers together
	calmTicks  = 300 // 5 s, before a worker is given up
)

// pace is what a worker knows of its own load.
type pace struct {
	looked  uint32 // tick
	since   time.Time
	slept   time.Duration
	hot     int    // looks in a row
	calm    uint32 // ticks that were calm, up to now
	idle    time.Duration
	settled uint32 // tick before which nothing is moved again
}

// place gives an accepted connection to a worker: the accepting one, unless
// another in use has clearly fewer, since to hand over costs a wake-up.
func (w *worker) place(fd int32, route func(netip.AddrPort) *Link) {
	best := w
	for _, other := range w.engine.inUse() {
		if n := best.load.Load(); other.load.Load()+n/4+4 <= n {
			best = other
		}
	}
	if best != w && best.post(func(w *worker) { w.begin(fd, route) }) {
		return
	}
	w.begin(fd, route)
}

// inUse are the workers that get connections.
func (e *Engine) inUse() []*worker { return e.workers[:e.active.Load()] }

// look measures the worker's load, every lookEvery ticks at most, and moves
// connections if it has to.
func (w *worker) look() {
	p := &w.pace
	if w.now-p.looked < lookEvery {
		return
	}
	now := time.Now()
	elapsed := max(now.Sub(p.since), 1)
	busy := int(max(elapsed-p.slept, 0) * 100 / elapsed)
	ticks := w.now - p.looked
	p.looked, p.since, p.slept = w.now, now, 0
	w.busy.Store(uint64(w.now)<<32 | uint64(uint32(busy)))
	if len(w.engine.workers) == 1 {
		return
	}
	if busy >= saturated {
		p.calm = 0
		w.heat(elapsed)
		return
	}
	p.hot = 0
	w.cool(ticks)
}

// heat is called while the worker has no time left. That may also be because
// it waits for a processor, and then a second one would only wait as well.
func (w *worker) heat(elapsed time.Duration) {
	p := &w.pace
	idle, ok := idleTime()
	spare := !ok || (idle-p.idle)*100 >= elapsed*idleEnough
	p.idle = idle
	// The first look only takes the time the machine has been idle so far.
	if p.hot++; p.hot < hotLooks || !spare || int32(p.settled-w.now) > 0 {
		return
	}
	p.hot = 0
	p.settled = w.now + 5*lookEvery
	// Whoever holds the lock may be waiting for this worker.
	if !w.engine.spread.TryLock() {
		return
	}
	defer w.engine.spread.Unlock()
	n := int(w.engine.active.Load())
	to := w.engine.leastBusy(w)
	if to == nil {
		if n == len(w.engine.workers) {
			return
		}
		to = w.engine.workers[n]
	}
	busy := w.busyConns()
	if len(busy) < 2 {
		return
	}
	if to.index == n {
		w.engine.active.Store(int32(n + 1))
		listeners := w.engine.served()
		to.post(func(to *worker) {
			for _, l := range listeners {
				if err := to.listen(l); err != nil {
					to.engine.log().Warn("accepting on one thread less", "error", err)
				}
			}
		})
	}
	for i := 1; i < len(busy); i += 2 {
		w.hand(busy[i], to)
	}
}

// cool is called while the worker has time left, and has not looked for some
// ticks. The first worker has the last one in use give itself up when it has
// room for what all of them do. It is the first that decides, since the last
// may sleep, and would not before it is woken for something.
func (w *worker) cool(ticks uint32) {
	p := &w.pace
	active := w.engine.inUse()
	if w.index != 0 || len(active) == 1 {
		return
	}
	total := 0
	for _, other := range active {
		total += other.busyNow(w.now)
	}
	if p.calm += ticks; total > calm {
		p.calm = 0
	}
	if p.calm >= calmTicks {
		p.calm = 0
		active[len(active)-1].post((*worker).giveUp)
	}
}

// giveUp has the first worker do what this one did, if it is the last in use.
func (w *worker) giveUp() {
	if !w.engine.spread.TryLock() {
		return // and be told again
	}
	defer w.engine.spread.Unlock()
	if w.index == 0 || w.index != int(w.engine.active.Load())-1 {
		return
	}
	w.engine.active.Store(int32(w.index))
	for _, s := range w.listeners {
		w.stopListening(s.listener)
	}
	w.slab.each(func(c *conn) {
		if c.flow == nil && c.state == established {
			w.hand(c, w.engine.workers[0])
		}
	})
}

// leastBusy is a worker in use, other than w, that has at least half of its
// time left.
func (e *Engine) leastBusy(w *worker) *worker {
	var best *worker
	least := 50
	for _, other := range e.inUse() {
		if busy := other.busyNow(w.now); other != w && busy < least {
			best, least = other, busy
		}
	}
	return best
}

// busyNow is the load of w in percent of a processor. A worker that has not
// looked for a while has slept.
func (w *worker) busyNow(now uint32) int {
	b := w.busy.Load()
	if now-uint32(b>>32) > 2*lookEvery {
		return 0
	}
	return int(uint32(b))
}

func (w *worker) busyConns() []*conn {
	var busy []*conn
	w.slab.each(func(c *conn) {
		if c.flow == nil && c.state == established && w.now-c.active <= lookEvery {
			busy = append(busy, c)
		}
	})
	return busy
}

// hand moves an established connection to another worker, with the pipes and
// the bytes it holds. The other registers its sockets anew and is told then
// what they are ready for, so no event is lost on the way.
func (w *worker) hand(c *conn, to *worker) {
	for i := range c.ends {
		w.poll.remove(c.ends[i].fd)
	}
	w.wheel.remove(&w.slab, c)
	moved := *c
	w.slab.give(c)
	w.load.Store(int64(w.slab.live))
	if !to.post(func(to *worker) { to.receive(&moved) }) {
		w.receive(&moved)
	}
	// Link.Cut, which looks again if this has changed, may have asked both
	// workers already. Not earlier: it would ask the other one too soon.
	w.engine.moves.Add(1)
}

func (w *worker) receive(moved *conn) {
	c := w.slab.take()
	slot, gen := c.slot, c.gen
	*c = *moved
	c.slot, c.gen, c.queued = slot, gen, false
	w.load.Store(int64(w.slab.live))
	for i := range c.ends {
		if !w.watch(c, i) {
			w.end(c, noSocket)
			return
		}
	}
	w.schedule(c)
	w.enqueue(c)
}

// idleTime is the time all processors together have spent idle since boot.
func idleTime() (time.Duration, bool) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	// cpu user nice system idle iowait …, in hundredths of a second whatever
	// the kernel's own tick is.
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 6 {
		return 0, false
	}
	var sum int64
	for _, f := range fields[4:6] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, false
		}
		sum += n
	}
	return time.Duration(sum) * (time.Second / 100), true
}
