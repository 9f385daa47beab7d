package identity

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
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/logbook"
)

// patience bounds waits for what has to happen; nothing is measured by it.
const patience = 20 * time.Second

func authority(t testing.TB) *Authority {
	t.Helper()
	a, err := InitAuthority(filepath.Join(t.TempDir(), "authority"), "example.org")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// member is a host of a's domain, and where it keeps its credential.
func member(t testing.TB, a *Authority, host string) *Store {
	t.Helper()
	c, err := a.First(host)
	if err != nil {
		t.Fatal(err)
	}
	return stored(t, c)
}

func stored(t testing.TB, c *Credential) *Store {
	t.Helper()
	files := In(t.TempDir())
	if err := save(files, c); err != nil {
		t.Fatal(err)
	}
	s, err := Open(files)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// forged makes a credential that no authority would issue: change has its way
// with the certificate before it is signed.
func forged(t testing.TB, a *Authority, change func(*x509.Certificate)) *Credential {
	t.Helper()
	s, err := a.load()
	if err != nil {
		t.Fatal(err)
	}
	root, rootKey, err := s.signer(a.now())
	if err != nil {
		t.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711),
		Subject:      pkix.Name{CommonName: "forged"},
		URIs:         []*url.URL{ID{a.Domain, "mallory"}.url()},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},

		BasicConstraintsValid: true,
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, root, key.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	return &Credential{
		ID:          ID{a.Domain, "mallory"},
		Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		NotBefore:   leaf.NotBefore, NotAfter: leaf.NotAfter,
		anchors: []*x509.Certificate{root}, roots: roots,
	}
}

// holding is a store that no file backs.
func holding(c *Credential) *Store {
	s := &Store{changed: make(chan struct{})}
	s.current.Store(c)
	return s
}

// handshake connects two hosts and returns what each has to say about it. The
// client reads a byte, as it learns of the server's refusal only by that.
func handshake(client, server *tls.Config) (clientErr, serverErr error) {
	a, b := net.Pipe()
	a.SetDeadline(time.Now().Add(patience))
	b.SetDeadline(time.Now().Add(patience))
	var wg sync.WaitGroup
	wg.Go(func() {
		conn := tls.Server(b, server)
		if serverErr = conn.Handshake(); serverErr == nil {
			_, serverErr = conn.Write([]byte("x"))
		}
		b.Close()
	})
	conn := tls.Client(a, client)
	if clientErr = conn.Handshake(); clientErr == nil {
		_, clientErr = conn.Read(make([]byte, 1))
	}
	a.Close()
	wg.Wait()
	return clientErr, serverErr
}

const protocol = "test/1"

func TestMutualAuthentication(t *testing.T) {
	a := authority(t)
	hosta, hostb := member(t, a, "hosta"), member(t, a, "hostb")
	for _, expected := range []string{"hostb", ""} {
		client, server := handshake(hosta.ClientTLS(protocol, expected), hostb.ServerTLS(protocol))
		if client != nil || server != nil {
			t.Errorf("the client says %v and the server %v", client, server)
		}
	}
	c1, c2 := net.Pipe()
	go tls.Client(c1, hosta.ClientTLS(protocol, "hostb")).Handshake()
	conn := tls.Server(c2, hostb.ServerTLS(protocol))
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	peer, err := hostb.PeerOf(conn.ConnectionState(), false)
	if err != nil || peer.ID != (ID{"example.org", "hosta"}) || !peer.NotAfter.Equal(hosta.Current().NotAfter) {
		t.Errorf("the peer is %+v, %v", peer, err)
	}
	c1.Close()
	c2.Close()
}

// Each of these is refused, with one clear line at the side that refuses.
func TestImpostors(t *testing.T) {
	a := authority(t)
	other, err := InitAuthority(filepath.Join(t.TempDir(), "other"), "example.org")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := InitAuthority(filepath.Join(t.TempDir(), "elsewhere"), "example.net")
	if err != nil {
		t.Fatal(err)
	}
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	foreign := func(c *Credential) *Credential {
		// It believes the honest side, so that it is the other that refuses.
		copied := *c
		copied.roots = forged(t, a, func(*x509.Certificate) {}).roots
		copied.ID.Domain = a.Domain
		return &copied
	}
	mine := func(authority *Authority, host string) *Credential {
		c, err := authority.First(host)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	honest := member(t, a, "hostb")
	for name, c := range map[string]struct {
		impostor *Credential
		want     string
	}{
		"wrong authority": {foreign(mine(other, "hosta")), "no root trusted here has signed its certificate"},
		"other domain":    {foreign(mine(elsewhere, "hosta")), "no root trusted here has signed its certificate"},
		"other domain, right authority": {forged(t, a, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://example.net/host/hosta") }),
			"it is spiffe://example.net/host/hosta, of another trust domain than \"example.org\""},
		"expired":       {forged(t, a, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "its certificate was valid until "},
		"not yet valid": {forged(t, a, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "its certificate is valid from "},
		"two URIs": {forged(t, a, func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("spiffe://example.org/host/hostb")) }),
			"the certificate has 2 URIs, not exactly one"},
		"two URIs, one foreign": {forged(t, a, func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("https://example.org/")) }),
			"the certificate has 2 URIs, not exactly one"},
		"no URI":       {forged(t, a, func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"hosta"} }), "the certificate has 0 URIs, not exactly one"},
		"another URI":  {forged(t, a, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://example.org/ns/a/sa/b") }), "not of the form spiffe://DOMAIN/host/NAME"},
		"an authority": {forged(t, a, func(c *x509.Certificate) { c.IsCA = true }), "its certificate is an authority's"},
		"may sign":     {forged(t, a, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), "its certificate may sign certificates"},
		"cannot sign":  {forged(t, a, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "its certificate is not good for signatures"},
		"for something else": {forged(t, a, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }),
			"incompatible key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			impostor := holding(c.impostor)
			client, server := handshake(impostor.ClientTLS(protocol, "hostb"), honest.ServerTLS(protocol))
			wantLine(t, "the server", server, c.want)
			wantLine(t, "the client", client, "remote error: tls: bad certificate")
			client, server = handshake(honest.ClientTLS(protocol, ""), impostor.ServerTLS(protocol))
			wantLine(t, "the client", client, c.want)
			wantLine(t, "the server", server, "remote error: tls: bad certificate")
		})
	}
}

