package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/leaks"
)

// impatient notices death fast enough for a test.
var impatient = Config{DeadAfter: 800 * time.Millisecond}

func TestSilence(t *testing.T) {
	n := &network{}
	a, b := sessions(t, n.pair, impatient, impatient)
	x, y := streams(t, a, b)
	// An idle session lives on, since each side asks and is answered.
	for range 2 {
		heard := a.wire.counts.heard.Load()
		until(t, "an answer", func() bool { return a.wire.counts.heard.Load() > heard+1 })
	}
	n.setDown(true)
	var wg sync.WaitGroup
	for _, s := range []*Stream{x, y} {
		wg.Go(func() {
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrLost) || !errors.Is(err, ErrSilent) {
				t.Errorf("reading gives %v", err)
			}
		})
		wg.Go(func() {
			if _, err := s.Write(make([]byte, 1<<20)); !errors.Is(err, ErrLost) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("writing gives %v", err)
			}
		})
	}
	wg.Wait()
	for _, s := range []*Session{a, b} {
		if err := s.Err(); err != ErrSilent {
			t.Errorf("the session ended with %v, want %v", err, ErrSilent)
		}
	}
}

// yamux#142: a transport that takes no bytes makes writes fail after 10 s
// while the stream and the session stay, and the peer waits for ever.
func TestATransportThatTakesNothing(t *testing.T) {
	if got := yamuxConfig(Config{}.withDefaults()).ConnectionWriteTimeout; got < time.Minute {
		t.Errorf("yamux gives up after %v by itself", got)
	}
	leaks.Check(t)
	ta, tb := net.Pipe() // nobody reads at the other end
	defer tb.Close()
	s := Client(ta, impatient)
	defer s.Close()
	opened := make(chan error, 1)
	go func() {
		for {
			if _, err := s.Open(t.Context()); err != nil {
				opened <- err
				return
			}
		}
	}()
	if err := <-opened; !errors.Is(err, ErrSilent) {
		t.Errorf("opening gives %v, want %v", err, ErrSilent)
	}
}

// The answer to a ping waits behind bulk. It must not wait so long that a slow
// network looks like a dead one.
func TestASlowNetworkIsAlive(t *testing.T) {
	const total = 3 << 20
	n := &network{rate: 2 << 20}
	a, b := sessions(t, n.pair, impatient, impatient)
	var wg sync.WaitGroup
	for range 3 {
		x, y := streams(t, a, b)
		wg.Go(func() {
			x.Write(make([]byte, total/3))
			x.Close()
		})
		wg.Go(func() {
			if got, err := io.Copy(io.Discard, y); got != total/3 || err != nil {
				t.Errorf("read %d bytes, then %v", got, err)
			}
			y.Close()
		})
	}
	wg.Wait()
}

func TestATransportThatBreaks(t *testing.T) {
	n := &network{}
	a, b := sessions(t, n.pair, Config{}, Config{})
	x, y := streams(t, a, b)
	n.cut()
	for _, s := range []*Stream{x, y} {
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
			t.Errorf("reading gives %v, want %v", err, ErrLost)
		}
	}
}

func TestSlicedToBytes(t *testing.T) {
	n := &network{slice: 1}
	a, b := sessions(t, n.pair, Config{}, Config{})
	x, y := streams(t, a, b)
	go func() {
		x.Write(make([]byte, 20_000))
		x.Close()
	}()
	if got, err := io.Copy(io.Discard, y); got != 20_000 || err != nil {
		t.Errorf("read %d bytes, then %v", got, err)
	}
	y.Close()
}
