package tunnel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packetPair is two ends that keep packets apart, and notice when the other
// is closed.
func packetPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "packets")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// flowLine is a client and a UDP server with a flow between them.
type flowLine struct {
	client    *net.UnixConn
	server    *net.UDPConn
	near, far *Flow
	nearErr   chan error
	farErr    chan error
}

func newFlowLine(t testing.TB, pair func(testing.TB) (net.Conn, net.Conn), set func(near, far *Flow)) *flowLine {
	t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	server.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { server.Close() })
	out, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	a, b := sessions(t, pair, Config{}, Config{})
	x, y := streams(t, a, b)
	client, in := packetPair(t)
	l := &flowLine{
		client: client, server: server,
		near:    &Flow{Conn: in, Stream: x},
		far:     &Flow{Conn: out, Stream: y},
		nearErr: make(chan error, 1),
		farErr:  make(chan error, 1),
	}
	if set != nil {
		set(l.near, l.far)
	}
	go func() { l.nearErr <- l.near.Run() }()
	go func() { l.farErr <- l.far.Run() }()
	return l
}

func (l *flowLine) ended(t testing.TB) (near, far error) {
	t.Helper()
	for _, end := range []struct {
		from chan error
		err  *error
	}{{l.nearErr, &near}, {l.farErr, &far}} {
		select {
		case *end.err = <-end.from:
		case <-time.After(patience):
			t.Fatal("a flow does not end")
		}
	}
	for _, f := range []*Flow{l.near, l.far} {
		if n := f.Buffers.Lent(); n != 0 {
			t.Errorf("%d buffers were not given back", n)
		}
	}
	return near, far
}

func TestFlow(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		l := newFlowLine(t, pair, nil)
		buf := make([]byte, 1<<16)
		for _, size := range []int{1, 0, 1200, 9000, 65507, 1} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := l.client.Write(want); err != nil {
				t.Fatal(err)
			}
			n, from, err := l.server.ReadFromUDPAddrPort(buf)
			if err != nil || !bytes.Equal(buf[:n], want) {
				t.Fatalf("the server got %d bytes, %v; want %d", n, err, size)
			}
			if _, err := l.server.WriteToUDPAddrPort(buf[:n], from); err != nil {
				t.Fatal(err)
			}
			n, err = l.client.Read(buf)
			if size == 0 && err == io.EOF { // as package net has it
				err = nil
			}
			if err != nil || !bytes.Equal(buf[:n], want) {
				t.Fatalf("the client got %d bytes, %v; want %d", n, err, size)
			}
		}
		l.client.Close()
		if near, far := l.ended(t); near != nil || far != nil {
			t.Errorf("the flows end with %v and %v", near, far)
		}
	})
}

// A server that is not there is told about like by its own host.
func TestFlowRefused(t *testing.T) {
	l := newFlowLine(t, tcpPair, nil)
	l.server.Close()
	l.client.Write([]byte("anybody?"))
	near, far := l.ended(t)
	if !errors.Is(far, unix.ECONNREFUSED) || !errors.Is(near, unix.ECONNRESET) {
		t.Errorf("the flows end with %v and %v", near, far)
	}
	if n, err := l.client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client got %d bytes, %v; want the end", n, err)
	}
}

func TestFlowIsIdle(t *testing.T) {
	l := newFlowLine(t, tcpPair, func(near, _ *Flow) { near.IdleTimeout = 20 * time.Millisecond })
	near, far := l.ended(t)
	if near != errIdle || !errors.Is(far, ErrReset) {
		t.Errorf("the flows end with %v and %v", near, far)
	}
}

func TestFlowCut(t *testing.T) {
	l := newFlowLine(t, tcpPair, nil)
	l.far.Cut()
	near, far := l.ended(t)
	if !errors.Is(far, net.ErrClosed) || !errors.Is(near, ErrReset) {
		t.Errorf("the flows end with %v and %v", near, far)
	}
}

// What the client sends does not wait for the answer.
func TestFlowAwaitsAnswer(t *testing.T) {
	for name, answer := range map[string]func(*Incoming){
		"granted": func(in *Incoming) { in.Grant() },
		"refused": func(in *Incoming) { in.Refuse(NoPort, "no") },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sessions(t, tcpPair, Config{}, Config{})
			x, y := streams(t, a, b)
			client, in := packetPair(t)
			f := &Flow{Conn: in, Stream: x, AwaitAnswer: patience}
			done := make(chan error, 1)
			go func() { done <- f.Run() }()
			client.Write([]byte("early"))
			d := NewDatagrams(y)
			buf := make([]byte, 10)
			if n, err := d.Read(buf); string(buf[:n]) != "early" || err != nil {
				t.Fatalf("got %q, %v", buf[:n], err)
			}
			answer(&Incoming{Stream: y})
			if name == "granted" {
				d.Write([]byte("late"))
				if n, err := client.Read(buf); string(buf[:n]) != "late" || err != nil {
					t.Fatalf("got %q, %v", buf[:n], err)
				}
				y.Close()
				if err := <-done; err != nil {
					t.Error(err)
				}
				return
			}
			var refusal *Refusal
			if err := <-done; !errors.As(err, &refusal) || refusal.Status != NoPort {
				t.Errorf("the flow ends with %v", err)
			}
		})
	}
}