func wantLine(t testing.TB, who string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s says %v, want %q", who, err, want)
	}
}

func TestRightAuthorityWrongName(t *testing.T) {
	a := authority(t)
	hosta, hostc := member(t, a, "hosta"), member(t, a, "hostc")
	client, server := handshake(hosta.ClientTLS(protocol, "hostb"), hostc.ServerTLS(protocol))
	wantLine(t, "the client", client, `it is spiffe://example.org/host/hostc, not host "hostb"`)
	wantLine(t, "the server", server, "remote error: tls: bad certificate")
}

func TestNoCertificate(t *testing.T) {
	server := member(t, authority(t), "hostb").ServerTLS(protocol)
	client, err := handshake(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}, server)
	wantLine(t, "the client", client, "certificate required")
	wantLine(t, "the server", err, "client didn't provide a certificate")
}

func TestOldProtocols(t *testing.T) {
	a := authority(t)
	hosta, hostb := member(t, a, "hosta"), member(t, a, "hostb")
	old := hosta.ClientTLS(protocol, "hostb")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	client, server := handshake(old, hostb.ServerTLS(protocol))
	wantLine(t, "the client", client, "protocol version not supported")
	wantLine(t, "the server", server, "client offered only unsupported versions")
	client, _ = handshake(hosta.ClientTLS("something/else", "hostb"), hostb.ServerTLS(protocol))
	wantLine(t, "the client", client, "no application protocol")
}

func TestParseID(t *testing.T) {
	for _, s := range []string{"spiffe://example.org/host/a", "spiffe://x_1-y.z/host/Db-1.example_2"} {
		if id, err := ParseID(s); err != nil || id.String() != s {
			t.Errorf("ParseID(%q) = %v, %v", s, id, err)
		}
	}
	for _, s := range []string{
		"", "spiffe://", "spiffe://a", "spiffe://a/host/", "spiffe:///host/b", "spiffe://a/host/b/c", "spiffe://A/host/b",
		"spiffe://a/host/b?c", "spiffe://a/host/b#c", "spiffe://a:1/host/b", "spiffe://u@a/host/b", "SPIFFE://a/host/b",
		"http://a/host/b", "spiffe://a/host/..", "spiffe://a/host/b%41", "spiffe://a/HOST/b", "spiffe://a//host/b",
		"spiffe://a/host/" + strings.Repeat("b", 256),
	} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q) = %v, want an error", s, id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://example.org/host/hosta")
	f.Add("spiffe://a/host/..")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if id.String() != s || id.url().String() != s {
			t.Fatalf("%q became %q and %q", s, id, id.url())
		}
	})
}

// Nothing that is printed or logged has a key or a secret in it.
func TestSecretsAreNotPrinted(t *testing.T) {
	a := authority(t)
	c, err := a.First("hosta")
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.NewToken("hostb", TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := x509.MarshalPKCS8PrivateKey(c.Certificate.PrivateKey)
	secrets := []string{string(token.secret[:]), fmt.Sprintf("%x", token.secret), fmt.Sprintf("%v", token.secret), token.Encode(),
		string(key), fmt.Sprintf("%x", key)}
	var out bytes.Buffer
	for _, log := range []*slog.Logger{slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))} {
		log.Info("x", "token", token, "token pointer", &token, "credential", c)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, token, &token, c)
	}
	for _, secret := range secrets {
		if strings.Contains(out.String(), secret) {
			t.Errorf("a secret was printed: %s", out.String())
		}
	}
	if !strings.Contains(out.String(), token.Number()) || !strings.Contains(out.String(), "spiffe://example.org/host/hosta") {
		t.Errorf("nothing useful was printed: %s", out.String())
	}
}

