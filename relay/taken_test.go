package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// takerBed is a bed whose link hands its connections to the test.
func takerBed(t *testing.T, e *Engine, l *Link) (*bed, chan *Taken) {
	t.Helper()
	taken := make(chan *Taken, 100)
	l.Source = nil
	l.Take = func(c *Taken) { taken <- c }
	b := newBed(t, e, l)
	return b, taken
}

func takenConn(t *testing.T, taken *Taken) *net.TCPConn {
	t.Helper()
	c, err := taken.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestTake(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b, got := takerBed(t, e, &Link{})
		recipient := b.connect()
		taken := <-got
		if taken.Local != b.front || taken.Client != recipient.LocalAddr().(*net.TCPAddr).AddrPort() {
			t.Errorf("from %v to %v, want %v to %v", taken.Client, taken.Local, recipient.LocalAddr(), b.front)
		}
		c := takenConn(t, taken)
		if err := send(recipient, []byte("question"), false); err != nil {
			t.Fatal(err)
		}
		expect(t, c, []byte("question"))
		taken.ToSource.Add(8)
		if s := b.link.Stats(); s.Open != 1 || s.Total != 1 || s.ToSource != 8 {
			t.Errorf("stats while it is open: %+v", s)
		}
		if conns := b.link.Conns(); len(conns) != 1 || conns[0].ToSource != 8 || conns[0].Client != taken.Client || conns[0].Age > patience {
			t.Errorf("connections %+v", conns)
		}
		taken.ToRecipient.Add(6)
		c.SetLinger(-1)
		c.Close()
		taken.End(nil)
		taken.End(errors.New("once is enough"))
		expectEOF(t, recipient)
		if s := b.link.Stats(); s.Open != 0 || s.Total != 1 || s.ToSource != 8 || s.ToRecipient != 6 || s.Failures != (Failures{}) {
			t.Errorf("stats after its end: %+v", s)
		}
		if taken.Context().Err() == nil {
			t.Error("the context goes on after the end")
		}
	})
}

// A connection goes back with what its handshake came to, is counted once, and
// relayed like any other.
func TestTakenPair(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b, got := takerBed(t, e, &Link{MaxConns: 1})
		recipient := b.connect()
		taken := <-got
		near, source := unixPair(t)
		if _, err := source.Write([]byte("early")); err != nil {
			t.Fatal(err)
		}
		taken.ToRecipient.Add(3)
		if err := taken.Pair(taken.FD, near); err != nil {
			t.Fatal(err)
		}
		expect(t, recipient, []byte("early"))
		p := random(3 << 20)
		go send(recipient, p, true)
		all, err := io.ReadAll(source)
		if err != nil || !bytes.Equal(all, p) {
			t.Fatalf("read %d bytes, %v; want %d", len(all), err, len(p))
		}
		if s := b.link.Stats(); s.Open != 1 || s.Total != 1 || s.ToRecipient != 8 {
			t.Errorf("stats %+v", s)
		}
		source.Close()
		expectEOF(t, recipient)
		b.over()
		taken.End(errors.New("it is not the taker's any more"))
		if s := b.link.Stats(); s.Open != 0 || s.ToSource != uint64(len(p)) || s.Failures != (Failures{}) {
			t.Errorf("stats after its end: %+v", s)
		}
	})
}

func TestTakenCut(t *testing.T) {
	b, got := takerBed(t, &Engine{}, &Link{})
	recipient := b.connect()
	taken := <-got
	c := takenConn(t, taken)
	over := make(chan struct{})
	context.AfterFunc(taken.Context(), func() {
		c.SetLinger(0)
		c.Close()
		taken.End(io.EOF)
		close(over)
	})
	if n := b.link.Cut(); n != 1 {
		t.Errorf("cut %d, want 1", n)
	}
	expectReset(t, recipient)
	<-over
	if n := b.link.Cut(); n != 0 {
		t.Errorf("cut %d once more", n)
	}
	if s := b.link.Stats(); s.Open != 0 || s.Failures != (Failures{Cut: 1}) {
		t.Errorf("stats %+v", s)
	}
}

// What was cut does not come back, and what has come back is cut.
func TestTakenPairOrCut(t *testing.T) {
	b, got := takerBed(t, &Engine{Workers: 2}, &Link{})
	for range 200 {
		recipient := b.connect()
		taken := <-got
		near, source := unixPair(t)
		var paired error
		var racing sync.WaitGroup
		racing.Go(func() {
			if paired = taken.Pair(taken.FD, near); paired != nil {
				closeFD(int32(near))
				taken.Refuse(paired)
			}
		})
		racing.Go(func() {
			if n := b.link.Cut(); n != 1 {
				t.Errorf("cut %d, want 1", n)
			}
		})
		racing.Wait()
		expectReset(t, recipient)
		source.Close()
		if want := "giving a connection back: the connection was cut"; paired != nil && paired.Error() != want {
			t.Fatalf("%v, want %q", paired, want)
		}
	}
	b.over()
	if s := b.link.Stats(); s.Total != 200 || s.Failures != (Failures{Cut: 200}) {
		t.Errorf("stats %+v", s)
	}
}

