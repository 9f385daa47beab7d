package relay

import (
	"syscall"
	"time"
)

// How long a worker looks for events before it sleeps, at most.
const (
	spinMost = 50 * time.Microsecond
	spinMany = 20 * time.Microsecond // while several connections are busy
)

// spin looks for events without sleeping, if some are likely to come soon.
//
// To wake a thread whose processor has gone idle takes longer than all that
// the relay does to a message, the more so in a virtual machine, where the
// host has to be asked. While one connection ping-pongs, that is most of the
// time of a request: with spinning it takes half as long, for up to half as
// much processor time again. Where many are busy there is mostly something to
// do, and it is worth less: a tenth more requests, for a few percent.
//
// So a worker spins while its waits have been short lately, and never two at
// the same time. Traffic with longer pauses than these soon finds it asleep,
// and an engine without any never wakes.
func (w *worker) spin(since time.Duration) (n int, errno syscall.Errno) {
	most := w.spinFor()
	if most == 0 || !w.engine.spinning.CompareAndSwap(false, true) {
		return 0, 0
	}
	for n == 0 && errno == 0 && time.Since(w.start)-since < most {
		n, errno = w.poll.wait(w.events[:], 0)
	}
	w.engine.spinning.Store(false)
	return n, errno
}

// spinFor is how long it is worth looking for events now.
func (w *worker) spinFor() time.Duration {
	switch {
	case w.usual > 2*spinMost:
		return 0
	case w.found == 1:
		return spinMost
	case w.found > 1 && w.engine.active.Load() == 1:
		// Where several workers share the load, processors are scarce.
		return spinMany
	}
	return 0
}

// waited takes in how many events a wait has brought, and how long it took. A
// few long ones in a row end the spinning, and as many short ones resume it.
func (w *worker) waited(n int, d time.Duration) {
	w.found = n
	w.usual += (min(d, 8*spinMost) - w.usual) / 8
}
