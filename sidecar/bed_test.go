package sidecar

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/leaks"
	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/tunnel"
)

// patience bounds waits for what has to happen; nothing is measured by it.
const patience = 20 * time.Second

// bed is the two ends of a link, each of which can be stopped and started.
type bed struct {
	network string // "unix" or "tls"
	source  Source
	mapping []Mapping
	hold    time.Duration
	drain   time.Duration
	expect  string

	dir           string
	address       string // of the TLS listener
	hosta, hostb  *identity.Store
	engine        *relay.Engine
	log           logbook.Log
	stopSource    func() error
	stopRecipient func() error
}

// networks runs a test over both kinds of session.
func networks(t *testing.T, fn func(t *testing.T, b *bed)) {
	for _, network := range []string{"unix", "tls"} {
		t.Run(network, func(t *testing.T) {
			leaks.Check(t)
			fn(t, newBed(t, network))
		})
	}
}

// newBed has neither end started.
func newBed(t *testing.T, network string) *bed {
	t.Helper()
	b := &bed{network: network, dir: t.TempDir(), drain: patience}
	b.source.Drain = patience
	b.source.Allowed = func(host string) bool { return host == "hosta" }
	b.stopSource = func() error { return nil }
	b.stopRecipient = func() error { return nil }
	if network == "tls" {
		authority := newAuthority(t)
		b.hosta, b.hostb = store(t, authority, "hosta"), store(t, authority, "hostb")
		b.address = freeAddress(t)
	}
	t.Cleanup(func() {
		b.stopRecipient()
		b.stopSource()
		if t.Failed() {
			t.Logf("log:\n%s", b.log.String())
		}
	})
	return b
}

func (b *bed) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// serve has the link lead to addr, under a free port that it returns.
func (b *bed) serve(t *testing.T, addr string) (at string) {
	t.Helper()
	targets, err := ParseTargets(addr)
	if err != nil {
		t.Fatal(err)
	}
	at = freeAddress(t)
	b.source.Targets = append(b.source.Targets, targets...)
	b.mapping = append(b.mapping, Mapping{netip.MustParseAddrPort(at), targets[0].Port})
	return at
}

func (b *bed) socket() string { return filepath.Join(b.dir, "s") }

func (b *bed) startSource(t *testing.T) {
	t.Helper()
	end := &Source{Targets: b.source.Targets, From: b.source.From, Allowed: b.source.Allowed, Drain: b.source.Drain, Log: b.logger().With("end", "source")}
	if b.network == "unix" {
		ln, err := Socket{Path: b.socket()}.Listen()
		if err != nil {
			t.Fatal(err)
		}
		b.stopSource = start(func(ctx context.Context) error { return end.ServeSocket(ctx, ln) })
		return
	}
	ln, err := tunnel.Listen(context.Background(), b.address)
	if err != nil {
		t.Fatal(err)
	}
	b.stopSource = start(func(ctx context.Context) error { return end.ServeTLS(ctx, ln, b.hostb) })
}

// startRecipient returns once the source's end has been reached, unless there
// is none.
func (b *bed) startRecipient(t *testing.T, reached bool) {
	t.Helper()
	log := b.logger().With("end", "recipient")
	end := &Recipient{Peer: "hostb", Own: "web", Mappings: b.mapping, Hold: b.hold, Drain: b.drain, Log: log}
	stopEngine := func() error { return nil }
	if b.network == "unix" {
		end.Engine = &relay.Engine{Workers: 1, Log: log}
		if err := end.Engine.Start(); err != nil {
			t.Fatal(err)
		}
		stopEngine = end.Engine.Close
		end.Dial = DialSocket(b.socket(), log)
		b.engine = end.Engine
	} else {
		end.Dial = DialTLS(b.address, b.expect, b.hosta, log)
		end.Proven = b.hosta.Changed
	}
	ready := make(chan struct{})
	stop := start(func(ctx context.Context) error { return end.Run(ctx, func() { close(ready) }) })
	var once sync.Once
	b.stopRecipient = func() (err error) {
		err = stop()
		once.Do(func() { err = errors.Join(err, stopEngine()) })
		return err
	}
	if !reached {
		return
	}
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatal("the source's end was not reached")
	}
}

// start runs fn until stop is called, which returns what fn did. It may be
// called again.
func start(fn func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = fn(ctx)
	}()
	return func() error {
		cancel()
		<-done
		return err
	}
}

// server answers connections to an address of its own by handle.
func server(t *testing.T, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	ln, err := tunnel.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

func echo(conn *net.TCPConn) { io.Copy(conn, struct{ io.Reader }{conn}) }

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// exchange sends a line over conn to an echo server.
func exchange(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello\n" {
		t.Fatalf("read %q, %v", got, err)
	}
}

// refused polls until connections to addr are refused, and true otherwise.
func refused(t *testing.T, addr string) {
	t.Helper()
	until(t, "connections to be refused", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// works polls until a connection to addr goes through.
func works(t *testing.T, addr string) {
	t.Helper()
	until(t, "connections to go through", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		conn.Write([]byte("x"))
		n, _ := conn.Read(make([]byte, 1))
		return n == 1
	})
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// freeAddress is one that nobody listens on, and that nobody is given for a
// connection: an address of its own for each.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.77.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func newAuthority(t *testing.T) *identity.Authority {
	t.Helper()
	a, err := identity.InitAuthority(filepath.Join(t.TempDir(), "ca"), "test.example")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// store is the identity of a host, in files.
func store(t *testing.T, a *identity.Authority, host string) *identity.Store {
	t.Helper()
	dir := t.TempDir()
	files := identity.Files{Cert: filepath.Join(dir, "leaf"), Key: filepath.Join(dir, "leaf"), Roots: filepath.Join(dir, "roots")}
	issue(t, a, host, files)
	s, err := identity.Open(files)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// issue writes a new certificate of a host.
func issue(t *testing.T, a *identity.Authority, host string, files identity.Files) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.Issue(host, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var leaf, roots []byte
	for _, cert := range issued.Chain {
		leaf = append(leaf, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...)
	}
	leaf = append(leaf, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	for _, cert := range issued.Roots {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...)
	}
	for name, b := range map[string][]byte{files.Cert: leaf, files.Roots: roots} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
