package tunnel

// sender is what the wire keeps between two writes of yamux's: a header and
// the body after it come in two.
type sender struct {
	header frame
	body   int  // bytes to come; 0 between frames
	skip   bool // they are for a stream that is gone
}

// Write takes a header or a body from yamux, and returns once it is in the
// outbox. yamux looks at nothing but the error.
func (w *wire) Write(p []byte) (int, error) {
	if s := &w.sender; s.body > 0 {
		// yamux writes a body whole.
		s.body = 0
		if !s.skip && !w.out.put(s.header, p) {
			return 0, ErrClosed
		}
		return len(p), nil
	}
	f, err := parseFrame(p)
	if err != nil {
		return 0, err
	}
	f, pass, err := w.send(f)
	if err != nil {
		return 0, err
	}
	if f.kind == dataFrame {
		w.sender = sender{header: f, body: int(f.length), skip: !pass}
		pass = pass && f.length == 0
	}
	if pass && !w.out.put(f, nil) {
		return 0, ErrClosed
	}
	if pass && f.has(finFlag) {
		w.sentEnd(f.stream)
	}
	return len(p), nil
}

// send enters a frame of yamux's into the books. It returns the frame as it is
// to be sent, and whether it is.
func (w *wire) send(f frame) (_ frame, pass bool, err error) {
	if f.kind > windowFrame {
		// The wire pings and says good-bye itself. yamux does so only to
		// complain, and then the session is over.
		return f, f.kind == goAwayFrame, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return f, false, w.err
	}
	if f.has(synFlag) && !w.peerEnds {
		// Queued while mu is held, it is ahead of the answer to drainPing if
		// the peer is to expect it. yamux sends it without a body.
		w.add(&ledger{id: f.stream, local: true})
		f.length = 0
		w.out.queue(f)
		return f, false, nil
	}
	l := w.streams[f.stream]
	if l == nil || l.resetSent {
		return f, false, nil
	}
	if f.kind == windowFrame {
		if f.flags == 0 {
			return f, false, nil
		}
		f.length = 0 // credit is given by consume
	} else if l.finSent {
		// yamux lets a Write overtake a Close that comes at the same time. To
		// the peer data after the end is a violation.
		return f, false, nil
	}
	if f.kind == dataFrame {
		l.credit -= int64(f.length)
	}
	l.finComing = l.finComing || f.has(finFlag)
	return f, true, nil
}

// sentEnd is for an end of a stream that is in the outbox. Not before: with
// the last stream the session may end, and the outbox with it. yamux sends the
// end in a frame without a body.
func (w *wire) sentEnd(id uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.streams[id]; l != nil {
		l.finSent = true
		w.checkFinished(l)
	}
}

// checkFinished takes a stream that both sides have closed out of the table,
// as yamux does. Caller holds mu.
func (w *wire) checkFinished(l *ledger) {
	if l.finSent && l.finSeen {
		w.remove(l)
	}
}

// reset aborts a stream at this side: the peer is told, nothing more is sent
// for the stream, and what comes is discarded until the peer has confirmed.
// Caller holds mu.
func (w *wire) reset(l *ledger) {
	w.forget(l)
	if l.removed || l.resetSent {
		return
	}
	l.resetSent = true
	w.counts.resets.Add(1)
	w.out.queue(resetFrame(l.id))
}

func resetFrame(id uint32) frame {
	return frame{kind: windowFrame, flags: rstFlag, stream: id}
}

// abort is reset for the owner of the stream. It reports whether yamux has to
// be told to forget it.
func (w *wire) abort(l *ledger) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reset(l)
	return l.kept
}

// abandon is for a stream that its owner has closed altogether, after its end
// was sent: should the peer send more, it is reset, as by a closed socket.
func (w *wire) abandon(l *ledger) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(l)
	l.orphan = true
}

// unread tells whether l has received what its reader has not got.
func (w *wire) unread(l *ledger) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return l.received > l.consumed
}
