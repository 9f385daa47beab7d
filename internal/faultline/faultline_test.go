package faultline

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds waits for what has to happen, and glance those for what must
// not.
const (
	patience = 20 * time.Second
	glance   = 50 * time.Millisecond
)

// lay makes a line, and one connection through it. Nothing is left of either
// when the test is over.
func lay(t *testing.T) (l *Line, near, far *net.TCPConn) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() { until(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before }) })

	end := listen(t)
	t.Cleanup(func() { end.Close() })
	l, addr := serve(t, end.Addr())
	near = dial(t, addr.String())
	c, err := end.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	write(t, c, "!") // until then the line may not know yet that it is connected
	reads(t, near, "!")
	return l, near, c.(*net.TCPConn)
}

// serve runs a line to an address until the test is over.
func serve(t *testing.T, to net.Addr) (*Line, net.Addr) {
	t.Helper()
	ln := listen(t)
	l := &Line{Seed: 1, Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", to.String())
	}}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := l.Serve(ctx, ln); err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); served.Wait() })
	return l, ln.Addr()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for", what)
		}
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// reads checks what arrives next.
func reads(t *testing.T, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("got %q and %v, want %q", got[:n], err, want)
	}
}

// silent checks that nothing arrives, neither a byte nor an end.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(glance))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %d bytes and %v, want silence", n, err)
	}
}

func isReset(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want a reset", err)
	}
}

// TestContent sends a lot through every kind of line; what arrives is what was
// sent, up to its end, in both directions.
func TestContent(t *testing.T) {
	for name, c := range map[string]struct {
		Faults
		size int
	}{
		"good":   {Faults{}, 4 << 20},
		"late":   {Faults{Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond}, 4 << 20},
		"lossy":  {Faults{Loss: 0.2, Stall: 10 * time.Millisecond}, 1 << 20},
		"slow":   {Faults{Rate: 1 << 20}, 100 << 10},
		"sliced": {Faults{Slice: 1}, 20 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			l, near, far := lay(t)
			l.Set(c.Faults)
			sent := make([]byte, c.size)
			rand.NewChaCha8([32]byte{1}).Read(sent)
			start := time.Now()
			var both sync.WaitGroup
			for _, d := range [][2]*net.TCPConn{{near, far}, {far, near}} {
				both.Go(func() {
					d[0].Write(sent)
					d[0].CloseWrite()
				})
				both.Go(func() {
					if got, err := io.ReadAll(d[1]); err != nil || !bytes.Equal(got, sent) {
						t.Errorf("%d bytes arrived of %d, and %v", len(got), len(sent), err)
					}
				})
			}
			both.Wait()
			if got, want := l.Passed(), 2*int64(c.size)+1; got != want {
				t.Errorf("%d bytes have passed, want %d", got, want)
			}
			t.Logf("%d bytes each way took %v", c.size, time.Since(start).Round(time.Millisecond))
			until(t, "the call to be over", func() bool { return l.Calls() == 0 })
		})
	}
}

// TestSlices looks at a line that tears everything into single bytes: a reader
// gets fewer at a time than were sent.
func TestSlices(t *testing.T) {
	l, near, far := lay(t)
	l.Set(Faults{Slice: 1, Rate: 200})
	write(t, near, "torn")
	buf := make([]byte, 4)
	if n, err := far.Read(buf); err != nil || n >= 4 {
		t.Errorf("got %q and %v in one read", buf[:n], err)
	}
}

func TestMute(t *testing.T) {
	l, near, far := lay(t)
	l.Set(Faults{Mute: true})
	write(t, near, "later")
	near.CloseWrite()
	silent(t, far)
	l.Set(Faults{})
	reads(t, far, "later")
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("got %v, want the end", err)
	}
	write(t, far, "still open")
	reads(t, near, "still open")
}

func TestMuteOneWay(t *testing.T) {
	l, near, far := lay(t)
	l.SetEach(Faults{Mute: true}, Faults{})
	write(t, near, "late")
	write(t, far, "in time")
	reads(t, near, "in time")
	silent(t, far)
}

// TestMuteAtFirst connects to a line that is mute: who connects notices
// nothing, and is not heard of.
func TestMuteAtFirst(t *testing.T) {
	l, near, far := lay(t)
	l.Set(Faults{Mute: true})
	second := dial(t, near.RemoteAddr().String())
	write(t, second, "hello")
	until(t, "the call", func() bool { return l.Calls() == 2 })
	silent(t, second)
	silent(t, far)
}

func TestMuteAfter(t *testing.T) {
	l, near, far := lay(t)
	l.MuteAfter(3)
	write(t, near, "middle")
	reads(t, far, "mid")
	silent(t, far)
	write(t, far, "x")
	silent(t, near)
	l.Set(Faults{})
	reads(t, far, "dle")
	reads(t, near, "x")
}

func TestReset(t *testing.T) {
	l, near, far := lay(t)
	if n := l.Reset(); n != 1 {
		t.Errorf("%d were reset, want 1", n)
	}
	isReset(t, near)
	isReset(t, far)
	until(t, "the call to be over", func() bool { return l.Calls() == 0 })
}

// TestResetPasses resets one end; the other learns of it, as of a reset.
func TestResetPasses(t *testing.T) {
	_, near, far := lay(t)
	near.SetLinger(0)
	near.Close()
	isReset(t, far)
}

func TestForget(t *testing.T) {
	for _, side := range []Side{Near, Far} {
		l, near, far := lay(t)
		told, other := near, far
		if side == Far {
			told, other = far, near
		}
		if n := l.Forget(side); n != 1 {
			t.Errorf("%d were forgotten, want 1", n)
		}
		isReset(t, told)
		write(t, other, "anybody?")
		silent(t, other)
		if l.Calls() != 1 {
			t.Error("the call is over before the other side knows")
		}
		other.Close()
		until(t, "the call to be over", func() bool { return l.Calls() == 0 })
	}
}

// TestNobodyThere has a far end that refuses.
func TestNobodyThere(t *testing.T) {
	gone := listen(t)
	gone.Close()
	_, ln := serve(t, gone.Addr())
	c, err := net.Dial("tcp", ln.String())
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	isReset(t, c)
}
