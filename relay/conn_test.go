package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
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
		if conns := b.link.Conns(); len(conns) != 1 || !conns[0].Established || conns[0].ToSource != total ||
			conns[0].Local != b.front || conns[0].Client != recipient.LocalAddr().(*net.TCPAddr).AddrPort() {
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

// The last bytes of a stream and its end, when both are there, go out in one
// packet: that is what every server does to its connections that closes them.
func TestEndGoesWithLastBytes(t *testing.T) {
	for i, towards := range []string{"to the source", "to the recipient"} {
		t.Run(towards, func(t *testing.T) {
			b := newBed(t, &Engine{Workers: 1}, &Link{})
			recipient, source := b.dial()
			from, to := recipient, source
			if i == 1 {
				from, to = source, recipient
			}
			before := segmentsIn(t, to)
			b.engine.workers[0].call(func(w *worker) { // it sees both at once
				if err := send(from, []byte("goodbye"), true); err != nil {
					t.Error(err)
				}
			})
			expect(t, to, []byte("goodbye"))
			expectEOF(t, to)
			if n := segmentsIn(t, to) - before; n != 1 {
				t.Errorf("the last bytes and the end came in %d packets", n)
			}
		})
	}
}

// segmentsIn is how many packets have come in.
func segmentsIn(t *testing.T, c *net.TCPConn) (n uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Segs_in
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
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
