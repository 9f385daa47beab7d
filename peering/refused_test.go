package peering

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/tunnel"
)

// Nobody gets a session who does not prove to be a host of this trust domain,
// and each side has one line that says why, whichever of them has dialed.
func TestRefused(t *testing.T) {
	ca, other := newRoot(t), newRoot(t)
	for name, c := range map[string]struct {
		shown tls.Certificate
		why   string
	}{
		"wrong authority": {other.leaf(t, "hostb", nil),
			"no root trusted here has signed its certificate"},
		"expired": {ca.leaf(t, "hostb", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
			"its certificate was valid until "},
		"not yet valid": {ca.leaf(t, "hostb", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }),
			"its certificate is valid from "},
		"second URI": {ca.leaf(t, "hostb", func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("hosta")) }),
			"the certificate has 2 URIs, not exactly one"},
		"other domain": {ca.leaf(t, "hostb", func(c *x509.Certificate) { c.URIs[0].Host = "example.net" }),
			`it is spiffe://example.net/host/hostb, of another trust domain than \"example.org\"`},
	} {
		const alert = "the other side refuses it, and its log says why: remote error: tls: bad certificate"
		t.Run(name+", calling", func(t *testing.T) {
			noLeaks(t)
			a, ln := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
			a.run(t, ln)
			conn, err := tunnel.DialTLS(context.Background(), a.addr, raw(c.shown))
			if err == nil {
				var s *tunnel.Session
				if s, err = tunnel.Start(context.Background(), conn, tunnel.Config{}); err == nil {
					s.Close()
				}
			}
			if err == nil || !strings.HasSuffix(err.Error(), alert) {
				t.Errorf("it hears %v, want %q", err, alert)
			}
			a.log.Only(t, `level=WARN msg="a connection came to nothing" from=127.0.0.1:`, c.why)
			if len(a.List()) != 0 {
				t.Errorf("it is among %+v", a.List())
			}
		})
		t.Run(name+", called", func(t *testing.T) {
			noLeaks(t)
			a, ln := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
			ln.Close()
			addr, log := impostor(t, c.shown)
			a.Known["hostb"] = addr
			a.run(t)
			defer a.Want("hostb")()
			a.log.Only(t, `level=WARN msg="peer cannot be reached; trying again" peer=hostb`, c.why)
			first(t, log, "a connection came to nothing", alert)
			why := strings.ReplaceAll(c.why, `\"`, `"`)
			if st := a.State("hostb"); st.Up || !strings.Contains(st.Reason, why) || strings.Contains(st.Reason, "\n") {
				t.Errorf("the state is %+v, want %q", st, why)
			}
		})
	}
}

// raw is for a host that shows any certificate and believes all others.
func raw(c tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{tunnel.Protocol},
		InsecureSkipVerify: true,
		Certificates:       []tls.Certificate{c},
		ClientAuth:         tls.RequireAnyClientCert,
	}
}

// impostor listens with any certificate until the test is over.
func impostor(t testing.TB, c tls.Certificate) (addr string, log *logbook.Log) {
	t.Helper()
	ln, err := tunnel.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log = new(logbook.Log)
	l := &tunnel.Listener{TLS: raw(c), Handle: func(c *tunnel.Secured) { c.Close() }, Log: slog.New(slog.NewTextHandler(log, nil))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String(), log
}

// first waits for the first line of a log to have all of the words, where much the
// same is said again and again.
func first(t testing.TB, l *logbook.Log, words ...string) {
	t.Helper()
	until(t, "a line in "+l.String(), func() bool {
		first, _, _ := strings.Cut(l.String(), "\n")
		for _, word := range words {
			if !strings.Contains(first, word) {
				return false
			}
		}
		return true
	})
}

// A host that has another name than the one that was dialed is none to talk
// to, although it belongs to the trust domain.
func TestRefusedForItsName(t *testing.T) {
	noLeaks(t)
	ca := newRoot(t)
	a, lna := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
	c, lnc := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hostc", nil), ca)))
	lna.Close()
	a.Known["hostb"] = c.addr
	c.run(t, lnc)
	a.run(t)
	defer a.Want("hostb")()
	a.log.Only(t, `msg="peer cannot be reached; trying again" peer=hostb`, `it is spiffe://example.org/host/hostc, not host \"hostb\"`)
	first(t, c.log, "a connection came to nothing", "the other side refuses it, and its log says why: remote error: tls: bad certificate")
	if len(c.List()) != 0 {
		t.Errorf("the other side has %+v", c.List())
	}
}

// A host whose own certificate is no good says so before it bothers others.
func TestOwnCertificate(t *testing.T) {
	ca := newRoot(t)
	for want, change := range map[string]func(*x509.Certificate){
		"was valid until ": func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
		"is valid from ":   func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) },
	} {
		noLeaks(t)
		a, ln := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", change), ca)))
		ln.Close()
		a.Known["hostb"] = "127.0.0.1:1"
		a.run(t)
		defer a.Want("hostb")()
		a.log.Only(t, "peer=hostb", "the certificate of spiffe://example.org/host/hosta "+want, ", and the clock here says ")
	}
}

// What does not say which protocol it speaks gets no session either.
func TestRefusedForItsProtocol(t *testing.T) {
	noLeaks(t)
	ca := newRoot(t)
	a, ln := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
	a.run(t, ln)
	config := raw(ca.leaf(t, "hostb", nil))
	config.NextProtos = nil
	conn, err := tunnel.DialTLS(context.Background(), a.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := tunnel.Start(context.Background(), conn, tunnel.Config{}); err == nil {
		s.Close()
		t.Error("it got a session")
	}
	a.log.Only(t, `msg="refused a host"`, "it does not say that it speaks linkrun/1")

	// Nobody joins where there is no authority.
	config.NextProtos = []string{identity.JoinProtocol}
	if conn, err = tunnel.DialTLS(context.Background(), a.addr, config); err == nil {
		conn.Close()
		t.Error("it may join")
	}
	a.log.Only(t, "client requested unsupported application protocols")
}

// Those who are about to join, and have proven nothing, are few.
func TestSlowJoins(t *testing.T) {
	noLeaks(t)
	a := newSite(t).host(t, "hosta")
	var slow []net.Conn
	for range maxJoining + 3 {
		conn, err := tunnel.DialTLS(context.Background(), a.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{identity.JoinProtocol}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		slow = append(slow, conn)
	}
	const line = `msg="refused a host that wants to join"`
	until(t, "the oldest to have to go", func() bool { return strings.Count(a.log.String(), line) >= 3 })
	// Not because their time was up.
	if log := a.log.String(); strings.Count(log, line) > 3 || strings.Count(log, "use of closed network connection") != 3 {
		t.Errorf("want that three had to go:\n%s", log)
	}
	slow[maxJoining+2].SetReadDeadline(time.Now())
	if _, err := slow[maxJoining+2].Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("the youngest had to go: %v", err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}