func TestFilesAreForTheOwnerAlone(t *testing.T) {
	a := authority(t)
	if _, err := a.NewToken("hostb", TokenLife); err != nil {
		t.Fatal(err)
	}
	s := member(t, a, "hosta")
	if err := s.Replace(s.Current()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{a.dir, filepath.Dir(s.files.Cert)} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) < 2 {
			t.Fatal(entries, err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
			}
		}
	}
	if info, _ := os.Stat(a.dir); info.Mode().Perm() != 0o700 {
		t.Errorf("%s has mode %v", a.dir, info.Mode())
	}
	os.Chmod(s.files.Key, 0o640)
	if _, err := Open(s.files); err == nil || !strings.Contains(err.Error(), "its mode is 0640, so others can read it; it has to be 0600") {
		t.Errorf("opening a key that others can read gives %v", err)
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	a := authority(t)
	good := member(t, a, "hosta")
	another := member(t, a, "hosta")
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for want, files := range map[string]Files{
		"no such file or directory":              {filepath.Join(dir, "none"), filepath.Join(dir, "none"), good.files.Roots},
		"there is no certificate":                {file("empty", ""), good.files.Key, good.files.Roots},
		"there is no key in it":                  {good.files.Cert, file("nokey", ""), good.files.Roots},
		"the key is not that of the certificate": {good.files.Cert, another.files.Key, good.files.Roots},
		"there is no root to trust":              {good.files.Cert, good.files.Key, file("noroots", "")},
		"is not an authority's":                  {good.files.Cert, good.files.Key, good.files.Cert},
		"its certificate is an authority's":      {good.files.Roots, good.files.Key, good.files.Roots},
	} {
		if _, err := Load(files); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("loading %+v gives %v, want %q", files, err, want)
		}
	}
}

// The forms that openssl writes are read as well as our own.
func TestOpensslKeys(t *testing.T) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	sec1, _ := x509.MarshalECPrivateKey(key)
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(key)
	for kind, der := range map[string][]byte{"EC PRIVATE KEY": sec1, "PRIVATE KEY": pkcs8} {
		text := "Bag attributes\n" + encodePEM("EC PARAMETERS", []byte{6, 8}) + encodePEM(kind, der)
		got, err := decodeKey([]byte(text))
		if err != nil || !got.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestFollowReloads(t *testing.T) {
	a := authority(t)
	s := member(t, a, "hosta")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var log logbook.Log
	wg.Go(func() { s.Follow(ctx, time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))) })
	first, changed := s.Current(), s.Changed()
	next, err := a.First("hosta")
	if err != nil {
		t.Fatal(err)
	}
	// Half of a change, and nonsense, leave what there is.
	own, _ := next.encode()
	os.WriteFile(s.files.Cert, own[:len(own)/2], 0o600)
	until(t, "half a file to be noticed", func() bool { return strings.Contains(log.String(), "level=ERROR") })
	if s.Current() != first {
		t.Error("half a file was taken")
	}
	if err := save(s.files, next); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("the change was not noticed")
	}
	if got := s.Current(); got == first || !got.NotAfter.Equal(next.NotAfter) {
		t.Errorf("the credential is %v", got)
	}
	cancel()
	wg.Wait()
	// One may have seen the new roots with half of the old file.
	if n := strings.Count(log.String(), "level=ERROR"); n > 2 {
		t.Errorf("%d errors were logged:\n%s", n, log.String())
	}
}

func TestKeepFresh(t *testing.T) {
	a := authority(t)
	a.leafLife = 2 * time.Second
	s := member(t, a, "hosta")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	failed := false
	seen := map[*Credential]bool{s.Current(): true}
	wg.Go(func() {
		s.KeepFresh(ctx, func(_ context.Context, c *Credential) (*Credential, error) {
			if time.Now().Before(c.RenewAt()) {
				t.Error("renewed too early")
			}
			if !failed {
				failed = true
				return nil, errors.New("not now")
			}
			return c.RenewFrom(a)
		}, slog.New(slog.DiscardHandler))
	})
	for len(seen) < 3 {
		select {
		case <-s.Changed():
		case <-time.After(patience):
			t.Fatal("nothing was renewed")
		}
		seen[s.Current()] = true
		if onDisk, err := Load(s.files); err != nil || !onDisk.NotAfter.Equal(s.Current().NotAfter) {
			t.Errorf("on disk is %v, %v", onDisk, err)
		}
	}
	cancel()
	wg.Wait()
	if !failed {
		t.Error("nothing was tried twice")
	}
}

