package traffic

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// datagram is one packet: its kind, the phase it was sent in, and what run of
// a client it belongs to. A tally puts the account of the run behind that.
type datagram [RequestSize]byte

const (
	wantCount byte = 'c' // count it
	wantEcho  byte = 'e' // send it back
	wantTally byte = 't' // send back what was counted of its run
)

func newDatagram(want byte, run, number uint64) (d datagram) {
	d[0] = want
	binary.LittleEndian.PutUint64(d[8:], run)
	binary.LittleEndian.PutUint64(d[16:], number)
	return d
}

func (d *datagram) run() uint64    { return binary.LittleEndian.Uint64(d[8:]) }
func (d *datagram) number() uint64 { return binary.LittleEndian.Uint64(d[16:]) }

// measured tells datagrams of the time that counts from those of the warm-up.
func (d *datagram) measured() bool     { return d[1] != 0 }
func (d *datagram) setMeasured()       { d[1] = 1 }
func (d *datagram) account() account   { return parseAccount(d[24:]) }
func (d *datagram) tell(of account)    { of.append(d[24:24]) }
func (d *datagram) setNumber(n uint64) { binary.LittleEndian.PutUint64(d[16:], n) }

// packets is the state of the thread that serves UDP.
type packets struct {
	fd    int
	batch *batch

	// The run that is being counted; a client at a time has one.
	run     uint64
	account account // in datagrams
	first   time.Time
}

func (s *Server) servePackets(p *poll) error {
	runtime.LockOSThread()
	t := &packets{fd: s.udp, batch: newBatch(false)}
	for {
		events, err := p.wait(-1)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if int(ev.Fd) == s.stop {
				return nil
			}
			if err := t.serve(); err != nil {
				return err
			}
		}
	}
}

// serve works off one batch.
func (t *packets) serve() error {
	b := t.batch
	for i := range b.headers {
		b.headers[i].Namelen = unix.SizeofSockaddrInet4
	}
	n, err := b.receive(t.fd)
	if err != nil {
		// A client that is gone is told of by an error of the next call.
		if again(err) || err == unix.ECONNREFUSED {
			return nil
		}
		return fmt.Errorf("receiving datagrams: %w", err)
	}
	now, answers := time.Now(), 0
	for i := range n {
		switch d := &b.bodies[i]; d[0] {
		case wantCount:
			t.count(d, now)
		case wantTally:
			t.tally(d)
			answers++
		default:
			answers++
		}
	}
	if answers == n {
		b.send(t.fd, n) // what there is no room for is lost, as datagrams are
	} else if answers > 0 {
		t.answerSome(n)
	}
	return nil
}

func (t *packets) count(d *datagram, now time.Time) {
	if d.run() != t.run {
		t.run, t.account = d.run(), account{}
	}
	t.account.total++
	if !d.measured() {
		return
	}
	if t.account.bytes++; t.account.bytes == 1 {
		t.first = now
	}
	t.account.took = now.Sub(t.first)
}

func (t *packets) tally(d *datagram) {
	if d.run() == t.run {
		d.tell(t.account)
	} else {
		d.tell(account{})
	}
}

// answerSome sends back those datagrams of a batch that are not only counted.
func (t *packets) answerSome(n int) {
	for i := range n {
		d, peer := &t.batch.bodies[i], &t.batch.peers[i]
		if d[0] != wantCount {
			to := unix.SockaddrInet4{Addr: peer.Addr, Port: int(peer.Port<<8 | peer.Port>>8)}
			unix.Sendto(t.fd, d[:], unix.MSG_DONTWAIT, &to)
		}
	}
}
