package sidecar

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/leaks"
	"github.com/linkrun/linkrun/relay"
)

func TestCarries(t *testing.T) {
	networks(t, func(t *testing.T, b *bed) {
		at := b.serve(t, server(t, echo))
		b.startSource(t)
		b.startRecipient(t, true)
		sent := make([]byte, 1<<20+rand.IntN(1<<16))
		rand.NewChaCha8([32]byte{}).Read(sent)
		var wg sync.WaitGroup
		for range 8 {
			conn := dial(t, at)
			wg.Go(func() {
				_, err := conn.Write(sent)
				if e := conn.CloseWrite(); err == nil {
					err = e
				}
				if err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				got, err := io.ReadAll(conn) // ends: the half-close has come back
				if err != nil || !bytes.Equal(got, sent) {
					t.Errorf("read %d bytes of %d, %v", len(got), len(sent), err)
				}
			})
		}
		wg.Wait()
	})
}

// Over a unix socket the connection itself is handed over: the recipient's end
// splices it, and the source's has no part in it any more.
func TestHandedOver(t *testing.T) {
	b := newBed(t, "unix")
	at := b.serve(t, server(t, echo))
	b.startSource(t)
	b.startRecipient(t, true)
	conn := dial(t, at)
	exchange(t, conn)
	if open := b.engine.Stats().Open; open != 1 {
		t.Errorf("the engine has %d connections", open)
	}
	if err := b.stopSource(); err != nil {
		t.Fatal(err)
	}
	refused(t, at)
	exchange(t, conn)
}

// An end that is reset is reset at the other side too, and after what was sent
// before.
func TestResets(t *testing.T) {
	networks(t, func(t *testing.T, b *bed) {
		ended := make(chan error, 1)
		at := b.serve(t, server(t, func(conn *net.TCPConn) {
			conn.Write([]byte("x"))
			one := make([]byte, 1)
			switch io.ReadFull(conn, one); one[0] {
			case 'r': // reset it
				conn.SetLinger(0)
			case 'w': // wait for the reset
				_, err := conn.Read(one)
				ended <- err
			}
		}))
		b.startSource(t)
		b.startRecipient(t, true)

		conn := dial(t, at)
		conn.Write([]byte("r"))
		got, err := io.ReadAll(conn)
		if string(got) != "x" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the recipient reads %q, %v; want a reset after x", got, err)
		}

		conn = dial(t, at)
		conn.Write([]byte("w"))
		io.ReadFull(conn, make([]byte, 1))
		conn.SetLinger(0)
		conn.Close()
		select {
		case err := <-ended:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the source reads %v; want a reset", err)
			}
		case <-time.After(patience):
			t.Error("the source sees no reset")
		}
	})
}

// While the source's end is away, connections are refused; then they work
// again. So it is if it comes later than the recipient's.
func TestSourceComesAndGoes(t *testing.T) {
	networks(t, func(t *testing.T, b *bed) {
		at := b.serve(t, server(t, echo))
		b.startRecipient(t, false)
		refused(t, at)
		for range 3 {
			b.startSource(t)
			works(t, at)
			if err := b.stopSource(); err != nil {
				t.Fatal(err)
			}
			refused(t, at)
		}
		if err := b.stopRecipient(); err != nil {
			t.Error(err)
		}
		refused(t, at)
	})
}

// With a hold, they wait instead.
func TestHold(t *testing.T) {
	networks(t, func(t *testing.T, b *bed) {
		at := b.serve(t, server(t, echo))
		b.hold = patience
		b.startRecipient(t, false)
		var conn *net.TCPConn
		until(t, "the port", func() bool {
			c, err := net.Dial("tcp", at)
			if err == nil {
				conn = c.(*net.TCPConn)
			}
			return err == nil
		})
		defer conn.Close()
		b.startSource(t)
		conn.SetDeadline(time.Now().Add(patience))
		exchange(t, conn)
	})
}

// A source that refuses connections, and a port that is not served, reset the
// connection; nothing else is harmed.
func TestSourceRefuses(t *testing.T) {
	networks(t, func(t *testing.T, b *bed) {
		good := b.serve(t, server(t, echo))
		bad := b.serve(t, freeAddress(t))
		unserved := b.serve(t, freeAddress(t))
		b.source.Targets = b.source.Targets[:2]
		b.startSource(t)
		b.startRecipient(t, true)
		conn := dial(t, good)
		for _, at := range []string{bad, unserved} {
			c, err := net.Dial("tcp", at)
			if err == nil { // the reset may be there already
				c.SetDeadline(time.Now().Add(patience))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("connecting gives %v; want a reset", err)
			}
		}
		exchange(t, conn)
		until(t, "the log", func() bool {
			log := b.log.String()
			return strings.Contains(log, "err=refused") && strings.Contains(log, `err="port not exposed"`) &&
				strings.Contains(log, "refused a connection to a port that is not served")
		})
	})
}

// A source on loopback does not take links for its own host, unless it is told
// to.
func TestFrom(t *testing.T) {
	seen := make(chan string, 1)
	tell := func(conn *net.TCPConn) { seen <- conn.RemoteAddr().(*net.TCPAddr).IP.String() }
	for from, want := range map[string]string{"": "127.77.0.1", "127.0.0.1": "127.0.0.1", "127.9.9.9": "127.9.9.9"} {
		b := newBed(t, "unix")
		at := b.serve(t, server(t, tell))
		b.source.From, _ = netip.ParseAddr(from)
		b.startSource(t)
		b.startRecipient(t, true)
		dial(t, at)
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("from %q: the source sees %s, want %s", from, got, want)
			}
		case <-time.After(patience):
			t.Fatal("no connection")
		}
	}
}

