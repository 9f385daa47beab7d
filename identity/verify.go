package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Peer is who is at the other end of a connection, as its certificate says.
type Peer struct {
	ID       ID
	NotAfter time.Time // when the proof runs out: the earliest end in the chain
	Serial   string    // of the leaf, in hexadecimal
}

// verify checks the chain that the other end has shown, leaf first. usage is
// what the leaf has to be good for.
func verify(chain []*x509.Certificate, roots *x509.CertPool, domain string, usage x509.ExtKeyUsage, now time.Time) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, errors.New("it has no certificate")
	}
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return Peer{}, explain(leaf, err, now)
	}
	id, err := checkLeaf(leaf)
	if err != nil {
		return Peer{}, err
	}
	if id.Domain != domain {
		return Peer{}, fmt.Errorf("it is %v, of another trust domain than %q", id, domain)
	}
	// The proof is good for as long as the longest-lived of the chains.
	peer := Peer{ID: id, Serial: leaf.SerialNumber.Text(16)}
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(peer.NotAfter) {
			peer.NotAfter = end
		}
	}
	return peer, nil
}

// checkLeaf checks what X509-SVID.md, sections 2 to 4, demands of a leaf.
func checkLeaf(leaf *x509.Certificate) (ID, error) {
	switch {
	case leaf.IsCA:
		return ID{}, errors.New("its certificate is an authority's")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return ID{}, errors.New("its certificate is not good for signatures")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return ID{}, errors.New("its certificate may sign certificates")
	}
	return IDOf(leaf)
}

// explain says in words what crypto/x509 found.
func explain(leaf *x509.Certificate, err error, now time.Time) error {
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("no root trusted here has signed its certificate: %w", err)
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("its certificate is valid from %v on: %w", leaf.NotBefore.UTC().Format(time.RFC3339), err)
	case now.After(leaf.NotAfter):
		return fmt.Errorf("its certificate was valid until %v: %w", leaf.NotAfter.UTC().Format(time.RFC3339), err)
	}
	return err
}

// PeerOf is the peer of a connection whose handshake went well with a
// configuration of a Store's.
func (s *Store) PeerOf(cs tls.ConnectionState, client bool) (Peer, error) {
	usage := x509.ExtKeyUsageClientAuth
	if client {
		usage = x509.ExtKeyUsageServerAuth
	}
	own := s.Current()
	return verify(cs.PeerCertificates, own.roots, own.ID.Domain, usage, s.now())
}

// ServerTLS is for a listener of protocol: a peer has to prove who it is, and
// any host of the trust domain is let in. What it may do is for others to say.
func (s *Store) ServerTLS(protocol string) *tls.Config {
	c := s.tls(protocol)
	c.ClientAuth = tls.RequireAnyClientCert // VerifyConnection does the rest
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := s.PeerOf(cs, false)
		return err
	}
	return c
}

// ClientTLS is for a connection to host, the name of a host of the own trust
// domain. "" is any host of it.
func (s *Store) ClientTLS(protocol, host string) *tls.Config {
	c := s.tls(protocol)
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		peer, err := s.PeerOf(cs, true)
		if err == nil && host != "" && peer.ID.Host != host {
			err = fmt.Errorf("it is %v, not host %q", peer.ID, host)
		}
		return err
	}
	return c
}

func (s *Store) tls(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol},
		// There is no host name to compare with: VerifyConnection, which every
		// configuration here sets, checks the chain and the name in it.
		InsecureSkipVerify: true,
		// A session that is resumed would outlive what it was proven with.
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &s.Current().Certificate, nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.Current().Certificate, nil
		},
		Time: s.now,
	}
}
