package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestBytesArriveInOrder(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		sa, sb := sessions(t, pair, Config{}, Config{})
		const n = 20
		var wg sync.WaitGroup
		for range n {
			x, y := streams(t, sa, sb)
			wg.Go(func() { exchange(t, x, y) })
		}
		wg.Wait()
		until(t, "the streams to be forgotten", func() bool { return sa.Stats().Open+sb.Stats().Open == 0 })
		if got := sa.mux.NumStreams() + sb.mux.NumStreams(); got != 0 {
			t.Errorf("yamux keeps %d streams", got)
		}
	})
}

// exchange sends random bytes both ways, in writes of random sizes, and closes
// each direction after them.
func exchange(t testing.TB, x, y *Stream) {
	var wg sync.WaitGroup
	send := func(s *Stream, data []byte) {
		for len(data) > 0 {
			n := min(1+rand.IntN(100_000), len(data))
			if _, err := s.Write(data[:n]); err != nil {
				t.Error("writing:", err)
			}
			data = data[n:]
		}
		if err := s.CloseWrite(); err != nil {
			t.Error("closing one direction:", err)
		}
	}
	for _, ends := range [][2]*Stream{{x, y}, {y, x}} {
		data := make([]byte, rand.IntN(1<<20))
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		wg.Go(func() { send(ends[0], data) })
		wg.Go(func() {
			got, err := io.ReadAll(ends[1])
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes and error %v, want %d", len(got), err, len(data))
			}
		})
	}
	wg.Wait()
	x.Close()
	y.Close()
}

func TestHalfClose(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		x, y := streams(t, a, b)
		x.Write([]byte("question"))
		x.CloseWrite()
		if got, err := io.ReadAll(y); string(got) != "question" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		// The other direction is as open as before.
		y.Write([]byte("answer"))
		if _, err := x.Write([]byte("more")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("writing after CloseWrite gives %v, want %v", err, syscall.EPIPE)
		}
		y.Close()
		if got, err := io.ReadAll(x); string(got) != "answer" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		for range 2 {
			if err := x.Close(); err != nil {
				t.Errorf("closing gives %v", err)
			}
		}
	})
}

// A session that dies must not look like the end of a stream: the reader would
// take half an answer for a whole one. That is what yamux reports.
func TestALostSessionIsNoEndOfAStream(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		x, y := streams(t, a, b)
		whole, wholeEnd := streams(t, a, b)
		x.Write([]byte("half an ans"))
		whole.Write([]byte("all of it"))
		whole.CloseWrite()
		until(t, "everything to be received", func() bool {
			b.wire.mu.Lock()
			defer b.wire.mu.Unlock()
			return y.ledger.received == 11 && wholeEnd.ledger.finSeen
		})
		a.Close()
		<-b.Done()
		got, err := io.ReadAll(y)
		if string(got) != "half an ans" || !errors.Is(err, ErrLost) {
			t.Errorf("read %q, %v; want an error", got, err)
		}
		if _, err := y.Write([]byte("x")); !errors.Is(err, ErrLost) {
			t.Errorf("writing gives %v, want %v", err, ErrLost)
		}
		// What had come to its end before is whole.
		if got, err := io.ReadAll(wholeEnd); string(got) != "all of it" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

func TestAbort(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		x, y := streams(t, a, b)
		other, otherEnd := streams(t, a, b)
		var told atomic.Bool
		y.AfterReset(func() { told.Store(true) })
		x.Abort()
		if _, err := y.Read(make([]byte, 1)); !errors.Is(err, ErrReset) || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading gives %v, want %v", err, ErrReset)
		}
		if _, err := y.Write([]byte("x")); !errors.Is(err, ErrReset) {
			t.Errorf("writing gives %v, want %v", err, ErrReset)
		}
		if _, err := x.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading at the aborting side gives %v, want %v", err, net.ErrClosed)
		}
		until(t, "the reset to be told", told.Load)
		until(t, "the streams to be forgotten", func() bool {
			return a.Stats().Open == 1 && b.Stats().Open == 1 && a.mux.NumStreams() == 1 && b.mux.NumStreams() == 1
		})
		told.Store(false)
		y.AfterReset(func() { told.Store(true) })
		if !told.Load() {
			t.Error("whoever asks after the reset is not told")
		}
		exchange(t, other, otherEnd)
	})
}

