package relay

import (
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/sockopt"
)

// The two ends of a connection. An end also names the direction of the bytes
// read from it.
const (
	fromRecipient = 0
	fromSource    = 1
)

// The states of a connection:
//
//	        accept            connected            both directions closed,
//	                                               or reset, timeout, cut
//	vacant ────────► connecting ────────► established ────────► vacant
//	                     │                                        ▲
//	                     └── refused, timeout, abandoned, cut ────┘
type state uint8

const (
	vacant state = iota
	connecting
	established
)

// What is known of an end without asking the kernel. Events are
// edge-triggered: a flag that is set stays true until a call says otherwise.
const (
	readable uint16 = 1 << iota // a read may find bytes, the end of the stream or an error
	writable                    // a write may find room
	ended                       // the end of the stream was read: no byte comes any more
	finSent                     // the end of the other's stream was passed on to it
	unsure                      // a read that was not full need not have emptied the socket
	broken                      // the kernel announced an error: a reset, or keepalive given up
	wantOut                     // registered for EPOLLOUT; registered at need, it stays
	bulk                        // bytes read here are spliced
	told                        // an event said readable, and no splice has found bytes since
	last                        // the end of the stream is right behind what the socket holds
)

// end is one socket of a connection, and the bytes read from it that the
// other has not taken yet: in a pipe when they were spliced, in a spill when
// they were copied.
type end struct {
	fd    int32
	held  int32 // bytes in pipe or spill
	flags uint16
	small uint8 // splices in a row that were not worth it
	pipe  *pipe
	spill *spill
	moved uint64 // bytes read here and written to the other
}

func (e *end) is(flags uint16) bool { return e.flags&flags == flags }

// conn is all there is of one connection. It lives in its worker's slab and
// is touched by that worker alone.
type conn struct {
	ends    [2]end
	link    *Link
	flow    *flow // of datagrams; nil for a TCP connection
	gen     int32 // of this use of the slot; never negative
	slot    int32
	state   state
	inBatch uint8 // reads in the batch: nothing is closed before they are made
	queued  bool
	filed   bool // in the wheel
	settled bool // see settle
	shared  bool // the sockets have descriptors in other processes

	due, born, active uint32 // ticks
	next, prev        int32  // in the wheel; next also chains vacant slots
}

const slabChunk = 64

// slab keeps a worker's connections at fixed places. Chunks are never given
// back: what 10,000 connections need once they may need again, and it is less
// than the kernel holds for a hundred of them.
type slab struct {
	chunks []*[slabChunk]conn
	vacant int32 // slot of the first vacant one + 1
	live   int
}

func (s *slab) at(slot int32) *conn { return &s.chunks[slot/slabChunk][slot%slabChunk] }

// find returns the connection an event is about, nil when that one is gone
// and the event was still under way.
func (s *slab) find(slot, gen int32) *conn {
	if c := s.at(slot); c.state != vacant && c.gen == gen {
		return c
	}
	return nil
}

func (s *slab) take() *conn {
	if s.vacant == 0 {
		first := int32(len(s.chunks)) * slabChunk
		s.chunks = append(s.chunks, new([slabChunk]conn))
		for slot := first + slabChunk - 1; slot >= first; slot-- {
			c := s.at(slot)
			c.slot, c.next = slot, s.vacant
			s.vacant = slot + 1
		}
	}
	c := s.at(s.vacant - 1)
	s.vacant = c.next
	s.live++
	*c = conn{slot: c.slot, gen: c.gen}
	c.ends[0].fd, c.ends[1].fd = -1, -1
	return c
}

func (s *slab) give(c *conn) {
	c.state = vacant
	c.link, c.flow, c.queued = nil, nil, false
	c.gen = (c.gen + 1) & 0x7fffffff
	c.next, s.vacant = s.vacant, c.slot+1
	s.live--
}

