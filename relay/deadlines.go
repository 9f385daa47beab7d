package relay

import "golang.org/x/sys/unix"

// schedule files c under its next deadline, if it has one.
func (w *worker) schedule(c *conn) {
	due, _, any := w.deadline(c)
	if !any {
		return
	}
	if c.filed {
		if int32(c.due-due) <= 0 {
			return // looked at before that anyway
		}
		w.wheel.remove(&w.slab, c)
	}
	w.wheel.add(&w.slab, c, due)
}

// settleAfter is the age at which a connection is taken for one that stays.
// Most are gone by then and save the calls.
const settleAfter = 30 // ticks, 0.5 s

// deadline is the earliest tick at which c ends, and why, if nothing happens.
// The cause is finished for what does not end it.
func (w *worker) deadline(c *conn) (due uint32, why cause, any bool) {
	earlier := func(since, limit uint32, reason cause) {
		if limit == 0 {
			return
		}
		if at := since + limit; !any || int32(at-due) < 0 {
			due, why, any = at, reason, true
		}
	}
	lim := &c.link.live.limits
	switch {
	case c.flow != nil && !c.flow.answered:
		earlier(c.active, min(lim.flow, unansweredTimeout), idledOut)
	case c.flow != nil:
		earlier(c.active, lim.flow, idledOut)
	case c.state == connecting:
		earlier(c.born, lim.connect, timedOut)
	default:
		earlier(c.active, lim.idle, idledOut)
		if c.ends[0].is(ended) || c.ends[1].is(ended) {
			earlier(c.active, lim.close, lingered)
		}
	}
	earlier(c.born, lim.lifetime, outlived)
	if !c.settled {
		earlier(c.born, settleAfter, finished)
	}
	return due, why, any
}

// expire looks at a connection whose filed deadline has come.
func (w *worker) expire(c *conn) {
	due, why, any := w.deadline(c)
	if any && int32(due-w.now) <= 0 {
		if why != finished {
			w.end(c, why)
			return
		}
		w.settle(c)
	}
	w.schedule(c)
}

// settle is for connections that stay. Keepalive notices ends that vanished
// without a word, and after a FIN those that have closed completely: once the
// kernel has forgotten their socket it answers a probe with a reset.
func (w *worker) settle(c *conn) {
	if c.settled {
		return
	}
	c.settled = true
	for i := range c.ends {
		fd := c.ends[i].fd
		setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60)
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15)
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4)
	}
}
