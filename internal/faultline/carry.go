package faultline

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// relay carries one connection until both directions have ended.
func (l *Line) relay(ctx context.Context, near net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, chances := l.enter(near)
	defer l.leave(c)
	if l.await(ctx, c, Near) != nil || l.await(ctx, c, Far) != nil {
		return
	}
	far, err := l.Dial(ctx)
	if err != nil {
		l.cut(c)
		return
	}
	l.join(c, far)
	for _, end := range c.ends {
		if tcp, ok := end.(*net.TCPConn); ok {
			tcp.SetReadBuffer(readSize)
			tcp.SetWriteBuffer(readSize)
		}
	}
	defer context.AfterFunc(ctx, func() { l.cut(c) })()
	var directions sync.WaitGroup
	for _, d := range []*direction{
		{line: l, call: c, side: Near, from: near, to: far, chance: chances[Near]},
		{line: l, call: c, side: Far, from: far, to: near, chance: chances[Far]},
	} {
		d.queue = make(chan chunk, inFlight)
		directions.Go(func() { d.read(ctx, cancel) })
		directions.Go(func() {
			if d.carry(ctx) != nil {
				cancel()
			}
		})
	}
	directions.Wait()
}

// direction is one direction of a call.
type direction struct {
	line     *Line
	call     *call
	side     Side // that it comes from
	from, to net.Conn
	chance   *rand.Rand
	queue    chan chunk
}

// chunk is what one read has brought.
type chunk struct {
	due  time.Time
	data []byte
	err  error // that came with it, io.EOF included
}

const (
	// readSize and inFlight bound what a line holds, which is 1 MiB each way,
	// and not what the kernel has for a connection of nowadays: whatever comes
	// last on a slow line waits for all of it.
	readSize = 64 << 10
	inFlight = 16
)

// read fills the queue until the side has ended, or the call.
func (d *direction) read(ctx context.Context, end func()) {
	defer close(d.queue)
	for {
		buf := make([]byte, readSize)
		n, err := d.from.Read(buf)
		if secret, knows := d.line.secret(d.call); secret {
			// What comes is lost. When both sides know, it is over.
			if err == nil {
				continue
			}
			if d.side != knows {
				end()
			}
			<-ctx.Done()
			return
		}
		select {
		case d.queue <- chunk{time.Now().Add(d.late()), buf[:n], err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// late is by how much what is read now arrives later.
func (d *direction) late() time.Duration {
	d.line.mu.Lock()
	f := d.line.faults[d.side]
	d.line.mu.Unlock()
	late := f.Delay
	if f.Jitter > 0 {
		late += time.Duration(d.chance.Int64N(int64(f.Jitter)))
	}
	if f.Loss > 0 && d.chance.Float64() < f.Loss {
		late += f.Stall
	}
	return late
}

// carry passes on what is in the queue. The error is nil if that ended as it
// should, and the other direction goes on.
func (d *direction) carry(ctx context.Context) error {
	for c := range d.queue {
		if err := sleep(ctx, time.Until(c.due)); err != nil {
			return err
		}
		if err := d.write(ctx, c.data); err != nil {
			return err
		}
		if c.err == nil {
			continue
		}
		if err := d.line.await(ctx, d.call, d.side); err != nil {
			return err
		}
		if c.err != io.EOF {
			return c.err
		}
		return d.to.(interface{ CloseWrite() error }).CloseWrite()
	}
	return ctx.Err()
}

// write passes data on, as far and as fast as the line lets it.
func (d *direction) write(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		if err := d.line.await(ctx, d.call, d.side); err != nil {
			return err
		}
		n, pause := d.line.allow(d.side, len(data))
		if _, err := d.to.Write(data[:n]); err != nil {
			return err
		}
		d.line.passed.Add(int64(n))
		data = data[n:]
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}

// allow is how many of n bytes are written next, and how long to wait then.
func (l *Line) allow(from Side, n int) (int, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.faults[from]
	if f.Slice > 0 {
		n = min(n, f.Slice)
	}
	if f.Rate > 0 {
		n = min(n, max(f.Rate/100, 1))
	}
	if l.counted {
		n = int(min(int64(n), max(l.left, 1)))
		l.left -= int64(n)
	}
	if f.Rate == 0 {
		return n, 0
	}
	return n, time.Duration(n) * time.Second / time.Duration(f.Rate)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