// each calls fn for every connection; fn may end the one it is called with.
func (s *slab) each(fn func(*conn)) {
	for _, chunk := range s.chunks {
		for i := range chunk {
			if c := &chunk[i]; c.state != vacant {
				fn(c)
			}
		}
	}
}

func (w *worker) open(recipient, source int32, l *Link) *conn {
	c := w.slab.take()
	c.ends[fromRecipient].fd, c.ends[fromSource].fd = recipient, source
	c.link, c.born, c.active = l, w.now, w.now
	w.load.Store(int64(w.slab.live))
	return c
}

func (w *worker) refuse(fd int32) {
	closeFD(fd) // with a reset, which it has from its listener
}

// watch registers an end with the worker's epoll set.
func (w *worker) watch(c *conn, i int) bool {
	e := &c.ends[i]
	return w.poll.control(unix.EPOLL_CTL_ADD, e.fd, e.interest(), c.slot<<1|int32(i), c.gen) == 0
}

// waitForRoom has the kernel tell when the end, just found full, takes bytes
// again. Most connections never get here, and without EPOLLOUT an
// acknowledgement of theirs is no event.
func (w *worker) waitForRoom(c *conn, i int) {
	e := &c.ends[i]
	e.flags &^= writable
	if e.is(wantOut) {
		return
	}
	e.flags |= wantOut
	w.poll.control(unix.EPOLL_CTL_MOD, e.fd, e.interest(), c.slot<<1|int32(i), c.gen)
}

func (e *end) interest() uint32 {
	events := uint32(unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET)
	if e.is(wantOut) {
		events |= unix.EPOLLOUT
	}
	return events
}

// event takes in what the kernel says about one end.
func (w *worker) event(c *conn, i int, events uint32) {
	e := &c.ends[i]
	if events&(unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.flags |= readable | told
	}
	// The end of the stream has no event of its own if it is announced with
	// the last bytes, and at urgent data a read stops short of what follows.
	if events&(unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.flags |= unsure
	}
	if events&unix.EPOLLERR != 0 {
		e.flags |= broken
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLPRI|unix.EPOLLERR) == unix.EPOLLRDHUP && !c.shared {
		e.flags |= last
	}
	if c.state == connecting && !w.connected(c, i, events) {
		return
	}
	if events&unix.EPOLLOUT != 0 {
		e.flags |= writable
	}
	w.enqueue(c)
}

// finish closes a connection of which both directions have ended. Everything
// read has been written, and nothing is left to read, so the close sends a
// FIN where none was sent yet, and never a RST.
func (w *worker) finish(c *conn) {
	for i := range c.ends {
		sockopt.EndOnClose(int(c.ends[i].fd))
	}
	w.end(c, finished)
}

// end closes both ends, with a reset unless finish has seen to that: neither
// may take what it has got for a whole.
func (w *worker) end(c *conn, why cause) {
	if f := c.flow; f != nil {
		delete(f.listener.flows, f.key)
	}
	for i := range c.ends {
		e := &c.ends[i]
		if e.fd < 0 {
			continue
		}
		w.letGo(e)
		if c.shared {
			// Another descriptor may keep the socket open: take it out of the
			// epoll set and end it by hand.
			w.poll.remove(e.fd)
			if why != finished {
				disconnect(e.fd)
			} else if !e.is(finSent) {
				shutdownWrite(e.fd)
			}
		}
		closeFD(e.fd)
	}
	w.wheel.remove(&w.slab, c)
	c.link.leave(why)
	w.slab.give(c)
	w.load.Store(int64(w.slab.live))
}

// letGo gives back what holds bytes read from e, with the bytes if there are
// any.
func (w *worker) letGo(e *end) {
	if e.pipe != nil {
		if e.held > 0 {
			w.pipes.discard(e.pipe)
		} else {
			w.pipes.put(e.pipe)
		}
		e.pipe = nil
	}
	if e.spill != nil {
		w.spills.put(e.spill)
		e.spill = nil
	}
	e.held = 0
}
