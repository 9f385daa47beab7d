package traffic

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// exchanger is a client that keeps its connections busy with requests, one at
// a time on each.
type exchanger struct {
	plan  Plan
	clock stopwatch
	poll  *poll
	conns []*clientConn // by descriptor

	request [RequestSize]byte
	block   [blockSize]byte
	latency histogram
	result  Result
}

// clientConn is one connection of a client.
type clientConn struct {
	fd        int
	since     time.Time // the request, or the call to connect
	connected bool
	got       int // bytes of the reply
}

// exchange runs requests on connections that stay, or on one for each.
func exchange(p Plan) (Result, error) {
	x, err := newExchanger(p)
	if err != nil {
		return Result{}, err
	}
	defer x.close()
	x.clock = p.start()
	for range p.Conns {
		if err := x.open(); err != nil {
			return Result{}, err
		}
	}
	now, quiet := time.Now(), time.Now()
	for !x.clock.over(now) {
		events, err := x.poll.wait(100)
		if err != nil {
			return Result{}, err
		}
		now = time.Now()
		if len(events) > 0 {
			quiet = now
		} else if now.Sub(quiet) > patience {
			return Result{}, fmt.Errorf("waiting for %v: %w", p.Server, errSilent)
		}
		for _, ev := range events {
			if err := x.serve(x.conns[ev.Fd]); err != nil {
				return Result{}, err
			}
		}
	}
	if x.result.TotalCount+x.result.Failed == 0 {
		return Result{}, fmt.Errorf("exchanging with %v: %w", p.Server, errSilent)
	}
	x.result.Latency = x.latency.latency()
	// An answer that came after the end, in the same batch of events, is a
	// matter of microseconds.
	x.result.Seconds = now.Sub(x.clock.warm).Seconds()
	x.result.Bytes = x.result.Count * uint64(p.Reply)
	x.result.TotalBytes = x.result.TotalCount * uint64(p.Reply)
	return x.result, nil
}

func newExchanger(p Plan) (*exchanger, error) {
	poll, err := newPoll()
	if err != nil {
		return nil, err
	}
	x := &exchanger{plan: p, poll: poll}
	want := wantReply
	if p.Kind == Connect {
		want = wantLast
	}
	request{want: want, reply: uint32(p.Reply)}.put(&x.request)
	return x, nil
}

func (x *exchanger) close() {
	for _, c := range x.conns {
		if c != nil {
			unix.Close(c.fd)
		}
	}
	x.poll.close()
}

// open starts to connect.
func (x *exchanger) open() error {
	since := time.Now()
	fd, err := connect(x.plan.Server)
	if err != nil {
		return err
	}
	for len(x.conns) <= fd {
		x.conns = append(x.conns, nil)
	}
	c := x.conns[fd]
	if c == nil {
		c = new(clientConn)
		x.conns[fd] = c
	}
	*c = clientConn{fd: fd, since: since}
	return x.poll.watch(fd, unix.EPOLLOUT)
}

// serve does what a connection is ready for.
func (x *exchanger) serve(c *clientConn) error {
	if !c.connected {
		return x.begin(c)
	}
	n, err := unix.Read(c.fd, x.block[:])
	switch {
	case err != nil && again(err):
		return nil
	case err != nil || n == 0:
		return x.fail(c, err)
	}
	if c.got += n; c.got < x.plan.Reply {
		return nil
	}
	x.count(c)
	if x.plan.Kind == Connect {
		return x.replace(c)
	}
	return x.ask(c, time.Now())
}

// begin sends the first request on a connection that is made.
func (x *exchanger) begin(c *clientConn) error {
	if err := connected(c.fd); err != nil {
		return x.fail(c, err)
	}
	c.connected = true
	if err := x.poll.change(c.fd, unix.EPOLLIN); err != nil {
		return err
	}
	since := c.since // a connection for each request is part of it
	if x.plan.Kind != Connect {
		since = time.Now()
	}
	return x.ask(c, since)
}

func (x *exchanger) ask(c *clientConn, since time.Time) error {
	c.since, c.got = since, 0
	if _, err := unix.Write(c.fd, x.request[:]); err != nil {
		return x.fail(c, err)
	}
	return nil
}

func (x *exchanger) count(c *clientConn) {
	x.result.TotalCount++
	if now := time.Now(); x.clock.measured(now) {
		x.result.Count++
		x.latency.add(now.Sub(c.since))
	}
}

// fail is for a connection that broke. Those that are made anew for each
// request are counted, and the others are not to break.
func (x *exchanger) fail(c *clientConn, err error) error {
	if x.plan.Kind != Connect {
		if err == nil {
			err = errClosed
		}
		return fmt.Errorf("exchanging with %v: %w", x.plan.Server, err)
	}
	x.result.Failed++
	return x.replace(c)
}

func (x *exchanger) replace(c *clientConn) error {
	unix.Close(c.fd)
	return x.open()
}
