package traffic

import (
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// lostAfter is when a datagram that did not come back counts as lost.
const lostAfter = 50 * time.Millisecond

// echoer is a client that keeps one datagram on its way on each of its
// sockets.
type echoer struct {
	plan    Plan
	clock   stopwatch
	poll    *poll
	flows   map[int32]*flow
	body    datagram
	latency histogram
	lost    uint64
	result  Result
}

// flow is one socket and the datagram that is on its way.
type flow struct {
	fd     int
	number uint64
	since  time.Time
}

func echo(p Plan) (Result, error) {
	poll, err := newPoll()
	if err != nil {
		return Result{}, err
	}
	x := &echoer{plan: p, poll: poll, flows: make(map[int32]*flow), body: newDatagram(wantEcho, rand.Uint64(), 0)}
	defer x.close()
	for range p.Conns {
		fd, err := connectPackets(sockaddr(p.Server))
		if err != nil {
			return Result{}, err
		}
		x.flows[int32(fd)] = &flow{fd: fd}
		if err := poll.watch(fd, unix.EPOLLIN); err != nil {
			return Result{}, err
		}
	}
	x.clock = p.start()
	now := time.Now()
	for _, f := range x.flows {
		x.ask(f, now)
	}
	for checked := now; !x.clock.over(now); {
		events, err := poll.wait(int(lostAfter.Milliseconds()))
		if err != nil {
			return Result{}, err
		}
		for _, ev := range events {
			x.serve(x.flows[ev.Fd])
		}
		if now = time.Now(); now.Sub(checked) >= lostAfter {
			checked = now
			x.replaceLost(now)
		}
	}
	r := x.result
	r.Latency = x.latency.latency()
	r.Seconds = now.Sub(x.clock.warm).Seconds()
	r.TotalCount, r.Sent = r.Arrived, r.Arrived+x.lost
	r.Bytes, r.TotalBytes = r.Count*RequestSize, r.TotalCount*RequestSize
	return r, nil
}

func (x *echoer) close() {
	for _, f := range x.flows {
		unix.Close(f.fd)
	}
	x.poll.close()
}

func (x *echoer) ask(f *flow, now time.Time) {
	f.number++
	f.since = now
	x.body.setNumber(f.number)
	unix.Write(f.fd, x.body[:]) // one that cannot be sent is as lost as others
}

func (x *echoer) serve(f *flow) {
	var answer datagram
	n, err := unix.Read(f.fd, answer[:])
	if err != nil || n != len(answer) || answer.run() != x.body.run() || answer.number() != f.number {
		return // or it comes late, and was given up
	}
	now := time.Now()
	x.result.Arrived++
	if x.clock.measured(now) {
		x.result.Count++
		x.latency.add(now.Sub(f.since))
	}
	x.ask(f, now)
}

func (x *echoer) replaceLost(now time.Time) {
	for _, f := range x.flows {
		if now.Sub(f.since) > lostAfter {
			x.lost++
			x.ask(f, now)
		}
	}
}
