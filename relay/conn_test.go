package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestEcho(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		recipient, source := b.dial()
		var total uint64
		for _, n := range []int{1, 100, copySize - 1, copySize, copySize + 1, 1 << 20, 7} {
			p := random(n)
			total += uint64(n)
			for _, c := range [][2]*net.TCPConn{{recipient, source}, {source, recipient}} {
				sent := make(chan error, 1)
				go func() { sent <- send(c[0], p, false) }()
				expect(t, c[1], p)
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
		}
		if conns := b.link.Conns(); len(conns) != 1 || !conns[0].Established || conns[0].ToSource != total {
			t.Errorf("connections %+v, want one that has moved %d bytes", conns, total)
		}
		if err := recipient.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expectEOF(t, source)
		source.Close()
		expectEOF(t, recipient)
		b.over()
		if s, want := b.link.Stats(), (Stats{Total: 1, ToSource: total, ToRecipient: total}); s != want {
			t.Errorf("stats %+v, want %+v", s, want)
		}
	})
}

// A direction that is closed leaves the other open for as long as it talks.
func TestHalfClose(t *testing.T) {
	for _, size := range []int{0, 1, 300, 5 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			everyEngine(t, func(t *testing.T, e *Engine) {
				b := newBed(t, e, &Link{})
				recipient, source := b.dial()
				p := random(size)
				for i, c := range [][2]*net.TCPConn{{recipient, source}, {source, recipient}} {
					sent := make(chan error, 1)
					go func() { sent <- send(c[0], p, true) }()
					expect(t, c[1], p)
					expectEOF(t, c[1])
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
					if open := b.link.Stats().Open; i == 0 && open != 1 {
						t.Fatalf("%d open after one direction ended", open)
					}
				}
				b.over()
				if f := b.link.Stats().Failures; f != (Failures{}) {
					t.Errorf("failures %+v after a clean end", f)
				}
			})
		})
	}
}

func TestResetArrivesAsReset(t *testing.T) {
	for _, size := range []int{0, 10, 1 << 20} {
		for from := range 2 {
			t.Run(fmt.Sprintf("%d bytes from %d", size, from), func(t *testing.T) {
				everyEngine(t, func(t *testing.T, e *Engine) {
					b := newBed(t, e, &Link{})
					recipient, source := b.dial()
					ends := [2]*net.TCPConn{recipient, source}
					p := random(size)
					sent := make(chan error, 1)
					go func() { sent <- send(ends[from], p, false) }()
					expect(t, ends[1-from], p)
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
					reset(t, ends[from])
					expectReset(t, ends[1-from])
					b.over()
					// The relay need not have seen the source's answer by then.
					if f := b.link.Stats().Failures; f.Reset+f.Abandoned != 1 {
						t.Errorf("failures %+v, want one reset", f)
					}
				})
			})
		}
	}
}

// What an end has sent before it resets is not thrown away where it could be
// delivered without the relay.
func TestBytesBeforeReset(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		recipient, source := b.dial()
		p := random(2000)
		if err := send(source, p, false); err != nil {
			t.Fatal(err)
		}
		reset(t, source)
		// A reset overtakes what has not been read on any TCP connection, so
		// all there is to check is that nothing else arrives.
		got, err := io.ReadAll(recipient)
		if !errors.Is(err, syscall.ECONNRESET) || !bytes.HasPrefix(p, got) {
			t.Errorf("read %d bytes and %v, want a part of what was sent and a reset", len(got), err)
		}
	})
}

// A full reader does not keep a reset from arriving.
func TestResetWhileBlocked(t *testing.T) {
	for from := range 2 {
		t.Run(fmt.Sprint("from ", from), func(t *testing.T) {
			everyEngine(t, func(t *testing.T, e *Engine) {
				b := newBed(t, e, &Link{})
				recipient, source := b.dial()
				ends := [2]*net.TCPConn{recipient, source}
				b.fill(ends[from])
				reset(t, ends[from])
				expectReset(t, ends[1-from])
				b.over()
			})
		})
	}
}

// A writer whose reader is gone does not write for ever (yamux#133).
func TestDepartedReader(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		recipient, source := b.dial()
		source.Close()
		expectEOF(t, recipient)
		p := make([]byte, 1<<16)
		for {
			if _, err := recipient.Write(p); err != nil {
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Fatal(err)
				}
				break
			}
		}
		b.over()
	})
}