func TestInitTwice(t *testing.T) {
	a := authority(t)
	if _, err := InitAuthority(a.dir, "example.org"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("making an authority a second time gives %v", err)
	}
	if _, err := OpenAuthority(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening an authority that is not there gives %v", err)
	}
	if again, err := OpenAuthority(a.dir); err != nil || again.Domain != "example.org" {
		t.Errorf("opening it gives %+v, %v", again, err)
	}
	if _, err := InitAuthority(t.TempDir(), "Not A Domain"); err == nil {
		t.Error("an authority of no domain was made")
	}
}

// While the authority changes from one root to the next, whoever has a valid
// certificate can talk to whoever else has, whenever the two have renewed.
func TestRoll(t *testing.T) {
	a := authority(t)
	now := time.Now()
	a.clock = func() time.Time { return now }
	issue := func(host string) *Store {
		c, err := a.First(host)
		if err != nil {
			t.Fatal(err)
		}
		s := holding(c)
		s.clock = a.clock
		return s
	}
	hosts := []*Store{issue("h0")}
	trusts := func(s *Store) int { return s.Current().Trusts() }
	signs, gone, err := a.Roll()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Roll(); err == nil || !strings.Contains(err.Error(), "the change to the newest root is under way until ") {
		t.Errorf("a second change at the same time gives %v", err)
	}
	begun := now
	for now.Before(gone.Add(LeafLife)) {
		hosts = append(hosts, issue(fmt.Sprintf("h%d", len(hosts))))
		alive := hosts[:0:0]
		for _, h := range hosts {
			if now.Before(h.Current().NotAfter) {
				alive = append(alive, h)
			}
		}
		if len(alive) < 2 {
			t.Fatal("nobody is alive")
		}
		for _, c := range alive {
			for _, s := range alive {
				if cerr, serr := handshake(c.ClientTLS(protocol, s.Current().ID.Host), s.ServerTLS(protocol)); cerr != nil || serr != nil {
					t.Fatalf("after %v: %v to %v: %v, %v", now.Sub(begun), c.Current(), s.Current(), cerr, serr)
				}
			}
		}
		now = now.Add(5 * time.Hour)
	}
	if first, during := trusts(hosts[0]), trusts(hosts[1]); first != 1 || during != 2 {
		t.Errorf("trusted were %d roots before and %d during the change, want 1 and 2", first, during)
	}
	if after := trusts(hosts[len(hosts)-1]); after != 1 {
		t.Errorf("trusted are %d roots after %v, want 1", after, gone)
	}
	if !signs.Before(gone) {
		t.Error(signs, gone)
	}
	if _, _, err := a.Roll(); err != nil {
		t.Errorf("the next change gives %v", err)
	}
	if s, _ := a.load(); len(s.Roots) != 2 {
		t.Errorf("%d roots are kept, want 2", len(s.Roots))
	}
}

func TestLeafLife(t *testing.T) {
	c, err := authority(t).First("hosta")
	if err != nil {
		t.Fatal(err)
	}
	if life := c.NotAfter.Sub(c.NotBefore); life > 24*time.Hour {
		t.Errorf("a certificate is good for %v", life)
	}
	if at := c.RenewAt().Sub(c.NotBefore); at != 16*time.Hour {
		t.Errorf("it is renewed after %v, want 16h", at)
	}
}

func TestDamagedAuthority(t *testing.T) {
	a := authority(t)
	os.WriteFile(a.file(), []byte("{"), 0o600)
	if _, err := OpenAuthority(a.dir); err == nil || !strings.Contains(err.Error(), "its file is damaged") {
		t.Errorf("opening it gives %v", err)
	}
}

func encodePEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for", what)
		}
	}
}

func TestCheck(t *testing.T) {
	c := member(t, authority(t), "hosta").Current()
	for at, want := range map[time.Time]string{
		c.NotBefore.Add(-time.Hour): "the certificate of spiffe://example.org/host/hosta is valid from ",
		c.NotAfter.Add(time.Hour):   "the certificate of spiffe://example.org/host/hosta was valid until ",
	} {
		err := c.Check(at)
		wantLine(t, "the check", err, want)
		wantLine(t, "the check", err, ", and the clock here says "+at.UTC().Format(time.RFC3339))
	}
	if err := c.Check(time.Now()); err != nil {
		t.Errorf("a good one gives %v", err)
	}
}

func TestSave(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c := member(t, authority(t), "hosta").Current()
	if err := Save(dir, c); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v, %v", info, err)
	}
	if s, err := Open(In(dir)); err != nil || s.Current().ID != c.ID {
		t.Errorf("opening it gives %v, %v", s, err)
	}
}
