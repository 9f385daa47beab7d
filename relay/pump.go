package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// A direction is spliced once a read has filled its buffer, and copied
	// again after smallAfter splices in a row of less than smallSplice, which
	// is not worth two calls.
	smallSplice = 4 << 10
	smallAfter  = 8
	// turn is how many bytes one direction may splice before the others of
	// the worker have theirs.
	turn = 512 << 10
)

// enqueue has c run in the next round.
func (w *worker) enqueue(c *conn) {
	if !c.queued {
		c.queued = true
		w.queue = append(w.queue, c.slot)
	}
}

// round runs the connections in the queue. They are in it again afterwards if
// they have more to do than others should wait for.
func (w *worker) round() {
	w.queue, w.turn = w.turn[:0], w.queue
	for _, slot := range w.turn {
		// A slot is in the queue twice if its connection ended there and
		// another one began.
		if c := w.slab.at(slot); c.queued && c.inBatch == 0 {
			c.queued = false
			w.run(c)
		}
	}
	w.exchange()
}

// run moves what can be moved in both directions.
func (w *worker) run(c *conn) {
	if !w.move(c, fromRecipient) || !w.move(c, fromSource) {
		return
	}
	// What a broken end had sent before it broke is still delivered, as far
	// as the other end takes it at once.
	if (c.ends[0].is(broken) || c.ends[1].is(broken)) && !c.queued && c.inBatch == 0 {
		w.end(c, resetByEnd)
	}
}

// move does for the bytes of end i what comes next: writes those that are
// held, splices, passes on the end of the stream, or puts a read into the
// batch. It is false when the connection is gone.
func (w *worker) move(c *conn, i int) bool {
	from, to, l := &c.ends[i], &c.ends[1-i], c.link
	before := from.moved
	alive := w.step(c, i, from, to)
	if n := from.moved - before; n > 0 {
		w.count(l, i, n)
		c.active = w.now
	}
	if !alive {
		return false
	}
	if from.pipe != nil && from.held == 0 {
		w.letGo(from)
	}
	return true
}

func (w *worker) step(c *conn, i int, from, to *end) bool {
	for stop := from.moved + turn; ; {
		if from.held > 0 {
			if !to.is(writable) {
				return true
			}
			if errno := w.flush(c, i); errno != 0 {
				w.unwritable(c, i)
				return true
			}
			continue
		}
		if from.is(ended) {
			return w.passEnd(c, i)
		}
		// A reader that takes nothing holds the writer back: its bytes stay
		// in the socket they came in by, and its window closes.
		if !from.is(readable) || !to.is(writable) {
			return true
		}
		if from.moved >= stop || w.batch.full() {
			w.enqueue(c)
			return true
		}
		size := copySize
		if from.is(bulk) {
			size = w.splice(from)
		}
		if size > 0 {
			w.batch.add(c, i, size)
			return true
		}
	}
}

// wantsMore says whether c can get on without a further event.
func (c *conn) wantsMore() bool {
	for i := range c.ends {
		from, to := &c.ends[i], &c.ends[1-i]
		switch {
		case from.is(broken):
			return true
		case from.held > 0:
			if to.is(writable) {
				return true
			}
		case from.is(ended):
			if !to.is(finSent) {
				return true
			}
		case from.is(readable) && to.is(writable):
			return true
		}
	}
	return false
}

// splice fills a pipe from an end. When that will not do it returns how many
// bytes to copy instead.
func (w *worker) splice(from *end) (size int) {
	if from.pipe == nil {
		if from.pipe = w.pipes.get(); from.pipe == nil {
			return copySize
		}
	}
	n, errno := w.calls.splice(from.fd, from.pipe.w, pipeSize)
	switch {
	case errno == unix.EINTR:
		return 0
	case errno == unix.EAGAIN && from.flags&(told|unsure) != 0:
		// Splice stops for good at urgent data, which a read takes. And an
		// event without anything behind it is rare enough to be worth a read.
		from.flags &^= told
		return smallSplice
	case errno == unix.EAGAIN:
		// The pipe is empty, so it is the socket that has nothing.
		from.flags &^= readable
		return 0
	case errno != 0:
		from.flags = from.flags&^readable | ended | broken
		return 0
	case n == 0:
		from.flags = from.flags&^readable | ended
		return 0
	}
	from.flags &^= told
	from.held = int32(n)
	w.splicedBytes += uint64(n)
	if n >= smallSplice {
		from.small = 0
	} else if from.small++; from.small >= smallAfter {
		from.flags &^= bulk
	}
	return 0
}

// hold keeps a copy of p, read from e, until the other end takes it.
func (w *worker) hold(e *end, p []byte) {
	if len(p) > 0 {
		e.spill = w.spills.get()
		e.spill.off = 0
		e.held = int32(copy(e.spill.buf[:], p))
	}
}

// flush writes held bytes of end i to the other end.
func (w *worker) flush(c *conn, i int) syscall.Errno {
	from, to := &c.ends[i], &c.ends[1-i]
	var n int
	var errno syscall.Errno
	if from.spill != nil {
		n, errno = w.calls.send(to.fd, from.spill.buf[from.spill.off:][:from.held], 0)
	} else {
		n, errno = w.calls.splice(from.pipe.r, to.fd, int(from.held))
	}
	switch {
	case errno == unix.EINTR:
		return 0
	case errno == unix.EAGAIN:
		w.waitForRoom(c, 1-i)
		return 0
	case errno != 0:
		return errno
	case n <= 0:
		return unix.EIO // would be asked for ever otherwise
	}
	from.held -= int32(n)
	from.moved += uint64(n)
	if from.spill != nil {
		if from.spill.off += int32(n); from.held == 0 {
			w.spills.put(from.spill)
			from.spill = nil
		}
	}
	return 0
}

// unwritable: the end that bytes of end i go to takes none any more. What it
// has sent itself before is still worth delivering, so run ends the
// connection only after that.
func (w *worker) unwritable(c *conn, i int) {
	from, to := &c.ends[i], &c.ends[1-i]
	to.flags |= broken | unsure
	if !to.is(ended) {
		to.flags |= readable
	}
	from.flags &^= readable
	w.letGo(from)
}

// passEnd passes on the end of a stream, every byte of which has been
// written.
func (w *worker) passEnd(c *conn, i int) bool {
	from, to := &c.ends[i], &c.ends[1-i]
	switch {
	case from.is(broken):
		if c.inBatch > 0 {
			return true // what the other end has sent is on its way
		}
		w.end(c, resetByEnd)
		return false
	case to.is(ended) && to.held == 0:
		w.finish(c)
		return false
	case !to.is(finSent):
		shutdownWrite(to.fd)
		to.flags |= finSent
		w.schedule(c)
	}
	return true
}

// count adds n bytes from end i that the other end has taken.
func (w *worker) count(l *Link, i int, n uint64) {
	l.live.shards[w.index].bytes[i].Add(n)
}
