package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds waits for what has to happen; nothing is measured by it.
const patience = 20 * time.Second

// testSource makes plain sockets and connects them to one address.
type testSource struct {
	mu  sync.Mutex
	to  netip.AddrPort
	err error
}

func (s *testSource) target() (netip.AddrPort, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to, s.err
}

func (s *testSource) Socket(uint16) (int, netip.AddrPort, error) {
	to, err := s.target()
	if err != nil {
		return -1, to, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return fd, to, err
}

func (s *testSource) PacketSocket(uint16) (int, netip.AddrPort, error) {
	to, err := s.target()
	if err != nil {
		return -1, to, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return fd, to, err
}

// bed is an engine with one listener that leads to one source, and a check
// that nothing is left of it in the end.
type bed struct {
	t        testing.TB
	engine   *Engine
	link     *Link
	source   *net.TCPListener
	listener *Listener
	front    netip.AddrPort
}

func newBed(t testing.TB, e *Engine, l *Link) *bed {
	t.Helper()
	before := openDescriptors(t)
	b := &bed{t: t, engine: e, link: l}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	b.source = listenTCP(t)
	if l.Source == nil {
		l.Source = &testSource{to: b.source.Addr().(*net.TCPAddr).AddrPort()}
	}
	fd, addr := listenFD(t)
	var err error
	b.listener, err = e.Serve(fd, func(local netip.AddrPort) *Link {
		if local != addr {
			t.Errorf("routed by %v, listening on %v", local, addr)
		}
		return l
	})
	if err != nil {
		t.Fatal(err)
	}
	b.front = addr
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		b.source.Close()
		if open := l.Stats().Open; open != 0 {
			t.Errorf("%d connections counted open after Close", open)
		}
		eventually(t, "every descriptor closed", func() bool { return openDescriptors(t) <= before })
		if p := e.Stats().Pipes; p != 0 {
			t.Errorf("%d pipes counted open after Close", p)
		}
	})
	return b
}

func listenTCP(t testing.TB) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// listenFD is a listening socket as portmap would hand it over.
func listenFD(t testing.TB) (int, netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1024); err != nil {
		t.Fatal(err)
	}
	addr, errno := localAddr(int32(fd))
	if errno != 0 {
		t.Fatal(errno)
	}
	return fd, addr
}

// dial makes a connection through the relay and returns both its far ends.
func (b *bed) dial() (recipient, source *net.TCPConn) {
	b.t.Helper()
	recipient = b.connect()
	b.source.SetDeadline(time.Now().Add(patience))
	source, err := b.source.AcceptTCP()
	if err != nil {
		b.t.Fatal(err)
	}
	b.watch(source)
	return recipient, source
}

func (b *bed) connect() *net.TCPConn {
	b.t.Helper()
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(b.front))
	if err != nil {
		b.t.Fatal(err)
	}
	b.watch(c)
	return c
}

func (b *bed) watch(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(patience))
	b.t.Cleanup(func() { c.Close() })
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func random(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	r.Read(p)
	return p
}

// send writes p and, with fin, half-closes.
func send(c *net.TCPConn, p []byte, fin bool) error {
	if _, err := c.Write(p); err != nil {
		return err
	}
	if fin {
		return c.CloseWrite()
	}
	return nil
}

func expect(t testing.TB, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("other bytes arrived than were sent")
	}
}

func expectEOF(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want the end of the stream", n, err)
	}
}

func expectReset(t testing.TB, c net.Conn) {
	t.Helper()
	n, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

// expectRefusal connects and is reset, which a client may see as early as in
// its connect.
func expectRefusal(t testing.TB, addr netip.AddrPort) {
	t.Helper()
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(addr))
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	expectReset(t, c)
}

func reset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestEcho(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{})
	recipient, source := b.dial()
	for _, n := range []int{1, 100, copySize - 1, copySize, copySize + 1, 1 << 20, 7} {
		p := random(n)
		errs := make(chan error, 2)
		go func() { errs <- send(recipient, p, false) }()
		expect(t, source, p)
		go func() { errs <- send(source, p, false) }()
		expect(t, recipient, p)
		for range 2 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := recipient.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectEOF(t, source)
	source.Close()
	expectEOF(t, recipient)
	eventually(t, "connection over", func() bool { return b.link.Stats().Open == 0 })
	s := b.link.Stats()
	if want := (Stats{Total: 1, ToSource: s.ToRecipient, ToRecipient: s.ToSource}); s != want {
		t.Errorf("stats %+v, want %+v", s, want)
	}
}

