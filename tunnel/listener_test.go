package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/leaks"
	"github.com/linkrun/linkrun/internal/logbook"
)

// serveListener runs l on a port of its own until the test is over.
func serveListener(t testing.TB, l *Listener) (addr string, stop func()) {
	t.Helper()
	leaks.Check(t)
	ln, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln.Addr().String(), serveOn(t, l, ln)
}

func serveOn(t testing.TB, l *Listener, ln net.Listener) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Serve(ctx, ln); err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func TestDialAndListen(t *testing.T) {
	served := make(chan *Session, 1)
	addr, _ := serveListener(t, &Listener{TLS: testTLS(t), Handle: func(c *Secured) {
		s := Server(c, Config{})
		served <- s
		s.Serve(func(in *Incoming) { in.Refuse(Denied, "nobody") })
	}})
	conn, err := DialTLS(context.Background(), addr, testTLS(t))
	if err != nil {
		t.Fatal(err)
	}
	a, err := Start(context.Background(), conn, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b := <-served
	defer b.Close()
	st, err := a.Ask(context.Background(), requests[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Answer(patience); err == nil || err.Error() != "denied: nobody" {
		t.Errorf("the answer is %v", err)
	}
	st.Close()
}

// What a stranger does costs a place among the handshakes and a line.
func TestStrangers(t *testing.T) {
	var log logbook.Log
	addr, _ := serveListener(t, &Listener{
		TLS:    testTLS(t),
		Handle: func(c *Secured) { c.Close() },
		Log:    slog.New(slog.NewTextHandler(&log, nil)),
	})
	for hello, want := range map[string]string{
		"GET / HTTP/1.1\r\n\r\n": "first record does not look like a TLS handshake",
		"":                       "EOF",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(hello))
		conn.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, conn)
		conn.Close()
		until(t, "a line about "+want, func() bool { return strings.Contains(log.String(), want) })
	}
	old := testTLS(t).Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := DialTLS(context.Background(), addr, old); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	until(t, "a line about the version", func() bool { return strings.Contains(log.String(), "unsupported versions") })
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d lines were logged, want 3:\n%s", n, log.String())
	}
}

// One that says nothing keeps nobody out: the oldest has to make room.
func TestSlowHandshakes(t *testing.T) {
	handled := make(chan struct{}, 10)
	addr, _ := serveListener(t, &Listener{
		TLS:           testTLS(t),
		MaxHandshakes: 3,
		Handle:        func(c *Secured) { c.Close(); handled <- struct{}{} },
	})
	var slow []net.Conn
	for range 10 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		slow = append(slow, conn)
	}
	for _, conn := range slow[:7] {
		conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("an old one is still there: %v", err)
		}
	}
	for range 5 {
		conn, err := DialTLS(context.Background(), addr, testTLS(t))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		<-handled
	}
}

// failing is a listener that fails before it accepts.
type failing struct {
	net.Listener
	failures int
}

func (f *failing) Accept() (net.Conn, error) {
	if f.failures > 0 {
		f.failures--
		return nil, syscall.EMFILE
	}
	return f.Listener.Accept()
}

func TestAcceptFailsForAWhile(t *testing.T) {
	leaks.Check(t)
	ln, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, &Listener{TLS: testTLS(t), Handle: func(c *Secured) { c.Close() }}, &failing{ln, 3})
	conn, err := DialTLS(context.Background(), ln.Addr().String(), testTLS(t))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestListenerStops(t *testing.T) {
	addr, stop := serveListener(t, &Listener{TLS: testTLS(t), Handle: func(c *Secured) { c.Close() }})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop() // ends the handshake, too
	if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialing a listener that was stopped gives %v", err)
	}
}

// Whoever dials learns that it is not welcome before it counts on the session.
func TestStartFails(t *testing.T) {
	addr, _ := serveListener(t, &Listener{TLS: testTLS(t), Handle: func(c *Secured) { c.Close() }})
	conn, err := DialTLS(context.Background(), addr, testTLS(t))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Start(context.Background(), conn, Config{}); err == nil {
		s.Close()
		t.Error("a session was started with nobody")
	}
	if _, err := DialTLS(context.Background(), "127.0.0.1:1", testTLS(t)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialing nobody gives %v", err)
	}
}

// The peer of a Secured sees that it was closed, and a Secured that it was cut
// off.
func TestSecuredCloseWrite(t *testing.T) {
	a, b := tlsPair(t)
	defer a.Close()
	defer b.Close()
	a.Write([]byte("last words"))
	if err := a.(*Secured).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	b.Write([]byte("answer"))
	got := make([]byte, 6)
	if _, err := io.ReadFull(a, got); err != nil || string(got) != "answer" {
		t.Errorf("read %q, %v", got, err)
	}
	b.Close()
	if _, err := a.Read(got); err != io.ErrUnexpectedEOF && err != io.EOF {
		t.Errorf("reading gives %v", err)
	}
}