// An end that is told to stop lets connections end, and cuts them when that
// takes too long.
func TestDrains(t *testing.T) {
	networks(t, func(t *testing.T, b *bed) {
		at := b.serve(t, server(t, echo))
		b.startSource(t)
		b.startRecipient(t, true)
		conn := dial(t, at)
		exchange(t, conn)
		stopped := make(chan error)
		go func() { stopped <- b.stopRecipient() }()
		refused(t, at)
		exchange(t, conn)
		select {
		case <-stopped:
			t.Error("it stopped with an open connection")
		default:
		}
		conn.CloseWrite()
		if _, err := io.ReadAll(conn); err != nil {
			t.Error(err)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}

		b.drain = 0
		b.startRecipient(t, true)
		conn = dial(t, at)
		exchange(t, conn)
		if err := b.stopRecipient(); err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the connection ends with %v; want a reset", err)
		}
	})
}

// The source's end carries what goes over TLS, and lets it end too.
func TestSourceDrains(t *testing.T) {
	b := newBed(t, "tls")
	at := b.serve(t, server(t, echo))
	b.startSource(t)
	b.startRecipient(t, true)
	conn := dial(t, at)
	exchange(t, conn)
	stopped := make(chan error)
	go func() { stopped <- b.stopSource() }()
	refused(t, at) // as soon as the end is announced
	exchange(t, conn)
	conn.CloseWrite()
	if _, err := io.ReadAll(conn); err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// Whoever is not allowed, or is somebody else than expected, is refused, with
// a line on each side.
func TestStrangers(t *testing.T) {
	for name, c := range map[string]struct {
		prepare                   func(t *testing.T, b *bed)
		sourceSays, recipientSays string
	}{
		"not allowed": {
			func(t *testing.T, b *bed) { b.source.Allowed = func(string) bool { return false } },
			`msg="refused a host" end=source`, "peer cannot be reached",
		},
		"default": {
			func(t *testing.T, b *bed) { b.source.Allowed = nil },
			`host=hosta err="the host is not allowed"`, "peer cannot be reached",
		},
		"not expected": {
			func(t *testing.T, b *bed) { b.expect = "hostc" },
			"end=source from=127.0.0.1", `it is spiffe://test.example/host/hostb, not host \"hostc\"`,
		},
		"another authority": {
			func(t *testing.T, b *bed) { b.hosta = store(t, newAuthority(t), "hosta") },
			"end=source from=127.0.0.1", "no root trusted here",
		},
	} {
		t.Run(name, func(t *testing.T) {
			leaks.Check(t)
			b := newBed(t, "tls")
			at := b.serve(t, server(t, echo))
			c.prepare(t, b)
			b.startSource(t)
			b.startRecipient(t, false)
			until(t, "both sides to say why", func() bool {
				log := b.log.String()
				return strings.Contains(log, c.sourceSays) && strings.Contains(log, c.recipientSays)
			})
			refused(t, at)
		})
	}
}

// A new certificate is used without a connection being dropped.
func TestCertificateReplaced(t *testing.T) {
	b := newBed(t, "tls")
	at := b.serve(t, server(t, echo))
	b.startSource(t)
	b.startRecipient(t, true)
	conn := dial(t, at)
	exchange(t, conn)
	if err := b.hosta.Replace(b.hosta.Current()); err != nil {
		t.Fatal(err)
	}
	until(t, "a second session", func() bool { return strings.Count(b.log.String(), "msg=connected") == 2 })
	exchange(t, conn)
	works(t, at)
}

func TestDatagrams(t *testing.T) {
	networks(t, func(t *testing.T, b *bed) {
		source, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var answering sync.WaitGroup
		answering.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := source.ReadFrom(buf)
				if err != nil {
					return
				}
				sum := sha256.Sum256(buf[:n])
				source.WriteTo(sum[:], from)
			}
		})
		defer answering.Wait()
		defer source.Close()
		at := b.serve(t, source.LocalAddr().String()+"/udp")
		b.startRecipient(t, false)
		until(t, "the datagram to be refused", func() bool { return ask(t, at, []byte("x")) == nil })
		b.startSource(t)
		for _, size := range []int{1, 0, 512, 9000, 65507} {
			msg := bytes.Repeat([]byte("x"), size)
			want := sha256.Sum256(msg)
			until(t, "an answer", func() bool {
				got := ask(t, at, msg)
				if got != nil && !bytes.Equal(got, want[:]) {
					t.Errorf("the answer to %d bytes is wrong", size)
				}
				return got != nil
			})
		}
		if err := b.stopSource(); err != nil {
			t.Error(err)
		}
	})
}

// ask sends a datagram to at and returns the answer, nil if there is none.
func ask(t *testing.T, at string, msg []byte) []byte {
	t.Helper()
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	conn.Write(msg)
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		return nil
	}
	return buf[:n]
}

// A thousand connections at a time, again and again, leave nothing behind:
// what networks looks for at its end.
func TestThousandConnections(t *testing.T) {
	if _, err := relay.RaiseFileLimit(); err != nil {
		t.Log(err)
	}
	networks(t, func(t *testing.T, b *bed) {
		at := b.serve(t, server(t, echo))
		b.startSource(t)
		b.startRecipient(t, true)
		for round := range 3 {
			conns := make([]*net.TCPConn, 1000)
			for i := range conns {
				conns[i] = dial(t, at)
			}
			for range 3 {
				for _, conn := range conns {
					exchange(t, conn)
				}
			}
			for i, conn := range conns {
				if i%2 == 0 {
					conn.SetLinger(0)
				}
				conn.Close()
			}
			t.Logf("round %d: %d goroutines, %d descriptors", round, runtime.NumGoroutine(), leaks.Descriptors(t))
		}
	})
}
