package traffic

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// stream is one bulk connection of a client.
type stream struct {
	fd      int
	account account
	told    []byte // of the server's account
	warmed  time.Time
	done    bool
}

// send writes as fast as it goes, and has the servers' side say what arrived
// when: bytes that only fill a buffer have not been carried.
func send(p Plan) (Result, error) {
	return bulk(p, request{want: wantSink, warmup: p.Warmup}, unix.EPOLLOUT)
}

// receive reads until the server has written for as long as it was told.
func receive(p Plan) (Result, error) {
	return bulk(p, request{want: wantBulk, warmup: p.Warmup, duration: p.Duration}, unix.EPOLLIN)
}

// bulkClient is the state of a client that moves bulk.
type bulkClient struct {
	plan    Plan
	clock   stopwatch
	poll    *poll
	streams map[int32]*stream
	block   [blockSize]byte
}

// bulk connects, asks for what the plan needs, and serves the connections.
func bulk(p Plan, ask request, events uint32) (Result, error) {
	poll, err := newPoll()
	if err != nil {
		return Result{}, err
	}
	t := &bulkClient{plan: p, poll: poll, streams: make(map[int32]*stream)}
	defer t.close()
	var line [RequestSize]byte
	ask.put(&line)
	for range p.Conns {
		fd, err := connectNow(p.Server)
		if err != nil {
			return Result{}, err
		}
		t.streams[int32(fd)] = &stream{fd: fd}
		if _, err := unix.Write(fd, line[:]); err != nil {
			return Result{}, fmt.Errorf("asking %v: %w", p.Server, err)
		}
		if err := poll.watch(fd, events); err != nil {
			return Result{}, err
		}
	}
	t.clock = p.start()
	for open := p.Conns; open > 0; {
		ready, err := poll.wait(int(patience.Milliseconds()))
		if err != nil {
			return Result{}, err
		}
		if len(ready) == 0 {
			return Result{}, fmt.Errorf("moving bulk with %v: %w", p.Server, errSilent)
		}
		for _, ev := range ready {
			s := t.streams[ev.Fd]
			if err := t.move(s, ev.Events&unix.EPOLLOUT != 0); err != nil {
				return Result{}, fmt.Errorf("moving bulk with %v: %w", p.Server, err)
			}
			if s.done {
				open--
			}
		}
	}
	return t.result()
}

func (t *bulkClient) close() {
	for _, s := range t.streams {
		unix.Close(s.fd)
	}
	t.poll.close()
}

// move writes or reads as long as it goes, but not so long that others wait.
func (t *bulkClient) move(s *stream, write bool) error {
	for range blocksAtATime {
		n, err := 0, error(nil)
		if write {
			n, err = t.write(s)
		} else {
			n, err = t.read(s)
		}
		if err != nil && !again(err) {
			return err
		}
		if n < blockSize {
			return nil
		}
	}
	return nil
}

// write writes one block, and ends the stream when the time is over.
func (t *bulkClient) write(s *stream) (int, error) {
	if !t.clock.over(time.Now()) {
		return unix.Write(s.fd, t.block[:])
	}
	if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil {
		return 0, err
	}
	return 0, t.poll.change(s.fd, unix.EPOLLIN)
}

// read reads one block: of bulk, or of the account of what was sent.
func (t *bulkClient) read(s *stream) (int, error) {
	n, err := unix.Read(s.fd, t.block[:])
	if err != nil {
		return 0, err
	}
	now := time.Now()
	if n == 0 {
		s.done = true
		if t.plan.Kind == Receive {
			s.account.end(now, t.clock.start, s.warmed)
		}
		return 0, unix.EpollCtl(t.poll.fd, unix.EPOLL_CTL_DEL, s.fd, nil)
	}
	if t.plan.Kind == Send {
		s.told = append(s.told, t.block[:n]...)
		return n, nil
	}
	s.account.total += uint64(n)
	if !s.warmed.IsZero() {
		s.account.bytes += uint64(n)
	} else if t.clock.measured(now) {
		s.warmed = now
	}
	return n, nil
}

// result adds the rates up: the streams run side by side.
func (t *bulkClient) result() (r Result, err error) {
	var rate float64
	for _, s := range t.streams {
		if t.plan.Kind == Send {
			if len(s.told) != accountSize {
				return r, fmt.Errorf("moving bulk with %v: it accounts for it in %d bytes, not %d", t.plan.Server, len(s.told), accountSize)
			}
			s.account = parseAccount(s.told)
		}
		if s.account.took <= 0 {
			return r, fmt.Errorf("moving bulk with %v: nothing arrived", t.plan.Server)
		}
		r.Bytes += s.account.bytes
		r.TotalBytes += s.account.total
		rate += float64(s.account.bytes) / s.account.took.Seconds()
	}
	r.Seconds = float64(r.Bytes) / rate
	return r, nil
}
