package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// line is a long wire between two sockets: bytes come out after a delay, and
// no more of them in a second than it carries. To TCP each side is a short
// wire of its own, so what is seen of the delay is only what an end makes of
// it itself: round trips of a protocol, and windows above TCP's.
type line struct {
	delay time.Duration // each way
	rate  float64       // bytes in a second, each way
}

// queued is how long bytes wait at most to get onto the line. What is behind
// them is not read, as if the window of TCP were closed.
const queued = 5 * time.Millisecond

// block is some bytes, and when they come out.
type block struct {
	bytes []byte
	due   time.Time
}

// delay carries connections to an address over a line of MBIT/s, until ctx
// ends: what load delay LISTEN TO DELAY MBIT does.
func delay(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return errors.New("want an address to listen at, one to connect to, a delay and megabits in a second")
	}
	each, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	megabits, err := strconv.ParseFloat(args[3], 64)
	if err != nil || megabits <= 0 {
		return fmt.Errorf("%q is no rate", args[3])
	}
	wire := line{each, megabits * 1e6 / 8}
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	return acceptEach(ctx, ln, func(conn net.Conn) { wire.carry(conn.(*net.TCPConn), args[1]) })
}

func (l line) carry(near *net.TCPConn, to string) {
	defer near.Close()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	far := conn.(*net.TCPConn)
	defer far.Close()
	var ways sync.WaitGroup
	ways.Go(func() { l.way(far, near) })
	ways.Go(func() { l.way(near, far) })
	ways.Wait()
}

// way carries one direction.
func (l line) way(to, from *net.TCPConn) {
	const size = 32 << 10
	underway := make(chan block, 1+int(l.rate*(l.delay+queued+100*time.Millisecond).Seconds())/1024)
	done := make(chan struct{})
	defer func() { <-done }()
	defer close(underway)
	go func() {
		defer close(done)
		defer to.CloseWrite()
		for b := range underway {
			time.Sleep(time.Until(b.due))
			if _, err := to.Write(b.bytes); err != nil {
				from.CloseRead()
				for range underway {
				}
				return
			}
		}
	}()
	free := time.Now() // when the line has taken all that was put on it
	for {
		b := make([]byte, size)
		n, err := from.Read(b)
		if n > 0 {
			now := time.Now()
			if free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
			underway <- block{b[:n], free.Add(l.delay)}
			if wait := time.Until(free) - queued; wait > 0 {
				time.Sleep(wait)
			}
		}
		if err != nil {
			return
		}
	}
}
