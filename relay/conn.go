package relay

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
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

// begin takes over an accepted connection: finds its link and starts to
// connect to the source.
func (w *worker) begin(fd int32, route func(netip.AddrPort) *Link) {
	local, errno := localAddr(fd)
	var l *Link
	if errno == 0 {
		l = route(local)
	}
	if l == nil {
		w.engine.unrouted.Add(1)
		w.refuse(fd)
		return
	}
	l.use(w.engine)
	if !l.admit() {
		w.refuse(fd)
		return
	}
	source, to, err := l.Source.Socket(local.Port())
	if err != nil {
		l.leave(noSocket)
		w.refuse(fd)
		return
	}
	c := w.open(fd, int32(source), l)
	c.state = connecting
	setOptions(int32(source))
	switch errno := startConnect(int32(source), to); errno {
	case 0, unix.EINPROGRESS, unix.EINTR:
	default:
		w.abort(c, connectCause(errno))
		return
	}
	if !w.shortcut(c) {
		return
	}
	if !w.watch(c, fromSource) || !w.watch(c, fromRecipient) {
		w.abort(c, noSocket)
		return
	}
	w.schedule(c)
}

// shortcut tries to pass the recipient's first bytes on at once. Between two
// sockets of one host the whole handshake takes place within connect, which
// says all the same that it is in progress, and many clients have sent their
// request by then. It saves the first event of both sockets. It is false when
// the connection is gone.
func (w *worker) shortcut(c *conn) bool {
	recipient, source := &c.ends[fromRecipient], &c.ends[fromSource]
	buf := w.spare[:]
	n, errno := w.calls.recv(recipient.fd, buf)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		n = 0
	case errno != 0:
		w.abort(c, abandoned)
		return false
	case n == 0:
		recipient.flags = ended
	case n == len(buf):
		recipient.flags = bulk
	}
	m := 0
	if n > 0 {
		m, errno = w.calls.send(source.fd, buf[:n])
		switch {
		case errno == 0:
			w.copiedBytes += uint64(m)
			recipient.moved = uint64(m)
			w.count(c.link, fromRecipient, uint64(m))
		case errno == unix.EAGAIN || errno == unix.EINTR:
			m = 0
		default:
			w.abort(c, connectCause(errno))
			return false
		}
		w.hold(recipient, buf[m:n])
	}
	if m > 0 {
		c.state = established
		recipient.flags |= writable
		source.flags = writable
	}
	if m == 0 || m < n {
		// Until the source has answered, the recipient is only watched for a
		// reset; what more it sends waits in its socket.
		source.flags = wantOut
	}
	return true
}

// join takes over two connected sockets.
func (w *worker) join(a, b int32, l *Link) {
	c := w.open(a, b, l)
	c.state, c.shared = established, true
	for i := range c.ends {
		setInt(c.ends[i].fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		// A unix socket's read stops between messages of different senders.
		c.ends[i].flags = writable | unsure
		if !w.watch(c, i) {
			w.abort(c, noSocket)
			return
		}
	}
	w.schedule(c)
}

func (w *worker) open(recipient, source int32, l *Link) *conn {
	c := w.slab.take()
	c.ends[fromRecipient].fd, c.ends[fromSource].fd = recipient, source
	c.link, c.born, c.active = l, w.now, w.now
	w.load.Store(int64(w.slab.live))
	return c
}

func (w *worker) refuse(fd int32) {
	resetOnClose(fd)
	closeFD(fd)
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
	if c.state == connecting && !w.connected(c, i, events) {
		return
	}
	if events&unix.EPOLLOUT != 0 {
		e.flags |= writable
	}
	w.enqueue(c)
}

// connected turns an event of a connecting connection into its next state.
// It is false when there is nothing to move.
func (w *worker) connected(c *conn, i int, events uint32) bool {
	if i == fromRecipient {
		// A recipient that has only sent its FIN may well wait for an
		// answer. One that has reset has gone.
		if events&unix.EPOLLERR != 0 {
			w.abort(c, abandoned)
		}
		return false
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		errno, _ := getInt(c.ends[fromSource].fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if errno != 0 || events&unix.EPOLLOUT == 0 {
			w.abort(c, connectCause(syscall.Errno(errno)))
			return false
		}
	}
	if events&unix.EPOLLOUT == 0 {
		return false
	}
	c.state = established
	c.ends[fromRecipient].flags |= writable
	return true
}

// finish closes a connection of which both directions have ended. Everything
// read has been written, and nothing is left to read, so the close sends a
// FIN where none was sent yet, and never a RST.
func (w *worker) finish(c *conn) { w.end(c, finished) }

// abort resets both ends: neither may take what it has got for a whole.
func (w *worker) abort(c *conn, why cause) {
	if c.flow != nil {
		w.end(c, why)
		return
	}
	for i := range c.ends {
		resetOnClose(c.ends[i].fd)
	}
	w.end(c, why)
}

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
			if why == finished && !e.is(finSent) {
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
			w.abort(c, why)
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
	if !c.shared {
		setReno(c.ends[fromSource].fd)
	}
}
