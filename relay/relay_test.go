package relay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
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
	listenTCP(t).Close() // Go's own poller is there from the first one on
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

// everyEngine runs a test with each way an engine can work.
func everyEngine(t *testing.T, test func(t *testing.T, e *Engine)) {
	for _, kind := range engines {
		t.Run(kind.name, func(t *testing.T) { test(t, kind.make()) })
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

// over waits for the end of every connection.
func (b *bed) over() {
	b.t.Helper()
	eventually(b.t, "end of the connection", func() bool { return b.link.Stats().Open == 0 && b.link.Stats().Total+b.link.Stats().Failures.Limit > 0 })
}