// yamux#133: whose reader is gone writes until its window is used up, and then
// waits for five minutes.
func TestAbortWakesAWriter(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		for name, end := range map[string]func(x, y *Stream){
			"abort by the reader":            func(x, y *Stream) { y.Abort() },
			"close by the reader":            func(x, y *Stream) { y.Close() },
			"abort by another goroutine":     func(x, y *Stream) { x.Abort() },
			"close by another goroutine":     func(x, y *Stream) { x.Close() },
			"half a close, then reader goes": func(x, y *Stream) { y.CloseWrite(); y.Abort() },
		} {
			x, y := streams(t, a, b)
			done := make(chan error, 1)
			go func() {
				_, err := x.Write(make([]byte, 1<<20))
				done <- err
			}()
			until(t, "the window to be used up", func() bool { return b.Stats().Buffered == firstWindow })
			end(x, y)
			select {
			case err := <-done:
				if !errors.Is(err, ErrReset) && !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s: writing gives %v", name, err)
				}
			case <-time.After(patience):
				t.Fatalf("%s: the writer is stuck", name)
			}
			x.Close()
			y.Close()
			until(t, name+": the memory to be given back", func() bool { return b.Stats().Buffered == 0 })
		}
	})
}

// As with TCP, a reset comes after what was sent before it, and spoils no end
// that came before.
func TestAResetDoesNotOvertake(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		for name, end := range map[string]struct {
			call func(x *Stream)
			want error
		}{
			"abort":               {func(x *Stream) { x.Abort() }, ErrReset},
			"abort after the end": {func(x *Stream) { x.CloseWrite(); x.Abort() }, nil},
		} {
			x, y := streams(t, a, b)
			x.Write(make([]byte, 100_000))
			end.call(x)
			until(t, "the reset", func() bool {
				_, err := y.Write([]byte("x"))
				return errors.Is(err, ErrReset)
			})
			if got, err := io.ReadAll(y); len(got) != 100_000 || err != end.want {
				t.Errorf("%s: read %d bytes, then %v, want %v", name, len(got), err, end.want)
			}
			y.Close()
			until(t, "the streams to be forgotten", func() bool {
				return a.Stats().Open+b.Stats().Open+a.mux.NumStreams()+b.mux.NumStreams() == 0 && b.Stats().Buffered == 0
			})
		}
		// Nobody has seen this one.
		x, err := a.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		x.Write(make([]byte, 100_000))
		x.Abort()
		until(t, "the reset", func() bool { return b.Stats().Open == 0 && b.Stats().Resets == 3 })
		x, y := streams(t, a, b)
		exchange(t, x, y)
		until(t, "the stream to be forgotten", func() bool { return b.mux.NumStreams() == 0 && b.Stats().Buffered == 0 })
	})
}

// What comes for a stream that was closed is answered by a reset, as a closed
// socket does.
func TestWritingToAClosedReader(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{})
	x, y := streams(t, a, b)
	y.Close()
	if got, err := io.ReadAll(x); len(got) > 0 || err != nil {
		t.Errorf("read %q, %v, want an end", got, err)
	}
	until(t, "writing to fail", func() bool {
		_, err := x.Write([]byte("x"))
		return errors.Is(err, ErrReset)
	})
	until(t, "the streams to be forgotten", func() bool { return a.Stats().Open+b.Stats().Open == 0 })
}

// Nor is a stream kept for ever whose peer neither writes nor closes.
func TestAClosedStreamDoesNotLinger(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{})
	x, y := streams(t, a, b)
	y.Close()
	for range lingering {
		b.wire.rest()
	}
	if got := b.Stats().Open; got != 1 {
		t.Fatalf("%d streams are left, want one", got)
	}
	b.wire.rest()
	if _, err := x.Write([]byte("x")); err == nil {
		until(t, "a reset", func() bool { _, err := x.Write([]byte("x")); return errors.Is(err, ErrReset) })
	}
	until(t, "the streams to be forgotten", func() bool { return a.Stats().Open+b.Stats().Open == 0 })
}

// TestAnAbortMeetsAnEnd aborts a stream whose ends, one from each side, are on
// their way: the peer has forgotten it before it hears of the abort, and so
// never confirms that.
func TestAnAbortMeetsAnEnd(t *testing.T) {
	for name, abort := range map[string]func(x, y *Stream){
		"by one side": func(x, y *Stream) { x.Abort() },
		"by both":     func(x, y *Stream) { x.Abort(); y.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			n := &network{}
			a, b := sessions(t, n.pair, Config{}, Config{})
			for _, s := range [][2]*Session{{a, b}, {b, a}} {
				x, y := streams(t, s[0], s[1])
				n.setDown(true)
				x.CloseWrite()
				y.CloseWrite()
				abort(x, y)
				n.setDown(false)
				until(t, "the stream to be forgotten", func() bool {
					return a.Stats().Open+b.Stats().Open == 0 && a.mux.NumStreams()+b.mux.NumStreams() == 0
				})
			}
		})
	}
}

