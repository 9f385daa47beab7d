package tunnel

import (
	"bufio"
	"fmt"
	"io"
	"time"
)

// readAhead is how many bytes are read before it is known which stream they
// are for. What a frame's body has beyond it goes straight to where yamux
// wants it.
const readAhead = 4096

// reader is what the wire keeps between two reads of yamux's.
type reader struct {
	in     *bufio.Reader
	header []byte // of the header that has passed, what yamux has not read yet
	body   int    // bytes to come of the data frame being read
	skip   bool   // they are for a stream that is gone

	pings pings
	space [headerSize]byte
}

// Read gives yamux the frames that are for it.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.read(p)
	if err != nil {
		if err == io.EOF {
			err = ErrEnded
		}
		w.fail(err)
	}
	return n, err
}

// read does not wait once it has something to return.
func (w *wire) read(p []byte) (n int, err error) {
	r := &w.reader
	for n < len(p) {
		switch {
		case len(r.header) > 0:
			k := copy(p[n:], r.header)
			r.header = r.header[k:]
			n += k
		case r.body == 0:
			if n > 0 && r.in.Buffered() < headerSize {
				return n, nil
			}
			if err := w.next(); err != nil {
				return n, err
			}
		case n > 0 && r.in.Buffered() == 0:
			return n, nil
		case r.skip:
			k, err := r.in.Discard(min(r.body, max(r.in.Buffered(), 1)))
			r.body -= k
			w.counts.discarded.Add(uint64(k))
			if err != nil {
				return n, err
			}
		default:
			k, err := r.in.Read(p[n:min(len(p), n+r.body)])
			r.body -= k
			n += k
			if err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// next reads a header, and stages it if it is for yamux.
func (w *wire) next() error {
	r := &w.reader
	b, err := r.in.Peek(headerSize)
	if err != nil {
		if len(b) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	f, err := parseFrame(b)
	if err != nil {
		return err
	}
	r.in.Discard(headerSize)
	seen, pass, err := w.receive(f)
	if err != nil {
		return err
	}
	if w.out.overflows() {
		return violation("it asks and does not read the answers")
	}
	if f.kind == dataFrame {
		r.body, r.skip = int(f.length), !pass || seen.kind != dataFrame
	}
	if pass {
		r.header = seen.appendTo(r.space[:0])
	}
	return nil
}

// receive enters a frame of the peer into the books. It returns the frame as
// yamux is to see it, and whether it is.
func (w *wire) receive(f frame) (seen frame, pass bool, err error) {
	switch f.kind {
	case pingFrame:
		return f, false, w.pinged(f)
	case goAwayFrame:
		if f.length != goAwayNormal {
			return f, false, fmt.Errorf("the peer ended the session with code %d", f.length)
		}
		w.peerDrains()
		return f, true, nil
	case socketFrame:
		return f, false, w.receiveSocket(f.stream)
	}
	w.mu.Lock()
	if err := w.err; err != nil {
		w.mu.Unlock()
		return f, false, err
	}
	f, pass, over, err := w.receiveStream(f)
	w.mu.Unlock()
	over.over()
	return f, pass, err
}

// receiveStream is receive for a frame of a stream. Caller holds mu. A stream
// that is over is told so once mu is free.
func (w *wire) receiveStream(f frame) (seen frame, pass bool, over *Stream, err error) {
	if f.has(synFlag) {
		if accepted, err := w.open(f.stream); !accepted {
			return f, false, nil, err
		}
	}
	l := w.streams[f.stream]
	if l == nil {
		return f, false, nil, nil // it was reset, or refused, while this was on its way
	}
	if f.has(rstFlag) {
		f, pass = w.receiveReset(l)
		return f, pass, l.stream, nil
	}
	if l.resetSent {
		if !f.has(finFlag) || !l.finComing {
			return f, false, nil, nil
		}
		// With both ends the peer had no stream any more when the reset came, and
		// confirms nothing.
		f = resetFrame(l.id)
		if l.local && !l.acked {
			f.flags |= ackFlag // as in receiveReset
		}
		w.remove(l)
		return f, true, nil, nil
	}
	switch {
	case l.finSeen && (f.has(finFlag) || f.kind == dataFrame && f.length > 0):
		return f, false, nil, violation("more of a stream after its end")
	case f.kind == dataFrame:
		if pass, over, err = w.receiveData(l, int64(f.length)); !pass {
			return f, false, over, err
		}
	default:
		if l.credit += int64(f.length); l.credit > maxCredit {
			return f, false, nil, violation("a window of more than 1 GiB") // yamux lets the sum wrap around
		}
	}
	if f.has(ackFlag) && (!l.local || l.acked) {
		f.flags &^= ackFlag // yamux would count it for another stream
	}
	if f.has(ackFlag) {
		w.acknowledge(l)
	}
	if f.has(finFlag) {
		l.finSeen = true
		w.checkFinished(l)
	}
	return f, true, over, nil
}

// maxCredit bounds what a peer may let this side send.
const maxCredit = 1 << 30

// open enters a stream that the peer opens, and reports whether it is
// accepted. Caller holds mu.
func (w *wire) open(id uint32) (bool, error) {
	switch {
	case w.own(id):
		return false, violation("a stream with a number of the other side")
	case w.streams[id] != nil:
		return false, violation("a stream that is there already")
	case w.incoming >= w.config.MaxStreams || w.unaccepted >= w.config.MaxStreams:
		w.counts.refused.Add(1)
		w.out.queue(resetFrame(id))
		return false, nil
	}
	w.add(&ledger{id: id})
	return true, nil
}

// receiveReset is for a reset by the peer: it confirms one of this side, or is
// to be confirmed. It returns what yamux sees of it. Caller holds mu.
//
// A reset does not overtake what was sent before it: yamux would drop what its
// reader has not got, so it sees an end of the stream instead, and forgets the
// stream when the owner closes it.
func (w *wire) receiveReset(l *ledger) (f frame, pass bool) {
	f, pass = resetFrame(l.id), true
	if l.received > l.consumed && !l.forgotten && l.stream != nil {
		f.flags, pass = finFlag, !l.finSeen
		l.kept = true
	}
	if l.local && !l.acked {
		// yamux forgets to give back what a stream under way has of it unless
		// it sees the stream acknowledged.
		f.flags |= ackFlag
	}
	l.resetSeen = true
	if !l.resetSent {
		w.counts.resets.Add(1)
		w.out.queue(resetFrame(l.id))
	}
	if !l.kept {
		w.forget(l)
	}
	w.narrow(l)
	w.remove(l)
	l.end(wasReset)
	return f, pass
}

// receiveData is for n bytes of data, and reports whether they are for yamux.
// Caller holds mu.
func (w *wire) receiveData(l *ledger, n int64) (pass bool, over *Stream, err error) {
	if l.received+n > l.granted {
		return false, nil, violation("data beyond a stream's window")
	}
	if l.orphan && n > 0 {
		w.reset(l)
		return false, nil, nil
	}
	l.received += n
	l.resting = false
	if w.config.Memory.keep(n) {
		return true, nil, nil
	}
	fattest := w.fattest()
	w.reset(fattest)
	fattest.end(wasOverrun)
	return fattest != l, fattest.stream, nil
}

// pinged is for a ping, or the answer to one.
func (w *wire) pinged(f frame) error {
	if f.has(synFlag) {
		if !w.reader.pings.allow(time.Now()) {
			return violation("too many pings")
		}
		w.out.queue(frame{kind: pingFrame, flags: ackFlag, length: f.length})
		return nil
	}
	w.pong(f.length)
	return nil
}

// pings counts the pings of a peer. Each costs an answer.
type pings struct {
	since time.Time
	n     int
}

// maxPings is how many pings a peer may send in a second.
const maxPings = 1000

func (p *pings) allow(now time.Time) bool {
	if now.Sub(p.since) > time.Second {
		*p = pings{since: now}
	}
	p.n++
	return p.n <= maxPings
}