// A response that is complete is delivered to its last byte, however slowly
// it is read and however soon after it the source is gone (ztunnel#1887,
// haproxy#2505, podman#24219).
func TestCloseBehindBytes(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		recipient, source := b.dial()
		p := random(8 << 20)
		sent := make(chan error, 1)
		go func() {
			_, err := source.Write(p)
			source.Close()
			sent <- err
		}()
		for at := 0; at < len(p); {
			n := min(len(p)-at, 1+at%70000)
			expect(t, recipient, p[at:at+n])
			at += n
		}
		expectEOF(t, recipient)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		recipient.Close()
		b.over()
		if f := b.link.Stats().Failures; f != (Failures{}) {
			t.Errorf("failures %+v after a clean end", f)
		}
	})
}

// A reader that takes nothing holds its writer back, and every byte arrives
// before the FIN once it reads.
func TestBackpressure(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		recipient, source := b.dial()
		sent, p := b.fill(recipient)
		// The other direction is not concerned.
		if err := send(source, []byte("hello"), false); err != nil {
			t.Fatal(err)
		}
		expect(t, recipient, []byte("hello"))
		if err := recipient.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for left := sent; left > 0; {
			n := min(left, len(p))
			expect(t, source, p[:n])
			left -= n
		}
		expectEOF(t, source)
	})
}

// fill writes copies of p until no more is taken, and returns how many bytes
// that were.
func (b *bed) fill(c *net.TCPConn) (sent int, p []byte) {
	b.t.Helper()
	p = random(1 << 20)
	raw, err := c.SyscallConn()
	if err != nil {
		b.t.Fatal(err)
	}
	for quiet := 0; quiet < 50; {
		var n int
		raw.Write(func(fd uintptr) bool {
			n, err = unix.Write(int(fd), p[sent%len(p):])
			return true
		})
		switch {
		case err == nil:
			sent += n
			quiet = 0
		case errors.Is(err, unix.EAGAIN):
			// Full for good is full for a while: what is under way in the
			// relay has arrived by then.
			quiet++
			time.Sleep(time.Millisecond)
		default:
			b.t.Fatal(err)
		}
		if sent > 1<<30 {
			b.t.Fatal("a writer is not held back by a reader that reads nothing")
		}
	}
	return sent, p
}

// Urgent data arrive in line, and what is behind them is not forgotten.
func TestUrgentData(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		recipient, source := b.dial()
		for _, c := range [][2]*net.TCPConn{{recipient, source}, {source, recipient}} {
			raw, err := c[0].SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			for round := range 20 {
				size := []int{10, 3 * copySize}[round%2]
				sent := make(chan error, 1)
				go func() {
					if err := send(c[0], random(size), false); err != nil {
						sent <- err
						return
					}
					var err error
					raw.Write(func(fd uintptr) bool {
						err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
						return !errors.Is(err, unix.EAGAIN)
					})
					if err == nil {
						err = send(c[0], random(size+1), false)
					}
					sent <- err
				}()
				expect(t, c[1], random(size))
				expect(t, c[1], []byte("!"))
				expect(t, c[1], random(size+1))
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestRefused(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		b.source.Close()
		expectRefusal(t, b.front)
		b.over()
		if f := b.link.Stats().Failures; f != (Failures{Refused: 1}) {
			t.Errorf("failures %+v, want one refusal", f)
		}
	})
}

func TestNoSocket(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{Source: &testSource{err: unix.EMFILE}})
	expectRefusal(t, b.front)
	b.over()
	if f := b.link.Stats().Failures; f != (Failures{NoSocket: 1}) {
		t.Errorf("failures %+v, want one for want of a socket", f)
	}
}

func TestUnreachable(t *testing.T) {
	// A broadcast address is refused by connect itself.
	b := newBed(t, &Engine{}, &Link{Source: &testSource{to: netip.MustParseAddrPort("255.255.255.255:1")}})
	expectRefusal(t, b.front)
	b.over()
	if f := b.link.Stats().Failures; f.Unreachable != 1 {
		t.Errorf("failures %+v, want one unreachable", f)
	}
}

func TestNoLink(t *testing.T) {
	e := &Engine{Workers: 1}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	fd, addr := listenFD(t)
	if _, err := e.Serve(fd, func(netip.AddrPort) *Link { return nil }); err != nil {
		t.Fatal(err)
	}
	expectRefusal(t, addr)
	if n := e.Stats().Unrouted; n != 1 {
		t.Errorf("%d unrouted, want 1", n)
	}
}