func TestTakenLimit(t *testing.T) {
	b, got := takerBed(t, &Engine{}, &Link{MaxConns: 1})
	first := b.connect()
	taken := <-got
	expectRefusal(t, b.front)
	taken.Refuse(nil)
	expectReset(t, first)
	b.connect()
	(<-got).Refuse(nil)
	if s := b.link.Stats(); s.Total != 2 || s.Failures != (Failures{Limit: 1}) {
		t.Errorf("stats %+v", s)
	}
}

// An engine that is closed tells those who have its connections.
func TestTakenEngineClose(t *testing.T) {
	b, got := takerBed(t, &Engine{}, &Link{})
	recipient := b.connect()
	taken := <-got
	if err := b.engine.Close(); err != nil {
		t.Fatal(err)
	}
	<-taken.Context().Done()
	near, _ := unixPair(t)
	defer unix.Close(near)
	if err := taken.Pair(taken.FD, near); err == nil {
		t.Error("a closed engine takes a connection back")
	}
	taken.Refuse(nil)
	expectReset(t, recipient)
	if s := b.link.Stats(); s.Failures != (Failures{Cut: 1}) {
		t.Errorf("stats %+v", s)
	}
}

func TestTakenPairErrors(t *testing.T) {
	b, got := takerBed(t, &Engine{}, &Link{})
	recipient := b.connect()
	taken := <-got
	err := taken.Pair(taken.FD, 1<<20)
	if want := "giving a connection back: taking over descriptor 1048576: bad file descriptor"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	if s := b.link.Stats(); s.Open != 1 {
		t.Errorf("stats %+v after a Pair that failed", s)
	}
	taken.Refuse(fmt.Errorf("dialing: %w", syscall.ECONNREFUSED))
	expectReset(t, recipient)
}

func TestCauseOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want cause
	}{
		{nil, finished},
		{fmt.Errorf("x: %w", syscall.ECONNREFUSED), refused},
		{&os.SyscallError{Err: syscall.ECONNRESET}, resetByEnd},
		{syscall.EPIPE, resetByEnd},
		{fmt.Errorf("x: %w", syscall.ETIMEDOUT), timedOut},
		{os.ErrDeadlineExceeded, timedOut},
		{context.DeadlineExceeded, timedOut},
		{syscall.EHOSTUNREACH, unreachable},
		{syscall.EACCES, unreachable},
		{syscall.ENOBUFS, noSocket},
		{io.ErrUnexpectedEOF, otherCause},
	} {
		if got := causeOf(c.err); got != c.want {
			t.Errorf("%v is %v, want %v", c.err, got, c.want)
		}
	}
}

// pairSource makes flows one of a pair of sockets and hands out the other.
type pairSource struct {
	far chan *net.UnixConn
}

func (s pairSource) Socket(uint16) (int, netip.AddrPort, error) {
	return -1, netip.AddrPort{}, errors.New("not for connections")
}

func (s pairSource) PacketSocket(uint16) (int, netip.AddrPort, error) {
	fd, far, err := FlowPair()
	if err == nil {
		s.far <- far
	}
	return fd, netip.AddrPort{}, err
}

func newPairBed(t *testing.T, e *Engine, l *Link) (*packetBed, chan *net.UnixConn) {
	t.Helper()
	far := make(chan *net.UnixConn, 100)
	l.Source = pairSource{far}
	return newPacketBed(t, e, l, os.Geteuid() == 0), far
}

func carrier(t *testing.T, far chan *net.UnixConn) *net.UnixConn {
	t.Helper()
	f := <-far
	f.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { f.Close() })
	return f
}

