package traffic

import (
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// flood sends datagrams as fast as it goes, or at a rate, and then asks the
// server how many arrived. The rate measured is that of arrival.
func flood(p Plan) (r Result, err error) {
	fd, err := connectPackets(sockaddr(p.Server))
	if err != nil {
		return r, err
	}
	defer unix.Close(fd)
	run := rand.Uint64()
	batch := newBatch(true)
	fill := func(measured bool) {
		for i := range batch.bodies {
			batch.bodies[i] = newDatagram(wantCount, run, 0)
			if measured {
				batch.bodies[i].setMeasured()
			}
		}
	}
	fill(false)
	clock, warm := p.start(), false
	start := time.Now()
	for now := start; !clock.over(now); now = time.Now() {
		if !warm && clock.measured(now) {
			warm = true
			fill(true)
		}
		n := batchSize
		if p.Rate > 0 {
			due := int(now.Sub(start).Seconds()*float64(p.Rate)) - int(r.Sent)
			if n = min(due, batchSize); n <= 0 {
				nap()
				continue
			}
		}
		n, err := batch.send(fd, n)
		if err != nil && !again(err) && err != unix.ECONNREFUSED && err != unix.ENOBUFS {
			return r, fmt.Errorf("sending datagrams to %v: %w", p.Server, err)
		}
		r.Sent += uint64(n)
	}
	a, err := tally(fd, run)
	if err != nil {
		return r, fmt.Errorf("asking %v what arrived: %w", p.Server, err)
	}
	r.Arrived, r.TotalCount, r.Count = a.total, a.total, a.bytes
	r.Bytes, r.TotalBytes = r.Count*RequestSize, r.TotalCount*RequestSize
	r.Seconds = max(a.took, time.Millisecond).Seconds()
	return r, nil
}

// nap sleeps as short as the kernel does.
func nap() {
	unix.Nanosleep(&unix.Timespec{Nsec: 20_000}, nil)
}

// tally asks what arrived of a run, until two answers agree: datagrams may
// still be on their way.
func tally(fd int, run uint64) (account, error) {
	last, question := account{}, newDatagram(wantTally, run, 0)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		question.setNumber(question.number() + 1)
		if _, err := unix.Write(fd, question[:]); err != nil && !again(err) && err != unix.ENOBUFS {
			return last, err
		}
		var answer datagram
		for wait := 100; ; wait = 0 {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, wait); n <= 0 || err != nil {
				break
			}
			unix.Read(fd, answer[:])
		}
		if answer.number() != question.number() {
			continue
		}
		if a := answer.account(); a == last {
			return a, nil
		} else {
			last = a
		}
		time.Sleep(10 * time.Millisecond)
	}
	return last, errSilent
}
