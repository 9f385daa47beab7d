package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/proxy"
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/logbook"
)

// soon bounds every wait for something that should happen at once.
const soon = 10 * time.Second

// bed is a Server on a loopback port, and what it was asked to connect to.
type bed struct {
	*Server
	ln  *net.TCPListener
	log logbook.Log

	handled atomic.Int64 // connections

	mu    sync.Mutex
	asked []string
}

// newBed serves until the test ends, and checks that nothing is left then. With
// no Connect of its own, s echoes.
func newBed(t *testing.T, s *Server) *bed {
	t.Helper()
	leavesNothing(t)
	neverResolves(t)
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{Server: s, ln: ln}
	s.Log = slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	connect := s.Connect
	if connect == nil {
		connect = func(context.Context, string, uint16) (Way, error) { return &echo{}, nil }
	}
	s.Connect = func(ctx context.Context, host string, port uint16) (Way, error) {
		b.mu.Lock()
		b.asked = append(b.asked, fmt.Sprintf("%s %d", host, port))
		b.mu.Unlock()
		return connect(ctx, host, port)
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			s.Handle(descriptor(t, c), nil)
			b.handled.Add(1)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-accepted
		s.Close()
		if t.Failed() {
			t.Log(b.log.String())
		}
	})
	return b
}

// descriptor takes c's descriptor out of the net package.
func descriptor(t *testing.T, c *net.TCPConn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(old uintptr) { fd, _ = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	}
	if err != nil {
		t.Error(err)
	}
	c.Close()
	return fd
}

// neverResolves fails the test if anything looks up a name by the net package.
func neverResolves(t *testing.T) {
	was := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, address string) (net.Conn, error) {
		t.Errorf("a name server was asked: %s %s", network, address)
		return nil, errors.New("there is no DNS in this test")
	}}
	t.Cleanup(func() { net.DefaultResolver = was })
}

// leavesNothing checks, when the test ends, that no goroutine and no descriptor
// is left.
func leavesNothing(t *testing.T) {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	t.Cleanup(func() {
		poll(t, func() error {
			if n := runtime.NumGoroutine(); n > goroutines {
				stacks := make([]byte, 1<<20)
				return fmt.Errorf("%d goroutines, before %d:\n%s", n, goroutines, stacks[:runtime.Stack(stacks, true)])
			}
			if n := descriptors(t); n > files {
				return fmt.Errorf("%d descriptors, before %d", n, files)
			}
			return nil
		})
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func poll(t *testing.T, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(soon)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// echo is a Way to a source that sends back all it gets.
type echo struct {
	closed chan struct{} // if not nil, Close closes it
}

func (e *echo) Carry(client int) {
	f := os.NewFile(uintptr(client), "client")
	go func() {
		defer f.Close()
		io.Copy(f, f)
	}()
}

func (e *echo) Close() error {
	if e.closed != nil {
		close(e.closed)
	}
	return nil
}

func (b *bed) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c := b.dialOrReset(t)
	if c == nil {
		t.Fatal("the connection was reset at once")
	}
	return c
}

// dialOrReset returns nil if the server resets the connection before the
// client is back from connecting.
func (b *bed) dialOrReset(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, b.ln.Addr().(*net.TCPAddr))
	if errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(soon))
	return c
}

func (b *bed) wants(t *testing.T, want ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if strings.Join(b.asked, ", ") != strings.Join(want, ", ") {
		t.Errorf("connections were made to %q, want %q", b.asked, want)
	}
}

// Pieces of what a client sends.
const (
	greeting = "\x05\x01\x00"
	connect  = "\x05\x01\x00"
	ipv4     = "\x01\x7f\x4d\x00\x02\x15\x38" // 127.77.0.2:5432
)

// named is the address of a request by name.
func named(name string, port uint16) string {
	return "\x03" + string([]byte{byte(len(name))}) + name + string([]byte{byte(port >> 8), byte(port)})
}

// exchange sends all of it at once and returns all of the answer.
func (b *bed) exchange(t *testing.T, sent string) string {
	t.Helper()
	c := b.dial(t)
	defer c.Close()
	if _, err := io.WriteString(c, sent); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("after %q: %v", got, err)
	}
	return string(got)
}

