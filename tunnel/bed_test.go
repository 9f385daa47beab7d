package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/leaks"
)

// patience bounds waits for what has to happen; nothing is measured by it.
const patience = 20 * time.Second

// transports are the connections a session may have; each makes one, dialing
// side first.
var transports = map[string]func(testing.TB) (net.Conn, net.Conn){
	"pipe": func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() },
	"tcp":  tcpPair,
	"unix": unixPair,
	"tls":  tlsPair,
}

func tcpPair(t testing.TB) (net.Conn, net.Conn) {
	a, b := connect(t, "tcp", "127.0.0.1:0")
	for _, c := range []net.Conn{a, b} {
		if err := Tune(c.(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func unixPair(t testing.TB) (net.Conn, net.Conn) {
	return connect(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func connect(t testing.TB, network, addr string) (a, b net.Conn) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial(network, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func tlsPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	a, b := tcpPair(t)
	config := testTLS(t)
	var secured *Secured
	var wg sync.WaitGroup
	wg.Go(func() { secured, _ = SecureServer(context.Background(), b, config) })
	client, err := SecureClient(context.Background(), a, config)
	wg.Wait()
	if err != nil || secured == nil {
		t.Fatal("no TLS connection:", err)
	}
	return client, secured
}

var testTLS = func() func(testing.TB) *tls.Config {
	var once sync.Once
	var config *tls.Config
	return func(t testing.TB) *tls.Config {
		once.Do(func() {
			key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
			if err != nil {
				t.Fatal(err)
			}
			config = &tls.Config{
				MinVersion:                  tls.VersionTLS13,
				InsecureSkipVerify:          true,
				DynamicRecordSizingDisabled: true,
				SessionTicketsDisabled:      true,
				Certificates:                []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			}
		})
		return config
	}
}()

// eachTransport runs fn for each transport, and each time a second time with
// the sides of the session swapped.
func eachTransport(t *testing.T, fn func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn))) {
	for name, pair := range transports {
		t.Run(name, func(t *testing.T) { fn(t, pair) })
		t.Run(name+" reversed", func(t *testing.T) {
			fn(t, func(t testing.TB) (net.Conn, net.Conn) {
				a, b := pair(t)
				return b, a
			})
		})
	}
}

// sessions starts a session, and closes both ends when the test is over. Then
// nothing is to be left of it.
func sessions(t testing.TB, pair func(testing.TB) (net.Conn, net.Conn), ca, cb Config) (a, b *Session) {
	t.Helper()
	leaks.Check(t)
	ta, tb := pair(t)
	a, b = Client(ta, ca), Server(tb, cb)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// streams opens a stream from a and accepts it at b.
func streams(t testing.TB, a, b *Session) (sa, sb *Stream) {
	t.Helper()
	accepted := make(chan *Stream, 1)
	go func() {
		s, err := b.Accept()
		if err != nil {
			s = nil
		}
		accepted <- s
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sa, err := a.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case sb = <-accepted:
	case <-time.After(patience):
	}
	if sb == nil {
		t.Fatal("the stream was not accepted")
	}
	return sa, sb
}

// until polls cond until it holds.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("waited in vain for %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}