// A direction that is closed leaves the other open for as long as it talks.
func TestHalfClose(t *testing.T) {
	for _, size := range []int{0, 1, 300, 5 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			b := newBed(t, &Engine{}, &Link{})
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
				if i == 0 {
					if open := b.link.Stats().Open; open != 1 {
						t.Fatalf("%d open after one direction ended", open)
					}
				}
			}
			eventually(t, "connection over", func() bool { return b.link.Stats().Open == 0 })
			if f := b.link.Stats().Failures; f != (Failures{}) {
				t.Errorf("failures %+v after a clean end", f)
			}
		})
	}
}

func TestResetArrivesAsReset(t *testing.T) {
	for _, bytesBefore := range []int{0, 10, 1 << 20} {
		for from := range 2 {
			t.Run(fmt.Sprintf("%d bytes from %d", bytesBefore, from), func(t *testing.T) {
				b := newBed(t, &Engine{}, &Link{})
				recipient, source := b.dial()
				ends := [2]*net.TCPConn{recipient, source}
				p := random(bytesBefore)
				sent := make(chan error, 1)
				go func() { sent <- send(ends[from], p, false) }()
				expect(t, ends[1-from], p)
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				reset(t, ends[from])
				expectReset(t, ends[1-from])
				eventually(t, "connection over", func() bool { return b.link.Stats().Open == 0 })
				// The relay need not have seen the source's answer by then.
				if f := b.link.Stats().Failures; f.Reset+f.Abandoned != 1 {
					t.Errorf("failures %+v, want one reset", f)
				}
			})
		}
	}
}

func TestRefused(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{})
	b.source.Close()
	expectRefusal(t, b.front)
	eventually(t, "refusal counted", func() bool { return b.link.Stats().Failures.Refused == 1 })
	if open := b.link.Stats().Open; open != 0 {
		t.Errorf("%d open", open)
	}
}

func TestNoSocket(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{Source: &testSource{err: unix.EMFILE}})
	expectRefusal(t, b.front)
	eventually(t, "failure counted", func() bool { return b.link.Stats().Failures.NoSocket == 1 })
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

// A slow reader holds its writer back, and every byte arrives before the FIN
// (haproxy#2505, podman#24219).
func TestBackpressure(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{})
	recipient, source := b.dial()
	var sent atomic.Int64
	p := random(1 << 20)
	recipient.SetDeadline(time.Now().Add(time.Second))
	for {
		n, err := recipient.Write(p)
		sent.Add(int64(n))
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
		if sent.Load() > 1<<30 {
			t.Fatal("a writer was never held back by a reader that reads nothing")
		}
	}
	if err := recipient.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for left := sent.Load(); left > 0; {
		n := min(left, int64(len(p)))
		expect(t, source, p[:n])
		left -= n
	}
	expectEOF(t, source)
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
	eventually(t, "room again", func() bool { return b.link.Stats().Open == 0 })
	b.dial()
}

func TestTimeouts(t *testing.T) {
	short := 50 * time.Millisecond
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
			} else {
				expectReset(t, recipient)
			}
			if _, err := io.Copy(io.Discard, source); !test.fin && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("source read %v, want a reset", err)
			}
			eventually(t, "end counted", func() bool { return test.count(b.link.Stats().Failures) == 1 })
		})
	}
}

func TestCut(t *testing.T) {
	b := newBed(t, &Engine{}, &Link{})
	var all []*net.TCPConn
	for range 10 {
		recipient, source := b.dial()
		all = append(all, recipient, source)
	}
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
}

func TestPair(t *testing.T) {
	e := &Engine{}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var far [2]*os.File
	var near [2]int
	for i := range far {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		near[i] = fds[0]
		unix.SetNonblock(fds[1], true)
		far[i] = os.NewFile(uintptr(fds[1]), "far")
		defer far[i].Close()
		far[i].SetDeadline(time.Now().Add(patience))
	}
	l := &Link{}
	if err := e.Pair(near[0], near[1], l); err != nil {
		t.Fatal(err)
	}
	p := random(3 << 20)
	go func() { far[0].Write(p); far[0].Close() }()
	got, err := io.ReadAll(far[1])
	if err != nil || !bytes.Equal(got, p) {
		t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(p))
	}
	if s := l.Stats(); s.ToSource != uint64(len(p)) {
		t.Errorf("stats %+v", s)
	}
}