const (
	accepted  = "\x05\x00"
	connected = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
)

func refusal(code reply) string { return "\x05" + string([]byte{byte(code)}) + connected[2:] }

// A client of somebody else's gets through, and so do its bytes.
func TestForeignClient(t *testing.T) {
	b := newBed(t, &Server{})
	d, err := proxy.SOCKS5("tcp", b.ln.Addr().String(), nil, proxy.Direct)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial("tcp", "webdb:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(soon))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	go func() {
		c.Write(sent)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, %v; want %d", len(got), err, len(sent))
	}
	b.wants(t, "webdb 5432")
}

// What follows the request belongs to the source, however it was sent.
func TestNothingIsReadAhead(t *testing.T) {
	b := newBed(t, &Server{})
	const payload = "GET / HTTP/1.0\r\n\r\n"
	sent := greeting + connect + named("webdb", 80) + payload
	want := accepted + connected + payload
	if got := b.exchange(t, sent); got != want {
		t.Errorf("sent at once, the answer is %q, want %q", got, want)
	}
	c := b.dial(t)
	for i := range sent {
		if _, err := io.WriteString(c, sent[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		t.Errorf("sent byte by byte, the answer is %q, %v, want %q", got, err, want)
	}
	b.wants(t, "webdb 80", "webdb 80")
}

// What a client may write for a host, and what it comes to.
func TestHosts(t *testing.T) {
	long := strings.Repeat("n", 255)
	for _, tt := range []struct{ address, want string }{
		{ipv4, "127.77.0.2 5432"},
		{named("webdb", 5432), "webdb 5432"},
		{named("webdb.", 80), "webdb 80"},
		{named("WebDB", 65535), "WebDB 65535"},
		{named("127.77.0.2", 80), "127.77.0.2 80"},
		{named("127.77.0.2.", 80), "127.77.0.2 80"},
		{named("::ffff:127.77.0.2", 80), "127.77.0.2 80"},
		{"\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x4d\x00\x02\x00\x50", "127.77.0.2 80"},
		{"\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50", "2001:db8::1 80"},
		{named(long, 1), long + " 1"},
		{named("a b\x00\r\n", 0), "a b\x00\r\n 0"},
	} {
		b := newBed(t, &Server{})
		if got := b.exchange(t, greeting+connect+tt.address); got != accepted+connected {
			t.Errorf("%q: the answer is %q", tt.address, got)
		}
		b.wants(t, tt.want)
	}
}

// None of these connects, and the client gets to know why, although it has sent
// more than was read.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct{ sent, want string }{
		"bind":               {greeting + "\x05\x02\x00" + ipv4, accepted + refusal(commandNotSupported)},
		"bind by name":       {greeting + "\x05\x02\x00" + named("webdb", 80), accepted + refusal(commandNotSupported)},
		"udp associate":      {greeting + "\x05\x03\x00" + ipv4, accepted + refusal(commandNotSupported)},
		"unknown command":    {greeting + "\x05\x09\x00" + ipv4, accepted + refusal(commandNotSupported)},
		"unknown address":    {greeting + connect + "\x05\x7f\x4d\x00\x02\x15\x38", accepted + refusal(8)},
		"empty name":         {greeting + connect + named("", 80), accepted + refusal(notAllowed)},
		"name of one dot":    {greeting + connect + named(".", 80), accepted + refusal(notAllowed)},
		"password":           {"\x05\x01\x02", "\x05\xff"},
		"no method":          {"\x05\x00", "\x05\xff"},
		"other version":      {"\x04\x01\x00\x50\x7f\x4d\x00\x02\x00", ""},
		"other version then": {greeting + "\x04\x01\x00" + ipv4, accepted},
		"http":               {"GET / HTTP/1.0\r\n\r\n", ""},
		"nothing":            {"", ""},
		"half a greeting":    {"\x05\x03\x00", ""},
		"half a request":     {greeting + connect + "\x03\x20webdb", accepted},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, &Server{})
			more := strings.Repeat("x", 1000)
			if strings.HasPrefix(name, "half") || name == "nothing" {
				more = ""
			}
			if got := b.exchange(t, tt.sent+more); got != tt.want {
				t.Errorf("the answer is %q, want %q", got, tt.want)
			}
			b.wants(t)
		})
	}
}

