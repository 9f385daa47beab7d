package tunnel

import (
	"bufio"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// wire lies between yamux and the transport. yamux keeps the streams; the wire
// sees every frame on its way in and out, and does what the library has no
// call for:
//
//   - it resets streams. yamux understands a reset and offers no way to send
//     one (hashicorp/yamux#133). The frame is yamux's own; since it is made
//     behind the library's back it is confirmed by one in return, which is
//     what takes the stream from the library's tables on both sides.
//   - it owns the receive windows: yamux is told of a size that is never
//     reached, and the credit the peer gets is counted in credit.go. So a
//     window grows with the round trip, and a session's memory is bounded.
//   - it knows whether the end of a stream came from the peer. When a session
//     dies, yamux reports io.EOF for the streams that were cut off.
//   - it gathers what waits to be written, see outbox.go.
//   - it checks what the peer sends, since yamux trusts it: how many streams
//     it opens and with which ids, its windows, how often it pings.
//
// Read is called by yamux's receiving goroutine, Write by its sending one, and
// out.loop has a goroutine of its own. mu comes before out.mu.
type wire struct {
	config Config
	conn   net.Conn
	client bool
	out    outbox
	sender sender
	reader reader
	ear    ear

	opening chan struct{} // holds one for each stream the peer has not acknowledged
	drained chan struct{} // closed when the session may end, see drain
	ends    chan struct{} // closed when the peer drains the session

	answered chan struct{} // closed when the peer has answered for the first time
	probe    probe
	rtt      roundTrip
	counts   counters

	mu         sync.Mutex
	streams    map[uint32]*ledger
	incoming   int // how many of them the peer has opened
	unaccepted int // streams yamux has not handed to Accept yet, those reset meanwhile included
	draining   bool
	settled    bool  // the peer knows that the session drains
	peerEnds   bool  // the peer drains the session
	err        error // why the wire is dead
}

type counters struct {
	heard     atomic.Uint64 // reads that brought something
	read      atomic.Uint64 // bytes
	opened    atomic.Uint64 // streams by this side
	accepted  atomic.Uint64 // streams of the peer
	refused   atomic.Uint64 // streams of the peer above a limit
	resets    atomic.Uint64 // streams reset, by either side
	discarded atomic.Uint64 // bytes for streams that were gone
}

// ledger is what the wire knows of one stream. Its fields belong to wire.mu.
type ledger struct {
	id      uint32
	local   bool // opened by this side
	acked   bool // of a local one: the peer has it
	removed bool // no longer in wire.streams

	finSent, finSeen     bool
	finComing            bool // finSent is about to be set
	resetSent, resetSeen bool
	orphan               bool // this side has closed it altogether
	kept                 bool // yamux keeps it after a reset, for what was not read
	rests                int  // calls of rest since

	receiving
	credit int64 // bytes the peer lets this side send
	socket int   // that the peer has handed over and nobody has taken, or noSocket

	stream *Stream // nil until it is handed out
}

func newWire(conn net.Conn, config Config, client bool) *wire {
	w := &wire{
		config:  config,
		conn:    conn,
		client:  client,
		streams: make(map[uint32]*ledger),
		opening: make(chan struct{}, config.MaxOpening),
		drained: make(chan struct{}),
		ends:    make(chan struct{}),

		answered: make(chan struct{}),
	}
	w.out.init(conn)
	w.ear.w = w
	w.reader.in = bufio.NewReaderSize(&w.ear, readAhead)
	return w
}

// own tells whether id is of a stream that this side opens: those of the
// client are odd.
func (w *wire) own(id uint32) bool { return id%2 == 1 == w.client }

// add enters a stream. Caller holds mu.
func (w *wire) add(l *ledger) {
	l.socket = noSocket
	l.receiving = receiving{granted: firstWindow, window: firstWindow, grantedAt: time.Now()}
	l.credit = firstWindow
	w.streams[l.id] = l
	if l.local {
		w.counts.opened.Add(1)
		return
	}
	w.incoming++
	w.unaccepted++
	w.counts.accepted.Add(1)
}

// remove takes a stream out of the table. Caller holds mu.
func (w *wire) remove(l *ledger) {
	if l.removed {
		return
	}
	l.removed = true
	delete(w.streams, l.id)
	w.acknowledge(l)
	if !l.local {
		w.incoming--
	}
	w.checkDrained()
}

// acknowledge gives back the slot of a stream under way. Caller holds mu.
func (w *wire) acknowledge(l *ledger) {
	if l.local && !l.acked {
		l.acked = true
		w.giveSlotBack()
	}
}

// giveSlotBack lets another stream be opened.
func (w *wire) giveSlotBack() {
	select {
	case <-w.opening:
	default:
	}
}

// attach gives the ledger of a stream that yamux has just handed out to s. It
// returns nil if the stream has been reset meanwhile.
func (w *wire) attach(s *Stream) *ledger {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := s.mux.StreamID()
	if !w.own(id) {
		w.unaccepted--
	}
	l := w.streams[id]
	if l == nil || l.resetSent {
		return nil
	}
	l.stream = s
	return l
}

// end has the owner of l find out. Caller holds wire.mu.
func (l *ledger) end(how int32) {
	if l.stream != nil {
		l.stream.ended.Store(how)
	}
}

// fail ends the wire at once, for the reason given. It is called by anyone,
// any number of times; the first reason stays.
func (w *wire) fail(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = err
	var over []*Stream
	for _, l := range w.streams {
		over = append(over, l.stream)
		if l.stream == nil {
			w.forget(l)
		}
		w.remove(l)
		l.end(wasLost)
	}
	w.mu.Unlock()

	w.out.kill()
	w.conn.Close()
	w.ear.close()
	for _, s := range over {
		s.over()
	}
}

func (w *wire) LocalAddr() net.Addr  { return w.conn.LocalAddr() }
func (w *wire) RemoteAddr() net.Addr { return w.conn.RemoteAddr() }

// Close is yamux's way to say that it is done with the transport.
func (w *wire) Close() error {
	w.fail(ErrClosed)
	return nil
}

// cause is why the wire is dead, nil while it is not.
func (w *wire) cause() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// drain announces the end of the session. The peer opens no streams once it
// has read that; those it opened before are still welcome. drained is closed
// when there is no stream left and none on its way.
func (w *wire) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining || w.err != nil {
		return
	}
	w.draining = true
	w.out.queue(frame{kind: goAwayFrame, length: goAwayNormal})
	// The answer to this ping comes after every stream that the peer opened
	// before it read the announcement. yamux's own GoAway would refuse those.
	w.out.queue(frame{kind: pingFrame, flags: synFlag, length: drainPing})
}

// peerDrains is for the peer's announcement.
func (w *wire) peerDrains() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.peerEnds {
		w.peerEnds = true
		close(w.ends)
	}
}

// checkDrained closes drained when it is time. Caller holds mu.
func (w *wire) checkDrained() {
	if !w.draining || !w.settled || len(w.streams) > 0 || w.err != nil {
		return
	}
	select {
	case <-w.drained:
	default:
		close(w.drained)
	}
}
