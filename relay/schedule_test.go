package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A side is what one end of a connection does: it writes pieces, and reads
// with a buffer that may be small, stopping for a while now and then.
type side struct {
	Writes []int // sizes
	Reads  []int // sizes of read buffers, over and over
	Stall  int   // bytes after which it stops reading until its peer is stuck
	End    string
}

const (
	endHalfClose = "half-close" // after the last write, and reads on
	endReset     = "reset"      // after the last write
	endClose     = "close"      // after the peer's stream has ended
)

func drawSide(t *rapid.T, label string) side {
	size := rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(copySize-2, copySize+2), rapid.IntRange(1, 300_000))
	return side{
		Writes: rapid.SliceOfN(size, 0, 12).Draw(t, label+" writes"),
		Reads:  rapid.SliceOfN(rapid.IntRange(1, 100_000), 1, 4).Draw(t, label+" reads"),
		Stall:  rapid.OneOf(rapid.Just(-1), rapid.IntRange(0, 500_000)).Draw(t, label+" stall"),
		End:    rapid.SampledFrom([]string{endHalfClose, endHalfClose, endClose, endReset}).Draw(t, label+" end"),
	}
}

// TestSchedules has connections do at random what ends of connections do, and
// checks what the other end makes of it: every byte in order, the end of the
// stream behind the last one, and a reset only where there was one.
func TestSchedules(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		b.schedules()
	})
}

// TestSchedulesWhileMoving is the same with connections that change workers
// all the time, with the bytes they hold.
func TestSchedulesWhileMoving(t *testing.T) {
	e := &Engine{Workers: 3}
	b := newBed(t, e, &Link{})
	stop := make(chan struct{})
	var mover sync.WaitGroup
	mover.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			to := e.workers[n%3]
			e.everyWorker(func(w *worker) {
				w.slab.each(func(c *conn) {
					if w != to && c.state == established {
						w.hand(c, to)
					}
				})
			})
			runtime.Gosched()
		}
	})
	b.schedules()
	close(stop)
	mover.Wait()
	if e.moves.Load() == 0 {
		t.Error("no connection has changed its worker")
	}
}

func (b *bed) schedules() {
	rapid.Check(b.t.(*testing.T), func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "connections")
		var all sync.WaitGroup
		failures := make(chan error, 4*n)
		for i := range n {
			sides := [2]side{drawSide(t, fmt.Sprint(i, " recipient")), drawSide(t, fmt.Sprint(i, " source"))}
			recipient, source := b.dial()
			all.Go(func() {
				for err := range play([2]*net.TCPConn{recipient, source}, sides) {
					failures <- fmt.Errorf("connection %d: %w", i, err)
				}
			})
		}
		all.Wait()
		b.over()
		close(failures)
		for err := range failures {
			t.Error(err)
		}
	})
}

// play acts two sides out and returns what went wrong.
func play(conns [2]*net.TCPConn, sides [2]side) <-chan error {
	errs := make(chan error, 4)
	var written [2]atomic.Int64
	var done [2]atomic.Bool // with writing
	anyReset := sides[0].End == endReset || sides[1].End == endReset
	var streams [2]sync.WaitGroup // the reading of each
	var all sync.WaitGroup
	for i := range conns {
		c, s, peer := conns[i], sides[i], 1-i
		streams[i].Add(1)
		all.Go(func() { // reads what the peer writes
			defer streams[i].Done()
			err := readSide(c, s, peer, &written[peer], &done[peer])
			total := 0
			for _, n := range sides[peer].Writes {
				total += n
			}
			var got short
			switch {
			case errors.As(err, &got) && anyReset:
			case err != nil && !(anyReset && isReset(err)):
				errs <- fmt.Errorf("side %d reading %d bytes: %w", i, total, err)
			}
		})
		all.Go(func() {
			var err error
			offset := 0
			for _, n := range s.Writes {
				if _, err = c.Write(pattern(peer^1, offset, n)); err != nil {
					break
				}
				offset += n
				written[i].Store(int64(offset))
			}
			done[i].Store(true)
			if err != nil && !(anyReset && isReset(err)) {
				errs <- fmt.Errorf("side %d writing: %w", i, err)
			}
			switch s.End {
			case endHalfClose:
				c.CloseWrite()
			case endReset:
				c.SetLinger(0)
				c.Close()
			case endClose:
				c.CloseWrite()
				streams[i].Wait()
				c.Close()
			}
		})
	}
	all.Wait()
	for _, c := range conns {
		c.Close()
	}
	close(errs)
	return errs
}

// short says that a stream ended before all that was to be written had come.
type short struct{ got, want int64 }

func (s short) Error() string {
	return fmt.Sprintf("the stream ended after %d bytes of %d", s.got, s.want)
}

func readSide(c *net.TCPConn, s side, peer int, written *atomic.Int64, done *atomic.Bool) error {
	var at int64
	stall := s.Stall
	for k := 0; ; k++ {
		if stall >= 0 && at >= int64(stall) {
			stall = -1
			stuck(written, done)
		}
		p := make([]byte, s.Reads[k%len(s.Reads)])
		n, err := c.Read(p)
		for j, x := range p[:n] {
			if want := patternByte(peer, int(at)+j); x != want {
				return fmt.Errorf("byte %d is %#x, want %#x", int(at)+j, x, want)
			}
		}
		at += int64(n)
		if err == io.EOF {
			if want := written.Load(); !done.Load() || at < want {
				return short{at, want}
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// stuck returns when a writer is done or cannot go on.
func stuck(written *atomic.Int64, done *atomic.Bool) {
	last := int64(-1)
	for quiet := 0; quiet < 3 && !done.Load(); {
		if now := written.Load(); now != last {
			last, quiet = now, 0
		} else {
			quiet++
		}
		time.Sleep(time.Millisecond)
	}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// pattern is n bytes of the stream that one side writes, from offset on.
func pattern(writer, offset, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = patternByte(writer, offset+i)
	}
	return p
}

func patternByte(writer, offset int) byte {
	return byte(offset*7 + offset>>8*13 + offset>>16 + writer*101)
}
