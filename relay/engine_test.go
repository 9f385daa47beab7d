package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

func closeWrite(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
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
		go func() { recipient.Write(p); closeWrite(recipient) }()
		got, err := io.ReadAll(source)
		if err != nil || !bytes.Equal(got, p) {
			t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(p))
		}
		source.Close()
		// The end arrives although others have the sockets open.
		if n, err := recipient.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %d bytes, %v; want the end of the stream", n, err)
		}
		eventually(t, "end of the connection", func() bool { return l.Stats().Open == 0 })
		if s := l.Stats(); s.ToSource != uint64(len(p)) || s.Total != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

// A reset of sockets that others have open as well is one for all.
func TestPairCut(t *testing.T) {
	e := &Engine{}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	l := &Link{}
	near, far := make([]int, 2), make([]net.Conn, 2)
	for i := range near {
		listener := listenTCP(t)
		c, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // and keeps it open beside the relay
		if far[i], err = listener.Accept(); err != nil {
			t.Fatal(err)
		}
		defer far[i].Close()
		far[i].SetDeadline(time.Now().Add(patience))
		listener.Close()
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { near[i], err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Pair(near[0], near[1], l); err != nil {
		t.Fatal(err)
	}
	if err := send(far[0].(*net.TCPConn), []byte("x"), false); err != nil {
		t.Fatal(err)
	}
	expect(t, far[1], []byte("x"))
	if n := l.Cut(); n != 1 {
		t.Errorf("cut %d, want 1", n)
	}
	for _, c := range far {
		expectReset(t, c)
	}
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

func TestForeignLink(t *testing.T) {
	l := &Link{}
	newBed(t, &Engine{Workers: 1}, l).dial()
	other := &Engine{Workers: 1}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	a, _ := unixPair(t)
	b, _ := unixPair(t)
	defer unix.Close(a)
	defer unix.Close(b)
	err := other.Pair(a, b, l)
	if want := "pairing two connections: the link belongs to another engine"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	fd, addr := listenFD(t)
	if _, err := other.Serve(fd, func(netip.AddrPort) *Link { return l }); err != nil {
		t.Fatal(err)
	}
	expectRefusal(t, addr)
}
