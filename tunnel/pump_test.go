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

// line is an application and a source with everything that is between them.
type line struct {
	app, source *net.TCPConn
	session     *Session // at the application's side
	near, far   *Pump
	nearErr     chan error
	farErr      chan error
}

// newLine lays a line over a session of the transport. set may change the
// pumps before they start.
func newLine(t testing.TB, pair func(testing.TB) (net.Conn, net.Conn), set func(near, far *Pump)) *line {
	t.Helper()
	a, b := sessions(t, pair, Config{}, Config{})
	return lineOver(t, a, b, set)
}

func lineOver(t testing.TB, a, b *Session, set func(near, far *Pump)) *line {
	t.Helper()
	app, nearEnd := tcpPair(t)
	farEnd, source := tcpPair(t)
	x, y := streams(t, a, b)
	l := &line{
		app: app.(*net.TCPConn), source: source.(*net.TCPConn), session: a,
		near:    &Pump{Conn: nearEnd.(Conn), Stream: x},
		far:     &Pump{Conn: farEnd.(Conn), Stream: y},
		nearErr: make(chan error, 1),
		farErr:  make(chan error, 1),
	}
	if set != nil {
		set(l.near, l.far)
	}
	go func() { l.nearErr <- l.near.Run() }()
	go func() { l.farErr <- l.far.Run() }()
	t.Cleanup(func() {
		app.Close()
		source.Close()
		l.ended(t)
	})
	return l
}

// ended waits for both pumps, and returns what they ended with.
func (l *line) ended(t testing.TB) (near, far error) {
	t.Helper()
	for _, c := range []struct {
		ch  chan error
		err *error
	}{{l.nearErr, &near}, {l.farErr, &far}} {
		select {
		case *c.err = <-c.ch:
			c.ch <- *c.err // for whoever asks again
		case <-time.After(patience):
			t.Fatal("a pump does not end")
		}
	}
	return near, far
}

func eachLine(t *testing.T, fn func(t *testing.T, l *line)) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		fn(t, newLine(t, pair, nil))
	})
}

func TestPumpCarriesBothWays(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		var up, down atomic.Uint64
		l := newLine(t, pair, func(near, far *Pump) { near.ToStream, near.ToConn = &up, &down })
		var sent [2]int
		var wg sync.WaitGroup
		for i, ends := range [][2]*net.TCPConn{{l.app, l.source}, {l.source, l.app}} {
			data := make([]byte, rand.IntN(3<<20))
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			sent[i] = len(data)
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(1+rand.IntN(200_000), len(rest))
					ends[0].Write(rest[:n])
					rest = rest[n:]
				}
				ends[0].CloseWrite()
			})
			wg.Go(func() {
				got, err := io.ReadAll(ends[1])
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("got %d bytes and error %v, want %d", len(got), err, len(data))
				}
			})
		}
		wg.Wait()
		if near, far := l.ended(t); near != nil || far != nil {
			t.Errorf("the pumps ended with %v and %v", near, far)
		}
		if int(up.Load()) != sent[0] || int(down.Load()) != sent[1] {
			t.Errorf("counted %d and %d, want %v", up.Load(), down.Load(), sent)
		}
	})
}

func TestPumpHalfClose(t *testing.T) {
	eachLine(t, func(t *testing.T, l *line) {
		l.app.Write([]byte("question"))
		l.app.CloseWrite()
		if got, err := io.ReadAll(l.source); string(got) != "question" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		l.source.Write([]byte("answer"))
		l.source.Close()
		if got, err := io.ReadAll(l.app); string(got) != "answer" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
	})
}

// haproxy#2505: the end must not overtake the bytes before it, however slow
// their reader is.
func TestPumpSlowReader(t *testing.T) {
	eachLine(t, func(t *testing.T, l *line) {
		const n = 4 << 20
		var wg sync.WaitGroup
		wg.Go(func() {
			l.source.Write(make([]byte, n))
			l.source.Close()
		})
		got := 0
		for buf := make([]byte, 100_000); ; {
			k, err := l.app.Read(buf)
			got += k
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Microsecond)
		}
		wg.Wait()
		if got != n {
			t.Errorf("read %d bytes, want %d", got, n)
		}
	})
}

func TestPumpReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		for name, fromApp := range map[string]bool{"app": true, "source": false} {
			l := lineOver(t, a, b, nil)
			from, to := l.source, l.app
			if fromApp {
				from, to = l.app, l.source
			}
			from.Write([]byte("last words"))
			resetConn(from)
			// A reset of the kernel's may overtake what was written, so the
			// words need not arrive; the reset has to.
			if got, err := io.ReadAll(to); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("reset by the %s: read %q, %v", name, got, err)
			}
			near, far := l.ended(t)
			if near == nil || far == nil {
				t.Errorf("reset by the %s: the pumps ended with %v and %v", name, near, far)
			}
		}
	})
}

// Whoever is stuck since the other side does not read learns of its reset too,
// and so does the other side of one that is stuck.
func TestPumpResetWhileStuck(t *testing.T) {
	for _, c := range []struct {
		name     string
		bySender bool
	}{{"reset by the one that does not read", false}, {"reset by the one that is stuck", true}} {
		t.Run(c.name, func(t *testing.T) {
			l := newLine(t, tcpPair, nil)
			stuck := make(chan error, 1)
			go func() {
				_, err := l.app.Write(make([]byte, 64<<20))
				stuck <- err
			}()
			until(t, "the window to be used up", func() bool {
				return !l.near.Stream.has(1)
			})
			if c.bySender {
				resetConn(l.app)
				if _, err := io.Copy(io.Discard, l.source); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("reading gives %v", err)
				}
			} else {
				resetConn(l.source)
			}
			if err := <-stuck; err == nil {
				t.Error("64 MiB were written to nobody")
			}
			l.ended(t)
		})
	}
}