func TestPairedFlow(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		if e.seam != nil {
			return // what fails to be sent is lost, as it may be
		}
		b, far := newPairBed(t, e, &Link{})
		client := b.client()
		buf := make([]byte, 1<<16)
		var f *net.UnixConn
		for _, size := range []int{1, 1200, 0, 65507, 1} {
			p := random(size)
			if _, err := client.Write(p); err != nil {
				t.Fatal(err)
			}
			if f == nil {
				f = carrier(t, far)
			}
			// A read of nothing is the end to package net.
			n, err := f.Read(buf)
			if size == 0 && err == io.EOF {
				err = nil
			}
			if err != nil || !bytes.Equal(buf[:n], p) {
				t.Fatalf("carrier got %d bytes, %v; want %d", n, err, size)
			}
			raw, _ := f.SyscallConn()
			raw.Write(func(fd uintptr) bool { _, err = unix.Write(int(fd), p); return err != unix.EAGAIN })
			if err != nil {
				t.Fatal(err)
			}
			if n, err = client.Read(buf); err != nil || !bytes.Equal(buf[:n], p) {
				t.Fatalf("client got %d bytes, %v; want %d", n, err, size)
			}
		}
		eventually(t, "the last bytes counted", func() bool { return b.link.Stats().ToRecipient == 66709 })
		if s := b.link.Stats(); s.Open != 1 || s.Total != 1 || s.ToSource != 66709 {
			t.Errorf("stats %+v", s)
		}
		f.Close()
		eventually(t, "end of the flow", func() bool { return b.link.Stats().Open == 0 })
		if s := b.link.Stats(); s.Failures != (Failures{}) {
			t.Errorf("failures %+v", s.Failures)
		}
		// The next datagram makes the next flow.
		if _, err := client.Write([]byte("again")); err != nil {
			t.Fatal(err)
		}
		f = carrier(t, far)
		if n, err := f.Read(buf); err != nil || string(buf[:n]) != "again" {
			t.Errorf("carrier got %q, %v", buf[:n], err)
		}
		if n := b.link.Cut(); n != 1 {
			t.Errorf("cut %d, want 1", n)
		}
		if n, err := f.Read(buf); err != io.EOF {
			t.Errorf("carrier got %q, %v after the cut", buf[:n], err)
		}
	})
}

// A burst that the kernel put together for the receiver is taken apart again:
// a pair of sockets would pass it on as one datagram.
func TestPairedFlowBurst(t *testing.T) {
	b, far := newPairBed(t, &Engine{}, &Link{})
	client := b.client()
	raw, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const size, count = 1000, 20
	p := random(size * count)
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Skip("no segmentation of datagrams here:", err)
	}
	if _, err := client.Write(p); err != nil {
		t.Fatal(err)
	}
	f := carrier(t, far)
	buf := make([]byte, 1<<16)
	for i := range count {
		n, err := f.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], p[i*size:][:size]) {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
	}
}

// A carrier that closes before the first answer has refused.
func TestPairedFlowRefused(t *testing.T) {
	for _, unread := range []bool{false, true} {
		t.Run(fmt.Sprintf("unread=%v", unread), func(t *testing.T) {
			b, far := newPairBed(t, &Engine{}, &Link{})
			client := b.client()
			if _, err := client.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			f := carrier(t, far)
			if unread {
				// Closed before the question is there, it is no end of this flow:
				// the question is sent to another one then.
				eventually(t, "the question", func() bool { return holds(t, f) })
			} else {
				f.Read(make([]byte, 100))
			}
			f.Close()
			eventually(t, "end of the flow", func() bool { return b.link.Stats().Open == 0 })
			if s := b.link.Stats(); s.Failures != (Failures{Refused: 1}) {
				t.Errorf("failures %+v", s.Failures)
			}
			if b.listener.reply < 0 {
				return // nothing is said without a raw socket
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("client: %v, want a refusal", err)
			}
		})
	}
}

// holds tells whether there is something to be read, and leaves it there.
func holds(t *testing.T, c syscall.Conn) (found bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		found = err == nil && n > 0
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// A connection from elsewhere is taken like one that was accepted.
func TestEngineTake(t *testing.T) {
	b, _ := takerBed(t, &Engine{}, &Link{MaxConns: 1})
	near, far := unixPair(t)
	taken, err := b.engine.Take(near, b.link)
	if err != nil {
		t.Fatal(err)
	}
	if s := b.link.Stats(); s.Open != 1 || s.Total != 1 {
		t.Errorf("stats while it is open: %+v", s)
	}
	if _, err := b.engine.Take(near, b.link); !errors.Is(err, ErrLimit) {
		t.Errorf("above the limit: %v", err)
	}
	if n := b.link.Cut(); n != 1 {
		t.Errorf("cut %d, want 1", n)
	}
	<-taken.Context().Done()
	taken.Refuse(nil)
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the other end stays open")
	}
	if s := b.link.Stats(); s.Open != 0 || s.Failures != (Failures{Cut: 1, Limit: 1}) {
		t.Errorf("stats after its end: %+v", s)
	}
	if err := b.engine.Close(); err != nil {
		t.Fatal(err)
	}
	near, _ = unixPair(t)
	defer unix.Close(near)
	if _, err := b.engine.Take(near, b.link); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed engine: %v", err)
	}
}
