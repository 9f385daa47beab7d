package peering

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/identity"
)

// site is an authority and where it keeps its files.
type site struct {
	*identity.Authority
	dir string
}

func newSite(t testing.TB) site {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "authority")
	a, err := identity.InitAuthority(dir, domain)
	if err != nil {
		t.Fatal(err)
	}
	return site{a, dir}
}

// host is the host that has the authority, and runs.
func (s site) host(t testing.TB, name string) *host {
	t.Helper()
	c, err := s.First(name)
	if err != nil {
		t.Fatal(err)
	}
	h, ln := newHost(t, saved(t, c))
	h.Authority = s.Authority
	h.run(t, ln)
	return h
}

// saved is a store in a directory of its own.
func saved(t testing.TB, c *identity.Credential) *identity.Store {
	t.Helper()
	dir := t.TempDir()
	if err := identity.Save(dir, c); err != nil {
		t.Fatal(err)
	}
	return open(t, identity.In(dir))
}

// root is the authority's own, to sign what it would not.
func (s site) root(t testing.TB) root {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "authority.json"))
	if err != nil {
		t.Fatal(err)
	}
	var state struct{ Roots []struct{ Cert, Key []byte } }
	if err := json.Unmarshal(b, &state); err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(state.Roots[0].Cert)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(state.Roots[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	return root{cert, key.(crypto.Signer)}
}

// old is a store with a certificate that is to be renewed at once.
func (s site) old(t testing.TB, host string) *identity.Store {
	t.Helper()
	ca := s.root(t)
	shown := ca.leaf(t, host, func(c *x509.Certificate) {
		c.NotBefore = time.Now().Add(-20 * time.Hour)
		c.NotAfter = time.Now().Add(4 * time.Hour)
	})
	f := files(t, t.TempDir(), shown, ca)
	// One file for both, as those that are replaced have to be.
	key, err := os.ReadFile(f.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(f.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.Cert, append(key, cert...), 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, identity.Files{Cert: f.Cert, Key: f.Cert, Roots: f.Roots})
}

// A host joins over the network, once for a token, and is one of the domain
// then.
func TestJoin(t *testing.T) {
	noLeaks(t)
	s := newSite(t)
	a := s.host(t, "hosta")
	token, err := s.NewToken("hostb", identity.TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	c, at, err := Join(context.Background(), a.addr, token)
	if err != nil {
		t.Fatal(err)
	}
	if want := (identity.ID{Domain: domain, Host: "hostb"}); c.ID != want || at.Host != "hosta" {
		t.Errorf("it joined as %v with the authority at %v", c.ID, at)
	}
	a.log.Only(t, `level=INFO msg="a host has joined" host=hostb from=127.0.0.1:`)
	b, ln := newHost(t, saved(t, c))
	ln.Close()
	b.AuthorityAt, b.Known["hosta"] = "hosta", a.addr
	b.run(t)
	until(t, "a session with the authority's host", func() bool { return b.State("hosta").Up })
	st, who := b.ask(t, "hosta")
	if who != "hostb asks for db" {
		t.Errorf("hosta heard that %q", who)
	}
	st.Close()
}

// Tokens that are no good: one clear line on each side, and nothing is left.
func TestTokensThatAreNoGood(t *testing.T) {
	noLeaks(t)
	s, other := newSite(t), newSite(t)
	a := s.host(t, "hosta")
	token := func(s site, life time.Duration) identity.Token {
		token, err := s.NewToken("hostb", life)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	used := token(s, time.Hour)
	if _, _, err := Join(context.Background(), a.addr, used); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token       identity.Token
		here, there string // what the host hears, and what the log of the authority's has
	}{
		"replayed": {used, "was used at ", `msg="refused a host that wants to join"`},
		"expired":  {token(s, -time.Minute), "has expired at ", `msg="refused a host that wants to join"`},
		"of another authority": {token(other, time.Hour), "it does not have the root that the token names",
			`msg="a connection came to nothing"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Join(context.Background(), a.addr, c.token)
			if err == nil || !strings.Contains(err.Error(), c.here) || !strings.HasPrefix(err.Error(), "joining with token "+c.token.Number()) ||
				strings.Contains(err.Error(), "\n") {
				t.Errorf("the host hears %v, want %q", err, c.here)
			}
			words := []string{"level=WARN", c.there, c.here}
			if name == "of another authority" {
				words[2] = "the other side refuses it, and its log says why: remote error: tls: bad certificate"
			}
			a.log.Only(t, words...)
		})
	}
	// A host that has no authority lets nobody join.
	ca := newRoot(t)
	plain, ln := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hostc", nil), ca)))
	plain.run(t, ln)
	if _, _, err := Join(context.Background(), plain.addr, token(s, time.Hour)); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("joining where there is no authority gives %v", err)
	}
	plain.log.Only(t, "client requested unsupported application protocols")
}

// A certificate is renewed over the session with the host that has the
// authority. The session is replaced, and what is open in it goes on.
func TestRenewal(t *testing.T) {
	noLeaks(t)
	s := newSite(t)
	a := s.host(t, "hosta")
	b, ln := newHost(t, s.old(t, "hostb"))
	ln.Close()
	b.Known["hosta"] = a.addr
	b.AuthorityAt = "hosta"
	before := b.Store.Current()
	b.run(t)
	// Whichever session it gets, it is to last.
	st, _ := b.ask(t, "hosta")
	until(t, "a new certificate", func() bool { return b.Store.Current() != before })
	a.log.Only(t, `msg="renewed a host's certificate" host=hostb`)
	b.log.Only(t, `msg="renewed the certificate"`)
	if c := b.Store.Current(); c.ID != before.ID || time.Until(c.NotAfter) < 23*time.Hour {
		t.Errorf("the new one is %v", c)
	}
	until(t, "a session that is proven with it", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		p := a.peers["hostb"]
		return p != nil && p.proven.NotAfter.Equal(b.Store.Current().NotAfter)
	})
	echoes(t, st, "still there")
	st.Close()
}

// Where the authority is at hand, nobody is asked.
func TestRenewalAtTheAuthority(t *testing.T) {
	noLeaks(t)
	s := newSite(t)
	a, ln := newHost(t, s.old(t, "hosta"))
	ln.Close()
	a.Authority = s.Authority
	before := a.Store.Current()
	a.run(t)
	until(t, "a new certificate", func() bool { return a.Store.Current() != before })
	a.log.Only(t, `msg="renewed the certificate"`)
}

// What keeps a certificate from being renewed is said.
func TestRenewalFails(t *testing.T) {
	noLeaks(t)
	s := newSite(t)
	ca := s.root(t)
	c, lnc := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hostc", nil), ca)))
	c.run(t, lnc)
	b, ln := newHost(t, s.old(t, "hostb"))
	ln.Close()
	b.Known["hostc"], b.AuthorityAt = c.addr, "hostc"
	b.run(t)
	b.log.Only(t, `level=WARN msg="renewing the certificate; trying again"`,
		`asking \"hostc\" for a certificate: unsupported: the authority is at another host`)

	expired, ln := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hostd", func(c *x509.Certificate) {
		c.NotAfter = time.Now().Add(-time.Minute)
	}), ca)))
	ln.Close()
	expired.AuthorityAt = "hostc"
	expired.run(t)
	expired.log.Only(t, "level=ERROR", `msg="the certificate has expired and cannot be renewed; trying again"`,
		"the certificate of spiffe://example.org/host/hostd was valid until ", "it takes a new token to join again")
}

