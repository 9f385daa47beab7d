package peering

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/tunnel"
)

// patience bounds waits for what has to happen; nothing is measured by it.
const patience = 20 * time.Second

const domain = "example.org"

// root is an authority that signs anything.
type root struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newRoot(t testing.TB) root {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "root"},
		NotBefore:    time.Now().Add(-48 * time.Hour),
		NotAfter:     time.Now().Add(48 * time.Hour),
		KeyUsage:     x509.KeyUsageCertSign,

		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root{cert, key}
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// leaf makes a certificate for a host; change has its way with it before it is
// signed.
func (r root) leaf(t testing.TB, host string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		URIs:         []*url.URL{uri(host)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},

		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.cert, key.Public(), r.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func uri(host string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: domain, Path: "/host/" + host}
}

// files writes a certificate and the roots to trust as files of a directory.
func files(t testing.TB, dir string, c tls.Certificate, roots ...root) identity.Files {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	f := identity.Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), Roots: filepath.Join(dir, "roots.pem")}
	var trusted bytes.Buffer
	for _, r := range roots {
		pem.Encode(&trusted, &pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Raw})
	}
	for name, b := range map[string][]byte{
		f.Cert:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		f.Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		f.Roots: trusted.Bytes(),
	} {
		// In place of the old one at once, as whoever changes such files does.
		if err := os.WriteFile(name+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func open(t testing.TB, f identity.Files) *identity.Store {
	t.Helper()
	s, err := identity.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// host is one that runs.
type host struct {
	*Hosts
	addr string
	log  *logbook.Log
	stop func()
}

// newHost makes a host, which does not run yet, with an address that others
// can be told.
func newHost(t testing.TB, s *identity.Store) (h *host, ln net.Listener) {
	t.Helper()
	ln, err := tunnel.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h = &host{addr: ln.Addr().String(), log: new(logbook.Log)}
	h.Hosts = &Hosts{
		Store:       s,
		Handle:      echo,
		Known:       map[string]string{},
		Hold:        patience,
		Log:         slog.New(slog.NewTextHandler(h.log, nil)),
		followEvery: 10 * time.Millisecond,
	}
	return h, ln
}

// run runs h until the test is over.
func (h *host) run(t testing.TB, ln ...net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx, ln...); err != nil {
			t.Errorf("running %v: %v", h.Store.Current(), err)
		}
	})
	h.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(func() {
		h.stop()
		if t.Failed() {
			t.Logf("the log of %v:\n%s", h.Store.Current(), h.log)
		}
	})
	until(t, "it to run", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.runs() })
}

// two are hosts that know each other's addresses and run.
func two(t testing.TB) (a, b *host) {
	t.Helper()
	noLeaks(t)
	ca := newRoot(t)
	a, lna := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
	b, lnb := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hostb", nil), ca)))
	a.Known["hostb"], b.Known["hosta"] = b.addr, a.addr
	a.run(t, lna)
	b.run(t, lnb)
	return a, b
}

// echo grants a request, says who asked, and sends back what comes.
func echo(from identity.Peer, in *tunnel.Incoming) {
	if err := in.Grant(); err != nil {
		in.Stream.Abort()
		return
	}
	fmt.Fprintf(in.Stream, "%s asks for %s\n", from.ID.Host, in.Source)
	if _, err := io.Copy(struct{ io.Writer }{in.Stream}, in.Stream); err != nil {
		in.Stream.Abort()
		return
	}
	in.Stream.Close()
}

// ask opens a stream to a host that echoes, and reads who it was taken for.
func (h *host) ask(t testing.TB, name string) (*tunnel.Stream, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := h.Ask(ctx, name, tunnel.Request{Kind: tunnel.TCP, Port: 80, Source: "db", Recipient: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Answer(patience); err != nil {
		t.Fatal(err)
	}
	return st, readLine(t, st)
}

func readLine(t testing.TB, r io.Reader) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatalf("reading a line: %v", err)
		}
		if b[0] == '\n' {
			return string(line)
		}
	}
}

// echoes checks that a stream is alive.
func echoes(t testing.TB, st *tunnel.Stream, word string) {
	t.Helper()
	st.SetDeadline(time.Now().Add(patience))
	if _, err := st.Write([]byte(word + "\n")); err != nil {
		t.Fatal(err)
	}
	if got := readLine(t, st); got != word {
		t.Errorf("got %q back, want %q", got, word)
	}
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for", what)
		}
	}
}

// noLeaks checks, when everything else of the test is cleaned up, that no
// goroutine and no descriptor is left of it.
func noLeaks(t testing.TB) {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	t.Cleanup(func() {
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			g, f := runtime.NumGoroutine(), descriptors(t)
			if g <= goroutines && f <= files {
				return
			}
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				stacks = stacks[:runtime.Stack(stacks, true)]
				t.Fatalf("%d goroutines and %d descriptors are left of %d and %d\n%s", g, f, goroutines, files, stacks)
			}
		}
	})
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
