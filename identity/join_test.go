package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// joined has a host join over a pipe, and returns what each side says.
func joined(t testing.TB, a *Authority, token Token) (c *Credential, host string, clientErr, serverErr error) {
	t.Helper()
	x, y := net.Pipe()
	x.SetDeadline(time.Now().Add(patience))
	y.SetDeadline(time.Now().Add(patience))
	var wg sync.WaitGroup
	wg.Go(func() {
		conn := tls.Server(y, a.JoinServerTLS("hosta"))
		if serverErr = conn.Handshake(); serverErr == nil {
			host, serverErr = a.ServeJoin(conn, "10.0.0.7:41000")
		}
		y.Close()
	})
	conn := tls.Client(x, JoinClientTLS(token))
	if clientErr = conn.Handshake(); clientErr == nil {
		var at ID
		c, at, clientErr = Join(conn, token)
		if want := (ID{a.Domain, "hosta"}); clientErr == nil && at != want {
			t.Errorf("the authority is at %v, want %v", at, want)
		}
	}
	x.Close()
	wg.Wait()
	return c, host, clientErr, serverErr
}

func TestJoin(t *testing.T) {
	a := authority(t)
	token, err := a.NewToken("hostb", TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	// As it is typed.
	token, err = ParseToken(" " + token.Encode() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	c, host, clientErr, serverErr := joined(t, a, token)
	if clientErr != nil || serverErr != nil || host != "hostb" || c.ID != (ID{"example.org", "hostb"}) {
		t.Fatalf("joined as %v, %q, %v, %v", c, host, clientErr, serverErr)
	}
	hosta, hostb := member(t, a, "hosta"), stored(t, c)
	if cerr, serr := handshake(hosta.ClientTLS(protocol, "hostb"), hostb.ServerTLS(protocol)); cerr != nil || serr != nil {
		t.Errorf("it is not welcome: %v, %v", cerr, serr)
	}

	c, _, clientErr, serverErr = joined(t, a, token)
	if c != nil {
		t.Error("a token was good for two")
	}
	wantLine(t, "the host", clientErr, "the authority says: \"token "+token.Number()+" was used at ")
	wantLine(t, "the host", clientErr, " by 10.0.0.7:41000")
	wantLine(t, "the authority", serverErr, "joining: token "+token.Number()+" was used at ")
}

func TestTokensThatAreNoGood(t *testing.T) {
	a := authority(t)
	good, err := a.NewToken("hostb", TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	expired, err := a.NewToken("hostb", -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	guessed := good
	guessed.secret[3] ^= 1
	unknown := good
	unknown.number[3] ^= 1
	for name, c := range map[string]struct {
		token Token
		want  string
	}{
		"expired": {expired, "token " + expired.Number() + " has expired at "},
		"guessed": {guessed, "comes without proof of its secret"},
		"unknown": {unknown, "is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, clientErr, serverErr := joined(t, a, c.token)
			if got != nil {
				t.Error("it was let in")
			}
			wantLine(t, "the host", clientErr, strings.ReplaceAll(c.want, `"`, `\"`))
			wantLine(t, "the authority", serverErr, c.want)
		})
	}
	// A bad guess does not spend the token.
	if _, _, clientErr, _ := joined(t, a, good); clientErr != nil {
		t.Errorf("the good one gives %v", clientErr)
	}
}

func TestJoinWithAnotherAuthority(t *testing.T) {
	a := authority(t)
	impostor, err := InitAuthority(filepath.Join(t.TempDir(), "impostor"), "example.org")
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.NewToken("hostb", TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	_, _, clientErr, serverErr := joined(t, impostor, token)
	wantLine(t, "the host", clientErr, "it does not have the root that the token names")
	wantLine(t, "the impostor", serverErr, "bad certificate")
}

// Another host of the domain can show the root that a token names, but hand
// out nothing in its name.
func TestJoinWithAnotherHost(t *testing.T) {
	a := authority(t)
	impostor, err := InitAuthority(filepath.Join(t.TempDir(), "impostor"), "example.org")
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.NewToken("hostb", TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	x, y := net.Pipe()
	defer x.Close()
	defer y.Close()
	x.SetDeadline(time.Now().Add(patience))
	y.SetDeadline(time.Now().Add(patience))
	go func() {
		conn := tls.Server(y, a.JoinServerTLS("hostc")) // what hostc has is as good
		var r joinRequest
		if receive(conn, &r) != nil {
			return
		}
		public, _ := keyOf(r.CSR)
		issued, _ := impostor.Issue("hostb", public)
		real, _ := a.load()
		issued.Roots = append(issued.Roots, real.trusted(time.Now())...)
		send(conn, joinAnswer{Issued: issued})
	}()
	conn := tls.Client(x, JoinClientTLS(token))
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	c, _, err := Join(conn, token)
	if c != nil {
		t.Error("it joined a domain of another host's making")
	}
	wantLine(t, "the host", err, "what was handed out is not of the root that the token names")
}

// Whoever relays the proof of a host to the authority over a connection of its
// own gets nothing for it.
func TestProofIsBoundToTheConnection(t *testing.T) {
	a := authority(t)
	token, err := a.NewToken("hostb", TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	overheard := joinRequest{Token: token.Number(), Proof: token.proof(make([]byte, 32), csr), CSR: csr}
	x, y := net.Pipe()
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() {
		conn := tls.Server(y, a.JoinServerTLS("hosta"))
		if serverErr = conn.Handshake(); serverErr == nil {
			_, serverErr = a.ServeJoin(conn, "mallory")
		}
		y.Close()
	})
	conn := tls.Client(x, JoinClientTLS(token))
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	_, err = exchange(conn, overheard)
	x.Close()
	wg.Wait()
	wantLine(t, "the authority", serverErr, "comes without proof of its secret")
	wantLine(t, "the relay", err, "comes without proof of its secret")
}

func TestATokenIsGoodForOneOfMany(t *testing.T) {
	a := authority(t)
	token, err := a.NewToken("hostb", TokenLife)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var in atomic.Int32
	for range 10 {
		wg.Go(func() {
			// As from processes of their own.
			other, err := OpenAuthority(a.dir)
			if err != nil {
				t.Error(err)
				return
			}
			if _, _, err, _ := joined(t, other, token); err == nil {
				in.Add(1)
			}
		})
	}
	wg.Wait()
	if got := in.Load(); got != 1 {
		t.Errorf("%d hosts joined with one token", got)
	}
}

func TestTokensAreForgotten(t *testing.T) {
	a := authority(t)
	now := time.Now()
	a.clock = func() time.Time { return now }
	for range 5 {
		if _, err := a.NewToken("hostb", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(forgetAfter + time.Hour)
	if _, err := a.NewToken("hostb", time.Minute); err != nil {
		t.Fatal(err)
	}
	a.withTokens(func(tokens map[string]*issuedToken) error {
		if len(tokens) != 1 {
			t.Errorf("%d tokens are remembered, want 1", len(tokens))
		}
		return nil
	})
}

func TestRenew(t *testing.T) {
	a := authority(t)
	c, err := a.First("hosta")
	if err != nil {
		t.Fatal(err)
	}
	renewed := func(as string) (*Credential, error) {
		x, y := net.Pipe()
		defer x.Close()
		defer y.Close()
		go a.ServeRenew(y, as)
		return c.Renew(x)
	}
	next, err := renewed("hosta")
	if err != nil || next.ID != c.ID || bytes.Equal(next.Certificate.Certificate[0], c.Certificate.Certificate[0]) {
		t.Errorf("renewing gives %v, %v", next, err)
	}
	if _, err := renewed("hostb"); err == nil || !strings.Contains(err.Error(), "the new one is of spiffe://example.org/host/hostb") {
		t.Errorf("renewing as another gives %v", err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	for in, want := range map[string]string{
		"\x00\x01\x00\x01":   "reading a message: 65537 bytes are too many",
		"\x00\x00\x00\x05{}": "reading a message: unexpected EOF",
		"\x00\x00\x00\x02[]": "reading a message: json:",
		"":                   "reading a message: EOF",
	} {
		var r joinRequest
		if err := receive(strings.NewReader(in), &r); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("receiving %q gives %v, want %q", in, err, want)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	var t0 Token
	t0.Expires = time.Unix(1<<31, 0)
	f.Add(t0.Encode())
	f.Add(tokenPrefix)
	f.Add("ambassador1.AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			if body, ok := strings.CutPrefix(s, tokenPrefix); ok && len(body) > 8 && strings.Contains(err.Error(), body) {
				t.Fatal("the error repeats the token")
			}
			return
		}
		if again, err := ParseToken(token.Encode()); err != nil || again != token || token.Encode() != strings.TrimSpace(s) {
			t.Fatalf("%q became %q", s, token.Encode())
		}
	})
}

// Whatever an authority, or a host that joins or renews, sends: it is an error
// of one line, or what it has to be.
func FuzzReceive(f *testing.F) {
	a := authority(f)
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // the same in all processes
	issued, err := a.Issue("hosta", key.Public())
	if err != nil {
		f.Fatal(err)
	}
	_, csr, err := newRequest()
	if err != nil {
		f.Fatal(err)
	}
	for _, message := range []any{
		joinRequest{Token: "0102030405060708", Proof: []byte{1}, CSR: csr},
		joinRequest{CSR: csr},
		joinAnswer{Issued: issued},
		joinAnswer{Issued: Issued{Chain: issued.Chain, Roots: issued.Chain}},
		joinAnswer{Issued: Issued{Chain: issued.Roots, Roots: issued.Roots}},
		joinAnswer{Error: "no\nand no"},
	} {
		var b bytes.Buffer
		send(&b, message)
		f.Add(b.Bytes())
	}
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		line := func(err error) {
			if err != nil && strings.ContainsAny(err.Error(), "\r\n") {
				t.Fatalf("an error of several lines: %q", err)
			}
		}
		var r joinRequest
		err := receive(bytes.NewReader(in), &r)
		line(err)
		if err == nil {
			_, err = keyOf(r.CSR)
			line(err)
			_, err = a.redeem(r.Token, func(Token) []byte { return []byte("proof") }, r.Proof, "fuzz")
			line(err)
			if err == nil {
				t.Fatal("a token that was never made is good")
			}
		}
		issued, err := exchange(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(in), io.Discard}, joinRequest{})
		line(err)
		if err != nil {
			return
		}
		c, err := newCredential(issued.Chain, issued.Roots, key)
		line(err)
		if err == nil && (c.ID.Validate() != nil || c.Trusts() == 0) {
			t.Fatalf("a credential of %q that trusts %d roots", c.ID, c.Trusts())
		}
	})
}

func TestJoinedIsRemembered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	if j, err := LoadJoined(dir); err != nil || j != (Joined{}) {
		t.Errorf("a host that has not joined remembers %+v, %v", j, err)
	}
	want := Joined{"hosta", "192.0.2.1:7443"}
	if err := SaveJoined(dir, want); err != nil {
		t.Fatal(err)
	}
	if j, err := LoadJoined(dir); err != nil || j != want {
		t.Errorf("it remembers %+v, %v", j, err)
	}
	if err := writeFile(joinedIn(dir), []byte("{")); err != nil {
		t.Fatal(err)
	}
	_, err := LoadJoined(dir)
	wantLine(t, "a host with a damaged file", err, "reading which host has the authority, in \"")
}
