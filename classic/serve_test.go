package classic

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/relay"
)

const patience = 20 * time.Second

// forwarding forwards until stop is called, and returns when it listens.
func forwarding(t *testing.T, forwards ...Forward) (stop func() error) {
	t.Helper()
	engine := &relay.Engine{Workers: 1}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := Server{Listen: netip.MustParseAddr("127.77.0.3"), Engine: engine, Drain: patience, Log: slog.New(slog.DiscardHandler)}
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, forwards, func() { close(ready) }) }()
	stop = func() error {
		cancel()
		err := <-done
		done <- err
		return errors.Join(err, engine.Close())
	}
	t.Cleanup(func() { stop() })
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return stop
}

// freePort is one of 127.77.0.3 that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.77.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestForwards(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			ln, err := net.Listen("tcp", address)
			if err != nil {
				t.Skip(err)
			}
			defer ln.Close()
			at := netip.AddrPortFrom(netip.MustParseAddr("127.77.0.3"), freePort(t))
			stop := forwarding(t, Forward{link.Port{Number: at.Port(), Proto: link.TCP}, netip.MustParseAddrPort(ln.Addr().String()), "A"})
			conn, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			other, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			stopped := make(chan error, 1)
			go func() { stopped <- stop() }()
			// It does not stop before the connection has come to its end.
			sent := bytes.Repeat([]byte("x"), 1<<20)
			go func() {
				conn.Write(sent)
				conn.(*net.TCPConn).CloseWrite()
			}()
			if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("read %d bytes of %d, %v", len(got), len(sent), err)
			}
			other.Write([]byte("bye"))
			other.Close()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "bye" {
				t.Errorf("read %q, %v", got, err)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if _, err := net.Dial("tcp", at.String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("connecting after it stopped gives %v", err)
			}
		})
	}
}

func TestForwardsDatagrams(t *testing.T) {
	source, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	at := netip.AddrPortFrom(netip.MustParseAddr("127.77.0.3"), freePort(t))
	forwarding(t, Forward{link.Port{Number: at.Port(), Proto: link.UDP}, netip.MustParseAddrPort(source.LocalAddr().String()), "A"})
	conn, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	source.SetDeadline(time.Now().Add(patience))
	conn.Write([]byte("ping"))
	buf := make([]byte, 10)
	n, from, err := source.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "ping" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	source.WriteTo([]byte("pong"), from)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "pong" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
}

// A port that is taken is an error that names the variable, and the others
// are given back.
func TestPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.77.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken, free := ln.Addr().(*net.TCPAddr).AddrPort().Port(), freePort(t)
	engine := &relay.Engine{Workers: 1}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	s := Server{Listen: netip.MustParseAddr("127.77.0.3"), Engine: engine}
	to := netip.MustParseAddrPort("127.0.0.1:1")
	err = s.Run(t.Context(), []Forward{
		{link.Port{Number: free, Proto: link.TCP}, to, "A_PORT_1_TCP"},
		{link.Port{Number: taken, Proto: link.TCP}, to, "B_PORT_2_TCP"},
	}, func() { t.Error("it says that it is ready") })
	if !errors.Is(err, syscall.EADDRINUSE) || !bytes.Contains([]byte(err.Error()), []byte("which B_PORT_2_TCP names")) {
		t.Errorf("%v", err)
	}
	if _, err := net.Dial("tcp", netip.AddrPortFrom(s.Listen, free).String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting to the other port gives %v", err)
	}
}
