package tunnel

import (
	"errors"
	"io"
	"testing"
	"time"
)

func TestWindowFor(t *testing.T) {
	for rtt, want := range map[time.Duration]int64{
		0:                      nearWindow,
		50 * time.Microsecond:  nearWindow,
		time.Millisecond:       streamRate / 1000,
		20 * time.Millisecond:  maxWindow,
		300 * time.Millisecond: maxWindow,
	} {
		if got := windowFor(rtt); got != want {
			t.Errorf("windowFor(%v) = %d, want %d", rtt, got, want)
		}
	}
}

// A reader that keeps up over a long way gets a window that fills the way, and
// gives it back when it rests.
func TestWindowGrows(t *testing.T) {
	n := &network{delay: 10 * time.Millisecond}
	a, b := sessions(t, n.pair, Config{}, Config{})
	x, y := streams(t, a, b)
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, y)
		done <- err
	}()
	until(t, "the window to grow", func() bool {
		x.Write(make([]byte, 1<<20))
		return b.Stats().Lent >= 4<<20-firstWindow
	})
	until(t, "the reader to catch up", func() bool { return b.Stats().Buffered == 0 })
	b.wire.rest()
	b.wire.rest()
	if got := b.Stats().Lent; got != 0 {
		t.Errorf("%d bytes are lent to an idle stream", got)
	}
	// It goes on all the same.
	if _, err := x.Write(make([]byte, 20<<20)); err != nil {
		t.Error(err)
	}
	x.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	y.Close()
	until(t, "everything to be given back", func() bool { return b.Stats().Lent == 0 && b.Stats().Buffered == 0 })
}

// What is lent is bounded for all streams of the sessions with a peer.
func TestWindowsAreBounded(t *testing.T) {
	memory := &Memory{Windows: 1 << 20}
	one, two := &network{delay: 10 * time.Millisecond}, &network{delay: 10 * time.Millisecond}
	for _, n := range []*network{one, two} {
		a, b := sessions(t, n.pair, Config{}, Config{Memory: memory})
		for range 3 {
			x, y := streams(t, a, b)
			go io.Copy(io.Discard, y)
			defer y.Close()
			defer x.Close()
			for range 3 {
				x.Write(make([]byte, 1<<20))
				if got := b.Stats().Lent; got > 1<<20 {
					t.Fatalf("%d bytes are lent", got)
				}
			}
		}
		until(t, "windows to be lent", func() bool { return b.Stats().Lent > 1<<19 })
	}
}

// Readers that do not read cannot fill the memory: the one that has left most
// unread is reset, the others are not.
func TestUnreadBytesAreBounded(t *testing.T) {
	memory := &Memory{Buffered: 1 << 20}
	a, b := sessions(t, tcpPair, Config{}, Config{Memory: memory})
	const small = 50 << 10
	modest, modestEnd := streams(t, a, b)
	modest.Write(make([]byte, small))
	modest.CloseWrite()
	reset := make(chan *Stream, 5)
	ends := map[*Stream]*Stream{}
	for range 5 {
		x, y := streams(t, a, b)
		ends[x] = y
		x.AfterReset(func() { reset <- x })
		go x.Write(make([]byte, firstWindow))
	}
	var gone *Stream
	select {
	case gone = <-reset:
	case <-time.After(patience):
		t.Fatal("nothing was reset")
	}
	if _, err := ends[gone].Read(make([]byte, 1)); !errors.Is(err, ErrOverrun) {
		t.Errorf("reading gives %v, want %v", err, ErrOverrun)
	}
	if got, err := io.ReadAll(modestEnd); len(got) != small || err != nil {
		t.Errorf("the modest stream has %d bytes, then %v", len(got), err)
	}
	if got := b.Stats().Buffered; got > 1<<20 {
		t.Errorf("%d bytes are held", got)
	}
	for x, y := range ends {
		x.Abort()
		y.Abort()
	}
	until(t, "the memory to be given back", func() bool { return b.Stats().Buffered == 0 })
}
