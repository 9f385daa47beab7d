package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// copySize is the most one read copies, and with it the most a
	// connection holds in user space for a reader that is slow.
	copySize = 32 << 10
	// bulkAfter full reads in a row a direction is spliced.
	bulkAfter = 2
	// smallSplice is what is not worth two splices; smallAfter of them in a
	// row and the direction is copied again.
	smallSplice = 4 << 10
	smallAfter  = 3
	// turn is how many bytes one direction may move before the others of the
	// worker have theirs.
	turn = 4 << 20
)

// run moves what can be moved in both directions.
func (w *worker) run(c *conn) {
	if !w.pump(c, fromRecipient) || !w.pump(c, fromSource) {
		return
	}
	for i := range c.ends {
		if !c.ends[i].is(broken) {
			continue
		}
		// What a broken end had sent before it broke is still delivered, as
		// far as the other end takes it at once. A write may have found it
		// broken after its own direction had been looked at: look again.
		if w.pump(c, i) && !c.queued {
			w.abort(c, resetByEnd)
		}
		return
	}
}

// pump moves bytes read from end i to the other end, until one of them has no
// more for now. It is false when the connection is gone.
func (w *worker) pump(c *conn, i int) bool {
	from, l, before := &c.ends[i], c.link, c.ends[i].moved
	alive := w.move(c, i)
	if n := from.moved - before; n > 0 {
		l.live.shards[w.index].bytes[i].Add(n)
		c.active = w.now
	}
	if alive && from.held == 0 && from.pipe != nil {
		w.letGo(from)
	}
	return alive
}

func (w *worker) move(c *conn, i int) bool {
	from, to := &c.ends[i], &c.ends[1-i]
	for stop := from.moved + turn; ; {
		if from.held > 0 {
			if !to.is(writable) {
				return true
			}
			if errno := w.flush(c, i); errno != 0 {
				return w.unwritable(c, i, errno)
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
		if from.moved >= stop {
			w.enqueue(c)
			return true
		}
		var errno syscall.Errno
		if from.is(bulk) {
			errno = w.splice(c, i)
		} else {
			errno = w.copy(c, i)
		}
		if errno != 0 {
			w.abort(c, resetByEnd)
			return false
		}
	}
}

// splice fills a pipe from end i. Without a pipe to be had it copies.
func (w *worker) splice(c *conn, i int) syscall.Errno {
	from := &c.ends[i]
	if from.pipe == nil {
		if from.pipe = w.pipes.get(); from.pipe == nil {
			return w.copy(c, i)
		}
	}
	n, errno := w.calls.splice(from.fd, from.pipe.w, spliceChunk)
	switch {
	case errno == unix.EINTR:
		return 0
	case errno == unix.EAGAIN:
		// The pipe was empty, so it is the socket that has nothing.
		from.flags &^= readable
		return 0
	case errno != 0:
		return errno
	case n == 0:
		from.flags = from.flags&^readable | ended
		return 0
	}
	from.held = int32(n)
	w.splicedBytes += uint64(n)
	if n >= smallSplice {
		from.streak = 0
	} else if from.streak++; from.streak >= smallAfter {
		from.flags &^= bulk
		from.streak = 0
	}
	return 0
}

// copy reads into the worker's buffer and writes from there at once. What the
// other end does not take waits in a spill.
func (w *worker) copy(c *conn, i int) syscall.Errno {
	from, to := &c.ends[i], &c.ends[1-i]
	n, errno := w.calls.read(from.fd, w.buf[:])
	switch {
	case errno == unix.EINTR:
		return 0
	case errno == unix.EAGAIN:
		from.flags &^= readable
		return 0
	case errno != 0:
		return errno
	case n == 0:
		from.flags = from.flags&^readable | ended
		return 0
	}
	if n == len(w.buf) {
		if from.streak++; from.streak >= bulkAfter {
			from.flags |= bulk
			from.streak = 0
		}
	} else {
		from.streak = 0
		if !from.is(hangup) {
			// The socket has been read empty: what comes next comes with an
			// edge of its own. Only an end of stream that was announced
			// together with these bytes would not.
			from.flags &^= readable
		}
	}
	w.copiedBytes += uint64(n)
	m, errno := w.calls.write(to.fd, w.buf[:n])
	if errno != 0 {
		m = 0
	}
	from.moved += uint64(m)
	if m == n {
		return 0
	}
	from.spill = w.spills.get()
	from.spill.off = 0
	from.held = int32(copy(from.spill.buf[:], w.buf[m:n]))
	if errno == unix.EAGAIN || errno == 0 {
		w.waitForRoom(c, 1-i)
	}
	// Any other error shows again when the spill is flushed.
	return 0
}

// flush writes held bytes of end i to the other end.
func (w *worker) flush(c *conn, i int) syscall.Errno {
	from, to := &c.ends[i], &c.ends[1-i]
	var n int
	var errno syscall.Errno
	if from.spill != nil {
		n, errno = w.calls.write(to.fd, from.spill.buf[from.spill.off:][:from.held])
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
// connection after that.
func (w *worker) unwritable(c *conn, i int, _ syscall.Errno) bool {
	from, to := &c.ends[i], &c.ends[1-i]
	to.flags |= broken | readable | hangup
	from.flags &^= readable
	w.letGo(from)
	return true
}

// passEnd passes on the end of a stream, every byte of which has been
// written.
func (w *worker) passEnd(c *conn, i int) bool {
	from, to := &c.ends[i], &c.ends[1-i]
	switch {
	case from.is(broken):
		w.abort(c, resetByEnd)
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

// enqueue has c run again after the others that have something to move.
func (w *worker) enqueue(c *conn) {
	if !c.queued {
		c.queued = true
		w.queue = append(w.queue, c.slot)
	}
}