func TestDrainLetsStreamsEnd(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		x, y := streams(t, a, b)
		drained := make(chan error, 1)
		go func() { drained <- a.Drain(context.Background()) }()
		<-b.Ending()
		if _, err := b.Open(context.Background()); !errors.Is(err, ErrDraining) {
			t.Errorf("opening a stream gives %v, want %v", err, ErrDraining)
		}
		select {
		case err := <-drained:
			t.Fatalf("drained while a stream is open: %v", err)
		default:
		}
		exchange(t, x, y)
		if err := <-drained; err != nil {
			t.Errorf("draining: %v", err)
		}
		<-b.Done()
	})
}

// A stream that was opened before the peer knew of the end is carried to its
// own end. yamux would reset it.
func TestDrainMeetsAnOpening(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{})
	for range 20 {
		x, err := b.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		x.Write([]byte("hello"))
		x.CloseWrite()
	}
	drained := make(chan error, 1)
	go func() { drained <- a.Drain(context.Background()) }()
	for range 20 {
		y, err := a.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(y); string(got) != "hello" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		y.Close()
	}
	if err := <-drained; err != nil {
		t.Errorf("draining: %v", err)
	}
}

func TestDrainHasAnEnd(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{})
	x, _ := streams(t, a, b)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("draining gives %v", err)
	}
	if _, err := x.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("reading gives %v, want %v", err, ErrLost)
	}
	if err := a.Err(); !errors.Is(err, ErrClosed) {
		t.Errorf("the session ended with %v", err)
	}
	<-b.Done()
	if b.Err() == nil {
		t.Error("the peer's session ended without a reason")
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{MaxOpening: 2}, Config{})
	for range 2 {
		if _, err := a.Open(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody accepts at the other end, so two are on their way.
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := a.Open(ctx)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("opening gives %v, want %v", err, context.Canceled)
	}
	// Each stream accepted, or reset, makes room.
	y, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Open(context.Background()); err != nil {
		t.Error(err)
	}
	y.Abort()
	y, _ = b.Accept()
	y.Abort()
	y, _ = b.Accept()
	y.Abort()
	until(t, "the slots to be given back", func() bool { return len(a.wire.opening) == 0 })
}

func TestOpenWhenTheSessionDies(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{MaxOpening: 1}, Config{})
	if _, err := a.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := a.Open(context.Background())
		failed <- err
	}()
	b.Close()
	if err := <-failed; err == nil || !errors.Is(err, a.Err()) {
		t.Errorf("opening gives %v, want %v", err, a.Err())
	}
	if _, err := b.Open(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("opening gives %v, want %v", err, ErrClosed)
	}
}

func TestNumbersRunOut(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{})
	a.numbers.Store(maxNumbers - 1)
	x, y := streams(t, a, b)
	exchange(t, x, y)
	if _, err := a.Open(context.Background()); !errors.Is(err, ErrExhausted) {
		t.Errorf("opening gives %v, want %v", err, ErrExhausted)
	}
}

func TestStreamLimit(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{MaxStreams: 3})
	var open []*Stream
	for range 3 {
		x, _ := streams(t, a, b)
		open = append(open, x)
	}
	x, err := a.Open(context.Background())
	if err == nil {
		_, err = x.Read(make([]byte, 1))
	}
	if !errors.Is(err, ErrReset) {
		t.Errorf("one too many gives %v, want %v", err, ErrReset)
	}
	if got := b.Stats().Refused; got != 1 {
		t.Errorf("%d streams refused, want 1", got)
	}
	open[0].Abort()
	until(t, "a place to become free", func() bool { return b.Stats().Open == 2 })
	streams(t, a, b)
	until(t, "the slots to be given back", func() bool { return len(a.wire.opening) == 0 })
}

// One stream that nobody accepts, one that nobody reads and one that is
// aborted do nothing to the others.
func TestStreamsDoNotHarmEachOther(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		stuck, _ := streams(t, a, b)
		written := make(chan error, 1)
		go func() {
			_, err := stuck.Write(make([]byte, 1<<20))
			written <- err
		}()
		until(t, "a window to be used up", func() bool { return b.Stats().Buffered == firstWindow })
		x, y := streams(t, a, b)
		if _, err := a.Open(context.Background()); err != nil { // never accepted
			t.Fatal(err)
		}
		for range 5 {
			gone, _ := streams(t, b, a)
			gone.Abort()
		}
		exchange(t, x, y)
		select {
		case err := <-written:
			t.Fatalf("the stuck writer came back with %v", err)
		default:
		}
		stuck.Abort()
		<-written
	})
}
