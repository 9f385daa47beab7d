package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/logbook"
)

// running is what serve keeps with other hosts, until the test is over.
func running(t *testing.T, f hostFlags) (*hosts, *logbook.Log) {
	t.Helper()
	log := new(logbook.Log)
	ctx, cancel := context.WithCancel(context.Background())
	h, err := openHosts(ctx, f, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Errorf("running: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return h, log
}

// An identity that comes while the ambassador serves is used; until then it is
// said once what to do, and what is wrong with one that cannot be used.
func TestIdentityComesLater(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	h, log := running(t, hostFlags{dir: dir, listen: []string{"127.0.0.1:0"}})
	log.Only(t, `level=WARN msg="this host has no identity yet, so there are no links with others"`, "ambassador ca init")
	if p := h.Peers(); p.Self.ID != "" || h.Name() != "" {
		t.Errorf("without an identity it is %+v", p.Self)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "identity.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "roots.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log.Only(t, `level=ERROR msg="this host's identity cannot be used"`, "there is no key in it")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := caInit(dir, "example.org", "hosta", io.Discard); err != nil {
		t.Fatal(err)
	}
	log.Only(t, `level=INFO msg="keeping sessions with other hosts" own.id=spiffe://example.org/host/hosta`)
	p := h.Peers()
	if want := (control.Self{ID: "spiffe://example.org/host/hosta", Until: p.Self.Until, Authority: "hosta", Listens: p.Self.Listens}); p.Self.ID != want.ID ||
		p.Self.Authority != want.Authority || len(p.Self.Listens) != 1 || p.Self.Problem != "" || h.Name() != "hosta" {
		t.Errorf("it is %+v, want %+v", p.Self, want)
	}
}

// A certificate whose time is over, or has not come, is said at the start, and
// what to do about it.
func TestCertificateIsNoGoodAtStart(t *testing.T) {
	for want, start := range map[string]time.Duration{
		"was valid until ": -2 * time.Hour,
		"is valid from ":   time.Hour,
	} {
		h, log := running(t, hostFlags{files: certificate(t, time.Now().Add(start))})
		line := log.Only(t, `level=ERROR msg="no other host will talk to this one"`,
			`err="the certificate of spiffe://example.org/host/hosta `+want, ", and the clock here says ", `hint="set the clock right; if it is, get a token`)
		if strings.Contains(line, "\n") {
			t.Errorf("it takes several lines: %q", line)
		}
		if p := h.Peers(); !strings.Contains(p.Self.Problem, want) {
			t.Errorf("`ambassador peers` says %+v", p.Self)
		}
		var out bytes.Buffer
		if err := printPeers(&out, h.Peers(), time.Now()); err != nil || !strings.Contains(out.String(), "nobody talks to it: the certificate of ") ||
			!strings.Contains(out.String(), "its certificate is renewed by whoever put it there, and it does not listen: it calls others") {
			t.Errorf("it prints (%v)\n%s", err, &out)
		}
	}
}

// certificate makes files with a certificate that is good for an hour.
func certificate(t *testing.T, start time.Time) identity.Files {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: start, NotAfter: start.Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: start, NotAfter: start.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/host/hosta"}},
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) string {
		if err == nil {
			name = filepath.Join(dir, name)
			err = os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	roots := write("roots.pem", "CERTIFICATE", rootDER, err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)
	cert := write("cert.pem", "CERTIFICATE", leafDER, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	return identity.Files{Cert: cert, Key: write("key.pem", "PRIVATE KEY", keyDER, err), Roots: roots}
}