// silentSource is a listener that answers no connect until it is told to: its
// backlog is full.
func silentSource(t *testing.T) (source *net.TCPListener, answer func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "silent")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	filling := make(chan net.Conn, 1)
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	filling <- c
	t.Cleanup(func() { c.Close() })
	return l.(*net.TCPListener), func() {
		first, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		first.Close()
	}
}

func TestConnectTimeout(t *testing.T) {
	source, _ := silentSource(t)
	b := newBed(t, &Engine{}, &Link{
		Source:         &testSource{to: source.Addr().(*net.TCPAddr).AddrPort()},
		ConnectTimeout: 50 * time.Millisecond,
	})
	expectReset(t, b.connect())
	b.over()
	if f := b.link.Stats().Failures; f != (Failures{Timeout: 1}) {
		t.Errorf("failures %+v, want one timeout", f)
	}
}

// A recipient that goes before the source has answered takes the connect with
// it. One that has only sent all it has to send is waiting.
func TestBeforeTheSourceAnswers(t *testing.T) {
	t.Run("reset", func(t *testing.T) {
		source, _ := silentSource(t)
		b := newBed(t, &Engine{}, &Link{Source: &testSource{to: source.Addr().(*net.TCPAddr).AddrPort()}})
		recipient := b.connect()
		eventually(t, "connection", func() bool { return b.link.Stats().Open == 1 })
		reset(t, recipient)
		b.over()
		if f := b.link.Stats().Failures; f != (Failures{Abandoned: 1}) {
			t.Errorf("failures %+v, want one abandoned", f)
		}
	})
	for _, size := range []int{0, 100, 1 << 20} {
		t.Run(fmt.Sprint("half-close behind ", size), func(t *testing.T) {
			listener, answer := silentSource(t)
			b := newBed(t, &Engine{}, &Link{Source: &testSource{to: listener.Addr().(*net.TCPAddr).AddrPort()}})
			recipient := b.connect()
			sent := make(chan error, 1)
			go func() { sent <- send(recipient, random(size), true) }()
			eventually(t, "connection", func() bool { return b.link.Stats().Open == 1 })
			if conns := b.link.Conns(); len(conns) != 1 || conns[0].Established {
				t.Errorf("connections %+v, want one that is being connected", conns)
			}
			answer()
			listener.SetDeadline(time.Now().Add(patience))
			source, err := listener.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			b.watch(source)
			expect(t, source, random(size))
			expectEOF(t, source)
			if err := send(source, []byte("answer"), true); err != nil {
				t.Fatal(err)
			}
			expect(t, recipient, []byte("answer"))
			expectEOF(t, recipient)
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			b.over()
		})
	}
}

func TestMaxConns(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{MaxConns: 1})
	recipient, source := b.dial()
	expectRefusal(t, b.front)
	if n := b.link.Stats().Failures.Limit; n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
	if err := send(recipient, []byte("x"), false); err != nil {
		t.Fatal(err)
	}
	expect(t, source, []byte("x"))
	recipient.Close()
	source.Close()
	b.over()
	b.dial()
}

func TestTimeouts(t *testing.T) {
	const short = 50 * time.Millisecond
	for _, test := range []struct {
		name  string
		link  *Link
		fin   bool
		count func(Failures) uint64
	}{
		{"idle", &Link{IdleTimeout: short}, false, func(f Failures) uint64 { return f.Idle }},
		{"lifetime", &Link{MaxLifetime: short}, false, func(f Failures) uint64 { return f.Lifetime }},
		{"half-closed", &Link{CloseTimeout: short}, true, func(f Failures) uint64 { return f.HalfClosed }},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBed(t, &Engine{}, test.link)
			recipient, source := b.dial()
			if test.fin {
				recipient.CloseWrite()
				expectEOF(t, source)
			}
			expectReset(t, recipient)
			b.over()
			if n := test.count(b.link.Stats().Failures); n != 1 {
				t.Errorf("failures %+v, want one by this limit", b.link.Stats().Failures)
			}
		})
	}
}

// Bytes that move put the timeouts off.
func TestTimeoutsExtend(t *testing.T) {
	const limit = 300 * time.Millisecond
	b := newBed(t, &Engine{}, &Link{IdleTimeout: limit, CloseTimeout: limit})
	recipient, source := b.dial()
	recipient.CloseWrite()
	expectEOF(t, source)
	for start := time.Now(); time.Since(start) < 3*limit; {
		if err := send(source, []byte("x"), false); err != nil {
			t.Fatal(err)
		}
		expect(t, recipient, []byte("x"))
	}
	source.Close()
	expectEOF(t, recipient)
	b.over()
	if f := b.link.Stats().Failures; f != (Failures{}) {
		t.Errorf("failures %+v while bytes flowed", f)
	}
}

