package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// copySize is the most one read copies, and with it the most a direction
	// holds in user space for a reader that is slow. Between 16 and 64 KiB it
	// makes no difference to responses of any size.
	copySize = 32 << 10
	// maxBatch is how many directions are read, and then written, in one go.
	// It bounds how long a stop of the world may have to wait.
	maxBatch = 64
	// Buffers of a batch lie this far apart. At a power of two the short
	// messages at their beginnings would share a few sets of each cache.
	bufferStride = copySize + 3*64
)

// transfer is one read of a batch, and the write of what it brought.
type transfer struct {
	c     *conn
	i     int // of the end that is read
	fd    int32
	buf   []byte
	n     int
	errno syscall.Errno
	flags uint32 // of the write
}

// batch is what a worker reads and writes next: first all reads, then all
// writes. Nothing is closed in between, so that no descriptor changes its
// meaning, and what a connection has brought is written before its end is
// looked at.
type batch struct {
	reads   [maxBatch]transfer
	writes  [maxBatch]transfer
	n       int
	buffers []byte
}

func (b *batch) full() bool { return b.n == maxBatch }

// add has up to size bytes of end i of c read in the next exchange.
func (b *batch) add(c *conn, i, size int) {
	if b.buffers == nil {
		b.buffers = make([]byte, maxBatch*bufferStride)
	}
	b.reads[b.n] = transfer{c: c, i: i, fd: c.ends[i].fd, buf: b.buffers[b.n*bufferStride:][:size]}
	b.n++
	c.inBatch++
}

// exchange makes the reads of the batch and writes what they brought. The
// connections that have more to do are in the queue afterwards.
func (w *worker) exchange() {
	b := &w.batch
	if b.n == 0 {
		return
	}
	reads, writes := b.reads[:b.n], b.writes[:0]
	b.n = 0
	w.calls.recvAll(reads)
	for k := range reads {
		r := &reads[k]
		w.hasRead(r)
		if r.errno == 0 && r.n > 0 {
			wr := transfer{c: r.c, i: r.i, fd: r.c.ends[1-r.i].fd, buf: r.buf[:r.n]}
			if r.c.ends[r.i].is(ended) {
				// The FIN that comes next takes these bytes along, in one
				// packet instead of two.
				wr.flags = unix.MSG_MORE
			}
			writes = append(writes, wr)
		}
	}
	w.calls.sendAll(writes)
	for k := range writes {
		w.hasWritten(&writes[k])
	}
	for k := range reads {
		c := reads[k].c
		c.inBatch--
		if c.wantsMore() {
			w.enqueue(c)
		}
	}
}

// hasRead takes in what a read of the batch came to.
func (w *worker) hasRead(r *transfer) {
	from := &r.c.ends[r.i]
	switch {
	case r.errno == unix.EINTR:
	case r.errno == unix.EAGAIN:
		from.flags &^= readable
	case r.errno != 0:
		from.flags = from.flags&^readable | ended | broken
	case r.n == 0:
		from.flags = from.flags&^readable | ended
	case r.n == len(r.buf):
		w.copiedBytes += uint64(r.n)
		from.flags |= bulk
		from.small = 0
	default:
		w.copiedBytes += uint64(r.n)
		if from.is(last) {
			from.flags = from.flags&^readable | ended
		} else if !from.is(unsure) {
			// The socket has been read empty: what comes next comes with an
			// event of its own.
			from.flags &^= readable
		}
	}
}

// hasWritten takes in what a write of the batch came to. What the other end
// did not take waits in a spill.
func (w *worker) hasWritten(t *transfer) {
	switch t.errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		t.n = 0
	default:
		w.unwritable(t.c, t.i)
		return
	}
	from := &t.c.ends[t.i]
	if t.n > 0 {
		from.moved += uint64(t.n)
		w.count(t.c.link, t.i, uint64(t.n))
		t.c.active = w.now
	}
	if t.n < len(t.buf) {
		w.hold(from, t.buf[t.n:])
		if t.errno != unix.EINTR {
			w.waitForRoom(t.c, 1-t.i)
		}
	}
}

// recvAll and sendAll make the calls of a batch: by the ring if there is one,
// unless there is only one call to make.
func (c *calls) recvAll(all []transfer) {
	if c.ring != nil && len(all) > 1 {
		c.ring.submit(opRecv, all)
		return
	}
	for k := range all {
		all[k].n, all[k].errno = c.recv(all[k].fd, all[k].buf)
	}
}

func (c *calls) sendAll(all []transfer) {
	if c.ring != nil && len(all) > 1 {
		c.ring.submit(opSend, all)
		return
	}
	for k := range all {
		all[k].n, all[k].errno = c.send(all[k].fd, all[k].buf, all[k].flags)
	}
}
