package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/leaks"
)

// handing answers every request with a socket connected to addr.
func handing(t testing.TB, s *Session, addr string) {
	serving(t, s, func(in *Incoming) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			in.Refuse(StatusOf(err), err.Error())
			return
		}
		defer conn.Close()
		if err := in.Stream.HandOver(conn.(*net.TCPConn)); err != nil {
			in.Refuse(Unsupported, err.Error())
			return
		}
		in.Grant()
		in.Stream.Close()
	})
}

// echoServer sends back what it gets, on a port of its own.
func echoServer(t testing.TB) string {
	ln, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(conn, conn)
				conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// take asks for a socket and returns it.
func take(t testing.TB, s *Session) net.Conn {
	t.Helper()
	st, err := s.Ask(context.Background(), Request{Kind: Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.Answer(patience); err != nil {
		t.Fatal(err)
	}
	fd, ok := st.TakeSocket()
	if !ok {
		t.Fatal("there is no socket")
	}
	if _, again := st.TakeSocket(); again {
		t.Error("there is a second socket")
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestHandOver(t *testing.T) {
	a, b := sessions(t, unixPair, Config{Sockets: true}, Config{})
	handing(t, b, echoServer(t))
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			conn := take(t, a)
			defer conn.Close()
			if fd, err := conn.(*net.TCPConn).File(); err == nil {
				flags, _ := unix.FcntlInt(fd.Fd(), unix.F_GETFD, 0)
				if flags&unix.FD_CLOEXEC == 0 {
					t.Error("the socket would be inherited")
				}
				fd.Close()
			}
			conn.Write([]byte("hello"))
			conn.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
	// Bulk in the same session, so that the sockets come in the midst of it.
	x, err := a.Ask(context.Background(), Request{Kind: 99})
	if err == nil {
		x.Write(make([]byte, 1<<20))
		x.Abort()
	}
	wg.Wait()
}

// A socket that nobody takes is closed, whenever its stream ends.
func TestSocketsThatNobodyTakes(t *testing.T) {
	a, b := sessions(t, unixPair, Config{Sockets: true}, Config{})
	handing(t, b, echoServer(t))
	before := leaks.Descriptors(t)
	for i := range 30 {
		st, err := a.Ask(context.Background(), Request{Kind: Socket})
		if err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			st.Abort()
		case 1:
			st.Answer(patience)
			st.Close()
		case 2:
			st.Answer(patience)
			st.Abort()
		}
	}
	until(t, "the sockets to be closed", func() bool { return leaks.Descriptors(t) <= before })
	st, err := a.Ask(context.Background(), Request{Kind: Socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Answer(patience); err != nil {
		t.Fatal(err)
	}
	a.Close()
	st.Close()
	until(t, "the sockets to be closed", func() bool { return leaks.Descriptors(t) <= before })
}

func TestHandOverElsewhere(t *testing.T) {
	for name, pair := range transports {
		if name == "unix" {
			continue
		}
		a, b := sessions(t, pair, Config{Sockets: true}, Config{})
		x, _ := streams(t, a, b)
		conn, other := tcpPair(t)
		if err := x.HandOver(conn.(*net.TCPConn)); err != errNoHandOver {
			t.Errorf("%s: handing over gives %v, want %v", name, err, errNoHandOver)
		}
		conn.Close()
		other.Close()
	}
	a, b := sessions(t, unixPair, Config{}, Config{})
	x, _ := streams(t, a, b)
	x.Abort()
	conn, other := tcpPair(t)
	defer conn.Close()
	defer other.Close()
	if err := x.HandOver(conn.(*net.TCPConn)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("handing over gives %v, want %v", err, net.ErrClosed)
	}
}

// What a peer may send instead of a TCP socket, at the right moment or not.
func TestSocketViolations(t *testing.T) {
	pipe := func() *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		return r
	}
	socket := func(domain, kind int) *os.File {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "socket")
	}
	tcp := func() *os.File { return socket(unix.AF_INET, unix.SOCK_STREAM) }
	frameOf := func(id uint32) []byte { return frame{kind: socketFrame, stream: id}.appendTo(nil) }
	ping := frame{kind: pingFrame, flags: ackFlag}.appendTo(nil)
	for name, c := range map[string]struct {
		file   func() *os.File
		times  int // in one message
		frames []byte
		want   string
	}{
		"a pipe":                {pipe, 1, frameOf(1), "a descriptor that is not a TCP socket"},
		"a UDP socket":          {func() *os.File { return socket(unix.AF_INET, unix.SOCK_DGRAM) }, 1, frameOf(1), "a descriptor that is not a TCP socket"},
		"a unix socket":         {func() *os.File { return socket(unix.AF_UNIX, unix.SOCK_STREAM) }, 1, frameOf(1), "a descriptor that is not a TCP socket"},
		"a frame without one":   {nil, 0, frameOf(1), "the frame of a socket without one"},
		"many without frames":   {tcp, maxSockets + 1, ping, "sockets without frames"},
		"more than can be told": {tcp, 100, ping, "more sockets at a time than there may be"},
	} {
		t.Run(name, func(t *testing.T) {
			leaks.Check(t)
			ta, tb := unixPair(t)
			s := Server(tb, Config{Sockets: true})
			defer s.Close()
			defer ta.Close()
			var rights []byte
			if c.file != nil {
				f := c.file()
				defer f.Close()
				fds := make([]int, c.times)
				for i := range fds {
					fds[i] = int(f.Fd())
				}
				rights = unix.UnixRights(fds...)
			}
			b := append(syn(1).appendTo(nil), c.frames...)
			if _, _, err := ta.(*net.UnixConn).WriteMsgUnix(b, rights, nil); err != nil {
				t.Fatal(err)
			}
			<-s.Done()
			if err := s.Err(); !errors.Is(err, ErrViolation) || !strings.HasSuffix(err.Error(), c.want) {
				t.Errorf("the session ended with %v, want %q", err, c.want)
			}
		})
	}
}