func TestReplies(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want byte
	}{
		{ErrNotAllowed, 2},
		{fmt.Errorf("asking: %w", ErrNotAllowed), 2},
		{unix.ENETUNREACH, 3},
		{unix.EHOSTUNREACH, 4},
		{unix.ETIMEDOUT, 4},
		{context.DeadlineExceeded, 4},
		{os.ErrDeadlineExceeded, 4},
		{os.NewSyscallError("connect", unix.ECONNREFUSED), 5},
		{errors.New("refused, or network is unreachable"), 1}, // the library guesses by the text
	} {
		b := newBed(t, &Server{Connect: func(context.Context, string, uint16) (Way, error) { return nil, tt.err }})
		if got, want := b.exchange(t, greeting+connect+ipv4), accepted+refusal(reply(tt.want)); got != want {
			t.Errorf("%v: the answer is %q, want %q", tt.err, got, want)
		}
	}
}

func TestPassword(t *testing.T) {
	login := func(user, password string) string {
		return "\x05\x02\x00\x02" + "\x01" + string([]byte{byte(len(user))}) + user + string([]byte{byte(len(password))}) + password
	}
	const request = connect + ipv4
	for _, tt := range []struct{ sent, want string }{
		{login("any", "sesame") + request, "\x05\x02\x01\x00" + connected},
		{login("", "sesame") + request, "\x05\x02\x01\x00" + connected},
		{login("any", "sesamE") + request, "\x05\x02\x01\x01"},
		{login("any", "sesam") + request, "\x05\x02\x01\x01"},
		{login("any", "") + request, "\x05\x02\x01\x01"},
		{greeting + request, "\x05\xff"},
	} {
		b := newBed(t, &Server{Password: "sesame"})
		if got := b.exchange(t, tt.sent); got != tt.want {
			t.Errorf("%q is answered %q, want %q", tt.sent, got, tt.want)
		}
		if strings.HasSuffix(tt.want, connected) {
			b.wants(t, "127.77.0.2 5432")
		} else {
			b.wants(t)
		}
	}
}

// A panic costs the client that brought it about, and nobody else.
func TestPanic(t *testing.T) {
	b := newBed(t, &Server{Connect: func(_ context.Context, host string, _ uint16) (Way, error) {
		if host == "bad" {
			panic("oh")
		}
		return &echo{}, nil
	}})
	if got := b.exchange(t, greeting+connect+named("bad", 80)); got != accepted {
		t.Errorf("the answer is %q", got)
	}
	if got := b.exchange(t, greeting+connect+named("good", 80)); got != accepted+connected {
		t.Errorf("after a panic, the answer is %q", got)
	}
	if !strings.Contains(b.log.String(), "panic=oh") {
		t.Errorf("the panic is not in the log:\n%s", b.log.String())
	}
}

// A client cannot write lines of its own into the log.
func TestLogIsOneLinePerClient(t *testing.T) {
	b := newBed(t, &Server{Connect: func(context.Context, string, uint16) (Way, error) { return nil, ErrNotAllowed }})
	b.exchange(t, greeting+connect+named("x\ntime=2026 level=ERROR msg=\"all is lost\"", 80))
	poll(t, func() error {
		if n := strings.Count(b.log.String(), "\n"); n != 1 {
			return fmt.Errorf("%d lines:\n%s", n, b.log.String())
		}
		return nil
	})
}
