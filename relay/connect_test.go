package relay

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

func TestGiveUp(t *testing.T) {
	source, _ := silentSource(t)
	b := newBed(t, &Engine{}, &Link{
		Source:         &testSource{to: source.Addr().(*net.TCPAddr).AddrPort()},
		ConnectTimeout: -1,
	})
	recipient := b.connect()
	eventually(t, "connection", func() bool { return b.link.Stats().Open == 1 })
	if n := b.link.GiveUp(); n != 1 {
		t.Errorf("gave %d connections up, want 1", n)
	}
	expectReset(t, recipient)
	b.over()
	if f := b.link.Stats().Failures; f != (Failures{Unreachable: 1}) {
		t.Errorf("failures %+v, want one unreachable", f)
	}
}

// What the source has answered goes on.
func TestGiveUpLeavesOthers(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{})
	recipient, source := b.dial()
	eventually(t, "the answer to be noticed", func() bool {
		conns := b.link.Conns()
		return len(conns) == 1 && conns[0].Established
	})
	if n := b.link.GiveUp(); n != 0 {
		t.Errorf("gave %d connections up, want none", n)
	}
	if err := send(source, []byte("x"), true); err != nil {
		t.Fatal(err)
	}
	expect(t, recipient, []byte("x"))
	expectEOF(t, recipient)
	recipient.Close()
	b.over()
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

// A connection that stays gets keepalive.
func TestSettle(t *testing.T) {
	b := newBed(t, &Engine{Workers: 1}, &Link{})
	b.dial()
	settled := func() (done bool) {
		b.engine.everyWorker(func(w *worker) {
			w.slab.each(func(c *conn) { done = c.settled })
		})
		return done
	}
	eventually(t, "settled", settled)
	b.engine.everyWorker(func(w *worker) {
		w.slab.each(func(c *conn) {
			for i := range c.ends {
				fd := int(c.ends[i].fd)
				if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || on != 1 {
					t.Errorf("end %d: keepalive %d, %v", i, on, err)
				}
				for _, option := range []int{unix.TCP_NODELAY, unix.TCP_KEEPIDLE} {
					if n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, option); err != nil || n == 0 || n > 60 {
						t.Errorf("end %d: TCP option %d is %d, %v", i, option, n, err)
					}
				}
			}
		})
	})
}