// Files that somebody else replaces count from then on: sessions are proven
// anew, and those end whose root is not trusted any more.
func TestFilesChange(t *testing.T) {
	noLeaks(t)
	first, second := newRoot(t), newRoot(t)
	dira, dirb := t.TempDir(), t.TempDir()
	a, lna := newHost(t, open(t, files(t, dira, first.leaf(t, "hosta", nil), first)))
	b, lnb := newHost(t, open(t, files(t, dirb, first.leaf(t, "hostb", nil), first)))
	b.Known["hosta"] = a.addr
	a.run(t, lna)
	b.run(t, lnb)
	defer b.Want("hosta")()
	kept, _ := b.ask(t, "hosta")

	// Both learn of the second root, then change to it: nothing is cut.
	changed := func(h *host) func() bool {
		before := h.Store.Current()
		return func() bool { return h.Store.Current() != before }
	}
	for _, root := range []root{first, second} {
		for _, x := range []struct {
			h    *host
			dir  string
			name string
		}{{a, dira, "hosta"}, {b, dirb, "hostb"}} {
			is := changed(x.h)
			files(t, x.dir, root.leaf(t, x.name, nil), first, second)
			until(t, "the files of "+x.name+" to be read", is)
		}
	}
	until(t, "sessions that are proven with the second", func() bool {
		for _, x := range []struct {
			h    *host
			name string
		}{{a, "hostb"}, {b, "hosta"}} {
			if !x.h.newestShows(x.name, second) {
				return false
			}
		}
		return true
	})
	echoes(t, kept, "still there")

	// Once a trusts the first no more, what was proven with it ends.
	is := changed(a)
	files(t, dira, second.leaf(t, "hosta", nil), second)
	until(t, "the files of hosta to be read", is)
	kept.SetReadDeadline(time.Now().Add(patience))
	if _, err := kept.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the old session is still there: %v", err)
	}
	kept.Close()
	until(t, "the log to say so", func() bool {
		return strings.Contains(a.log.String(), "cutting a session that is not trusted any more")
	})
	st, _ := b.ask(t, "hosta")
	st.Close()
}

// newestShows tells whether the last session with a host was proven with a
// certificate of r's.
func (h *host) newestShows(name string, r root) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[name]
	if p == nil || len(p.proofs) == 0 {
		return false
	}
	var shown tls.ConnectionState = p.proofs[len(p.proofs)-1].shown
	return shown.PeerCertificates[0].CheckSignatureFrom(r.cert) == nil
}

// A listener that dies takes Run with it.
func TestListenerDies(t *testing.T) {
	noLeaks(t)
	ca := newRoot(t)
	a, ln := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
	done := make(chan error, 1)
	go func() { done <- a.Run(context.Background(), dying{ln}) }()
	select {
	case err := <-done:
		if want := "listening at " + a.addr + ": use of closed network connection"; err == nil || err.Error() != want {
			t.Errorf("it returns %v, want %s", err, want)
		}
	case <-time.After(patience):
		t.Fatal("it goes on without")
	}
}

type dying struct{ net.Listener }

func (dying) Accept() (net.Conn, error) { return nil, net.ErrClosed }