// ztunnel#1887: a server that answers and closes while its client still sends
// is not to lose its answer on the way to the reset.
func TestPumpAnswerBeforeReset(t *testing.T) {
	eachLine(t, func(t *testing.T, l *line) {
		answer := make([]byte, 10_000) // which the socket takes at once
		l.source.Write(answer)
		l.source.CloseWrite()
		until(t, "the answer to be on its way", func() bool { return l.far.moved.Load() == uint64(len(answer)) })
		resetConn(l.source)
		go func() {
			for {
				if _, err := l.app.Write([]byte("more and more")); err != nil {
					return
				}
			}
		}()
		l.ended(t)
		got := 0
		for buf := make([]byte, 1000); ; {
			n, err := l.app.Read(buf)
			if got += n; err != nil {
				break
			}
		}
		if got != len(answer) {
			t.Errorf("%d bytes of the answer arrived, want %d", got, len(answer))
		}
	})
}

func TestPumpLosesItsSession(t *testing.T) {
	eachLine(t, func(t *testing.T, l *line) {
		l.app.Write([]byte("x"))
		io.ReadFull(l.source, make([]byte, 1))
		l.session.Close()
		for _, c := range []*net.TCPConn{l.app, l.source} {
			if got, err := io.ReadAll(c); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read %q, %v, want a reset", got, err)
			}
		}
		if near, far := l.ended(t); !errors.Is(near, ErrLost) || !errors.Is(far, ErrLost) {
			t.Errorf("the pumps ended with %v and %v", near, far)
		}
	})
}

func TestPumpCut(t *testing.T) {
	l := newLine(t, tcpPair, nil)
	l.far.Cut()
	near, far := l.ended(t)
	if !errors.Is(far, net.ErrClosed) || near != ErrReset {
		t.Errorf("the pumps ended with %v and %v", near, far)
	}
	for _, c := range []*net.TCPConn{l.app, l.source} {
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading gives %v, want a reset", err)
		}
	}
}

func TestPumpCutWhileStuck(t *testing.T) {
	l := newLine(t, tcpPair, nil)
	stuck := make(chan error, 2)
	for _, c := range []*net.TCPConn{l.app, l.source} {
		go func() {
			_, err := c.Write(make([]byte, 64<<20))
			stuck <- err
		}()
	}
	until(t, "the windows to be used up", func() bool { return !l.near.Stream.has(1) && !l.far.Stream.has(1) })
	l.far.Cut()
	l.ended(t)
	for range 2 {
		if err := <-stuck; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing gives %v, want a reset", err)
		}
	}
}

func TestPumpExpires(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*Pump)
		half bool
		want error
	}{
		"idle":        {func(p *Pump) { p.IdleTimeout = 50 * time.Millisecond }, false, errIdle},
		"half closed": {func(p *Pump) { p.CloseTimeout = 50 * time.Millisecond }, true, errLinger},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t, tcpPair, func(near, _ *Pump) { c.set(near) })
			if c.half {
				l.app.CloseWrite()
			}
			if near, _ := l.ended(t); near != c.want {
				t.Errorf("the pump ended with %v, want %v", near, c.want)
			}
		})
	}
	t.Run("but not while bytes move", func(t *testing.T) {
		l := newLine(t, tcpPair, func(near, _ *Pump) { near.IdleTimeout, near.CloseTimeout = 400*time.Millisecond, 400*time.Millisecond })
		l.app.CloseWrite()
		for begun := time.Now(); time.Since(begun) < time.Second; time.Sleep(10 * time.Millisecond) {
			if _, err := l.source.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(l.app, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestPumpBorrowsNothingWhileIdle(t *testing.T) {
	shared := new(Buffers)
	l := newLine(t, tcpPair, func(near, far *Pump) { near.Buffers, far.Buffers = shared, shared })
	l.app.Write(make([]byte, 1<<20))
	io.ReadFull(l.source, make([]byte, 1<<20))
	until(t, "the buffers to be given back", func() bool { return shared.Lent() == 0 })
}

func TestPumpAwaitsTheAnswer(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		var served sync.WaitGroup
		served.Go(func() {
			b.Serve(func(in *Incoming) {
				if in.Port != 5432 {
					in.Refuse(NoPort, "only 5432")
					return
				}
				if err := in.Grant(); err != nil {
					t.Error(err)
				}
				io.Copy(in.Stream, in.Stream)
				in.Stream.Close()
			})
		})
		defer served.Wait()
		defer b.Close()
		for port, want := range map[uint16]error{5432: nil, 80: syscall.ECONNREFUSED} {
			st, err := a.Ask(context.Background(), Request{Kind: TCP, Port: port, Source: "db", Recipient: "web"})
			if err != nil {
				t.Fatal(err)
			}
			app, end := tcpPair(t)
			app.Write([]byte("hello"))
			app.(*net.TCPConn).CloseWrite()
			p := &Pump{Conn: end.(Conn), Stream: st, AwaitAnswer: patience}
			ended := make(chan error, 1)
			go func() { ended <- p.Run() }()
			got, readErr := io.ReadAll(app)
			app.Close()
			if err := <-ended; !errors.Is(err, want) {
				t.Errorf("port %d: the pump ended with %v, want %v", port, err, want)
			}
			if want == nil && (string(got) != "hello" || readErr != nil) {
				t.Errorf("port %d: read %q, %v", port, got, readErr)
			}
			if want != nil && !errors.Is(readErr, syscall.ECONNRESET) {
				t.Errorf("port %d: read %q, %v, want a reset", port, got, readErr)
			}
		}
	})
}
