package tunnel

import (
	"net"
	"sync"
	"sync/atomic"
)

const (
	// highWater is how many bytes wait for the transport before data has to
	// wait outside. A small frame waits behind no more than twice this.
	highWater = 128 << 10
	// flooded is how many bytes of answers may wait on top: a peer that asks
	// and does not read what it is told is up to no good.
	flooded = 1 << 20
)

// outbox gathers what is to be written while the write before it is under
// way, so that the frames of many streams, headers and bodies, are one record
// and one system call.
type outbox struct {
	conn net.Conn

	written atomic.Uint64 // bytes
	writes  atomic.Uint64

	mu       sync.Mutex
	more     sync.Cond // there is something to do for loop
	room     sync.Cond // pending has fallen below highWater, or is not to grow any more
	pending  []byte
	spare    []byte // takes the place of pending while that is written
	sockets  []enclosed
	finished bool // what is pending is the last
	dead     bool // and nobody wants that
}

func (o *outbox) init(conn net.Conn) {
	o.conn = conn
	o.more.L = &o.mu
	o.room.L = &o.mu
}

// put adds a frame once there is room, and reports whether it did: false is
// the end.
func (o *outbox) put(f frame, body []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.pending) >= highWater && !o.finished {
		o.room.Wait()
	}
	if o.finished {
		return false
	}
	o.pending = append(f.appendTo(o.pending), body...)
	o.more.Signal()
	return true
}

// queue adds a frame without a body. It never waits.
func (o *outbox) queue(f frame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.finished {
		o.pending = f.appendTo(o.pending)
		o.more.Signal()
	}
}

// enclose adds a frame that takes a socket along, and owns fd. It reports
// false, and fd stays the caller's, if nothing is to be added.
func (o *outbox) enclose(f frame, fd int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.finished {
		return false
	}
	o.sockets = append(o.sockets, enclosed{len(o.pending), fd})
	o.pending = f.appendTo(o.pending)
	o.more.Signal()
	return true
}

// overflows tells whether queue has been called too often for what the peer
// reads.
func (o *outbox) overflows() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.pending) > flooded
}

// finish lets what is pending be written, and ends loop then.
func (o *outbox) finish() { o.end(false) }

// kill ends loop; the transport has to be closed to end a write under way.
func (o *outbox) kill() { o.end(true) }

func (o *outbox) end(dead bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.finished = true
	o.dead = o.dead || dead
	o.more.Broadcast()
	o.room.Broadcast()
}

// loop writes what is put into the outbox until it ends, or a write fails.
func (o *outbox) loop() error {
	for {
		batch, sockets := o.take()
		if batch == nil {
			return nil
		}
		if err := o.write(batch, sockets); err != nil {
			return err
		}
		o.written.Add(uint64(len(batch)))
		o.writes.Add(1)
		o.giveBack(batch[:0])
	}
}

// write writes a batch. A socket goes along with the first byte of its frame.
func (o *outbox) write(batch []byte, sockets []enclosed) error {
	defer closeAll(sockets)
	done := 0
	for _, s := range sockets {
		if s.at > done {
			if _, err := o.conn.Write(batch[done:s.at]); err != nil {
				return err
			}
		}
		done = s.at + headerSize
		if err := handOver(o.conn, batch[s.at:done], s.fd); err != nil {
			return err
		}
	}
	if done == len(batch) {
		return nil
	}
	_, err := o.conn.Write(batch[done:])
	return err
}

// take returns what is pending; nil is the end.
func (o *outbox) take() ([]byte, []enclosed) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.pending) == 0 && !o.finished {
		o.more.Wait()
	}
	if len(o.pending) == 0 || o.dead {
		closeAll(o.sockets)
		o.sockets = nil
		return nil, nil
	}
	batch, sockets := o.pending, o.sockets
	o.pending, o.spare, o.sockets = o.spare, nil, nil
	o.room.Broadcast()
	return batch, sockets
}

func (o *outbox) giveBack(buffer []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spare = buffer
}

// trim gives the buffers of an idle outbox to the garbage collector.
func (o *outbox) trim() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spare = nil
	if len(o.pending) == 0 {
		o.pending = nil
	}
}
