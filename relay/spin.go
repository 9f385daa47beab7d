package relay

import (
	"syscall"
	"time"
)

// spinMost is how long a worker looks for events before it sleeps, at most.
const spinMost = 50 * time.Microsecond

// spin looks for events without sleeping, if some are likely to come soon.
//
// To wake a thread whose processor has gone idle takes longer than all that
// the relay does to a message, the more so in a virtual machine, where the
// host has to be asked. While one connection ping-pongs, that is most of the
// time of a request: without, it takes twice as long, and about two thirds of
// the processor time. Where many are busy there is mostly something to do, and
// a processor that spins would be missing elsewhere. So a worker spins after a
// single event, while its waits have been short lately, and never two at the
// same time. Whoever pauses for longer than spinMost soon finds it asleep.
func (w *worker) spin(since time.Duration) (n int, errno syscall.Errno) {
	if w.found != 1 || w.usual > 2*spinMost || !w.engine.spinning.CompareAndSwap(false, true) {
		return 0, 0
	}
	for n == 0 && errno == 0 && time.Since(w.start)-since < spinMost {
		n, errno = w.poll.wait(w.events[:], 0)
	}
	w.engine.spinning.Store(false)
	return n, errno
}

// waited takes in how many events a wait has brought, and how long it took. A
// few long ones in a row end the spinning, and as many short ones resume it.
func (w *worker) waited(n int, d time.Duration) {
	w.found = n
	w.usual += (min(d, 8*spinMost) - w.usual) / 8
}