func TestCut(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		var all []*net.TCPConn
		for range 10 {
			recipient, source := b.dial()
			all = append(all, recipient, source)
		}
		b.fill(all[0])
		if n := len(b.link.Conns()); n != 10 {
			t.Errorf("%d connections listed, want 10", n)
		}
		if n := b.link.Cut(); n != 10 {
			t.Errorf("cut %d, want 10", n)
		}
		for _, c := range all {
			expectReset(t, c)
		}
		if s := b.link.Stats(); s.Open != 0 || s.Failures.Cut != 10 {
			t.Errorf("stats %+v after a cut of 10", s)
		}
	})
}

func TestCutOfNothing(t *testing.T) {
	if n := new(Link).Cut(); n != 0 {
		t.Errorf("cut %d of a link never used", n)
	}
	if s := new(Link).Stats(); s != (Stats{}) {
		t.Errorf("stats %+v of a link never used", s)
	}
}

func TestListenerClose(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{})
	recipient, source := b.dial()
	for range 2 {
		if err := b.listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := net.Dial("tcp4", b.front.String()); err == nil {
		c.Close()
		t.Error("a closed listener accepts")
	}
	if err := send(recipient, []byte("x"), false); err != nil {
		t.Fatal(err)
	}
	expect(t, source, []byte("x"))
}

// unixPair is a stream whose one end is handed to the relay and whose other
// is f.
func unixPair(t *testing.T) (near int, f *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fds[1], true)
	f = os.NewFile(uintptr(fds[1]), "far")
	f.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { f.Close() })
	return fds[0], f
}

func TestPair(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		a, recipient := unixPair(t)
		b, source := unixPair(t)
		// As a process has them that has passed them on and not closed yet.
		for _, fd := range []int{a, b} {
			other, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(other)
		}
		l := &Link{}
		if err := e.Pair(a, b, l); err != nil {
			t.Fatal(err)
		}
		p := random(3 << 20)
		go func() { recipient.Write(p); recipient.Close() }()
		got, err := io.ReadAll(source)
		if err != nil || !bytes.Equal(got, p) {
			t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(p))
		}
		source.Close()
		eventually(t, "end of the connection", func() bool { return l.Stats().Open == 0 })
		if s := l.Stats(); s.ToSource != uint64(len(p)) || s.Total != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestPairErrors(t *testing.T) {
	e := &Engine{Workers: 1}
	a, _ := unixPair(t)
	b, _ := unixPair(t)
	defer unix.Close(a)
	defer unix.Close(b)
	if err := e.Pair(a, b, &Link{}); !errors.Is(err, ErrClosed) {
		t.Errorf("before Start: %v, want ErrClosed", err)
	}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(); err == nil || err.Error() != "starting the relay: it was started before" {
		t.Errorf("second Start: %v", err)
	}
	full := &Link{MaxConns: 1}
	c, _ := unixPair(t)
	d, _ := unixPair(t)
	if err := e.Pair(c, d, full); err != nil {
		t.Fatal(err)
	}
	err := e.Pair(a, b, full)
	if want := "pairing two connections: the link has its limit of connections open"; !errors.Is(err, ErrLimit) || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	err = e.Pair(a, 1<<20, &Link{})
	if want := "pairing two connections: taking over descriptor 1048576: bad file descriptor"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	for range 2 {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Pair(a, b, &Link{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
	fd, _ := listenFD(t)
	defer unix.Close(fd)
	if _, err := e.Serve(fd, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Serve after Close: %v, want ErrClosed", err)
	}
}

// Close ends what is going on, with connections in every state.
func TestEngineClose(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{})
		recipient, source := b.dial()
		blocked, _ := b.dial()
		b.fill(blocked)
		half, other := b.dial()
		half.CloseWrite()
		expectEOF(t, other)
		var calls atomic.Int64
		go func() {
			for calls.Add(1) < 1000 {
				c, err := net.Dial("tcp4", b.front.String())
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		eventually(t, "some connections", func() bool { return calls.Load() > 20 })
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*net.TCPConn{recipient, source, blocked, half} {
			expectReset(t, c)
		}
	})
}
