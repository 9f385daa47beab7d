package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// JoinProtocol is what a host speaks that has no certificate yet (ALPN).
const JoinProtocol = "ambassador-join/1"

// Issued is what an authority hands out: a chain, leaf first, and the roots to
// trust, in DER.
type Issued struct {
	Chain [][]byte `json:"chain"`
	Roots [][]byte `json:"roots"`
}

// joinRequest is what a host sends that joins, or, without a token, one that
// renews.
type joinRequest struct {
	Token string `json:"token,omitempty"` // its number
	Proof []byte `json:"proof,omitempty"`
	CSR   []byte `json:"csr"` // PKCS #10; only its key counts
}

type joinAnswer struct {
	Error string `json:"error,omitempty"`
	Issued
}

// Join gets a host's first credential over a fresh TLS connection that was
// made with JoinClientTLS for the same token. It also returns the host that
// has the authority.
func Join(conn *tls.Conn, t Token) (c *Credential, authority ID, err error) {
	c, err = join(conn, t)
	if err == nil {
		authority, err = IDOf(conn.ConnectionState().PeerCertificates[0])
	}
	if err != nil {
		return nil, ID{}, fmt.Errorf("joining with %v: %w", t, err)
	}
	return c, authority, nil
}

func join(conn *tls.Conn, t Token) (*Credential, error) {
	binding, err := bindingOf(conn)
	if err != nil {
		return nil, err
	}
	key, csr, err := newRequest()
	if err != nil {
		return nil, err
	}
	issued, err := exchange(conn, joinRequest{Token: t.Number(), Proof: t.proof(binding, csr), CSR: csr})
	if err != nil {
		return nil, err
	}
	c, err := newCredential(issued.Chain, issued.Roots, key)
	if err != nil {
		return nil, err
	}
	return c, t.vouches(c)
}

// vouches tells whether the root that the token names has signed c. Another
// host of the domain can show that root, too, and hand out anything.
func (t Token) vouches(c *Credential) error {
	pinned := x509.NewCertPool()
	for _, root := range c.anchors {
		if t.pins(root) {
			pinned.AddCert(root)
		}
	}
	if _, err := verify([]*x509.Certificate{c.Certificate.Leaf}, pinned, c.ID.Domain, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
		return fmt.Errorf("what was handed out is not of the root that the token names: %w", err)
	}
	return nil
}

// ServeJoin answers Join, at from, over a connection made with JoinServerTLS.
// It returns the host that has joined.
func (a *Authority) ServeJoin(conn *tls.Conn, from string) (host string, err error) {
	var r joinRequest
	if err := receive(conn, &r); err != nil {
		return "", fmt.Errorf("joining: %w", err)
	}
	issued, host, err := a.admit(conn, r, from)
	if err != nil {
		send(conn, joinAnswer{Error: err.Error()})
		return "", fmt.Errorf("joining: %w", err)
	}
	return host, send(conn, joinAnswer{Issued: issued})
}

func (a *Authority) admit(conn *tls.Conn, r joinRequest, from string) (Issued, string, error) {
	binding, err := bindingOf(conn)
	if err != nil {
		return Issued{}, "", err
	}
	public, err := keyOf(r.CSR)
	if err != nil {
		return Issued{}, "", err
	}
	proof := func(t Token) []byte { return t.proof(binding, r.CSR) }
	host, err := a.redeem(r.Token, proof, r.Proof, from)
	if err != nil {
		return Issued{}, "", err
	}
	issued, err := a.Issue(host, public)
	return issued, host, err
}

// Renew exchanges a credential for the next one of the same host, over a
// connection on which the host has proven who it is.
func (c *Credential) Renew(rw io.ReadWriter) (*Credential, error) {
	next, err := c.renew(func(csr []byte) (Issued, error) { return exchange(rw, joinRequest{CSR: csr}) })
	if err != nil {
		return nil, fmt.Errorf("renewing the certificate of %v: %w", c.ID, err)
	}
	return next, nil
}

// RenewFrom is Renew where the authority is at hand.
func (c *Credential) RenewFrom(a *Authority) (*Credential, error) {
	next, err := c.renew(func(csr []byte) (Issued, error) {
		public, err := keyOf(csr)
		if err != nil {
			return Issued{}, err
		}
		return a.Issue(c.ID.Host, public)
	})
	if err != nil {
		return nil, fmt.Errorf("renewing the certificate of %v: %w", c.ID, err)
	}
	return next, nil
}

func (c *Credential) renew(ask func(csr []byte) (Issued, error)) (*Credential, error) {
	key, csr, err := newRequest()
	if err != nil {
		return nil, err
	}
	issued, err := ask(csr)
	if err != nil {
		return nil, err
	}
	next, err := newCredential(issued.Chain, issued.Roots, key)
	if err != nil {
		return nil, err
	}
	if next.ID != c.ID {
		return nil, fmt.Errorf("the new one is of %v", next.ID)
	}
	return next, nil
}

// ServeRenew answers Renew for a peer that has proven to be host.
func (a *Authority) ServeRenew(rw io.ReadWriter, host string) error {
	var r joinRequest
	if err := receive(rw, &r); err != nil {
		return fmt.Errorf("renewing the certificate of %q: %w", host, err)
	}
	public, err := keyOf(r.CSR)
	var issued Issued
	if err == nil {
		issued, err = a.Issue(host, public)
	}
	if err != nil {
		send(rw, joinAnswer{Error: err.Error()})
		return fmt.Errorf("renewing the certificate of %q: %w", host, err)
	}
	return send(rw, joinAnswer{Issued: issued})
}

// First makes the credential of the authority's own host.
func (a *Authority) First(host string) (*Credential, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	issued, err := a.Issue(host, key.Public())
	if err != nil {
		return nil, err
	}
	return newCredential(issued.Chain, issued.Roots, key)
}

// JoinServerTLS is for connections of hosts that join, at the authority's own
// host. The server shows a certificate made for the moment and the root that
// has signed it, which is the one that new tokens name.
func (a *Authority) JoinServerTLS(host string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{JoinProtocol},
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := a.First(host)
			if err != nil {
				return nil, err
			}
			s, err := a.load()
			if err != nil {
				return nil, err
			}
			root, _, err := s.signer(a.now())
			if err != nil {
				return nil, err
			}
			c.Certificate.Certificate = append(c.Certificate.Certificate, root.Raw)
			return &c.Certificate, nil
		},
		Time: a.now,
	}
}

// JoinClientTLS is for a host that joins: it believes the root that the token
// names, and nobody else.
func JoinClientTLS(t Token) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{JoinProtocol},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection knows whom to believe
		VerifyConnection: func(cs tls.ConnectionState) error {
			for i, cert := range cs.PeerCertificates {
				if i == 0 || !cert.IsCA || !t.pins(cert) {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(cert)
				domain := ""
				if len(cert.URIs) == 1 {
					domain = cert.URIs[0].Host
				}
				_, err := verify(cs.PeerCertificates[:1], roots, domain, x509.ExtKeyUsageServerAuth, time.Now())
				return err
			}
			return errors.New("it does not have the root that the token names")
		},
	}
}

// bindingOf is a value that only the two ends of conn know, and no other
// connection has (RFC 9266).
func bindingOf(conn *tls.Conn) ([]byte, error) {
	cs := conn.ConnectionState()
	return cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
}

func newRequest() (crypto.Signer, []byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, csr, err
}

// keyOf is the key that a request is for, once it has shown that it has it.
func keyOf(csr []byte) (crypto.PublicKey, error) {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("parsing a certificate request: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("checking a certificate request: %w", err)
	}
	return r.PublicKey, nil
}

// ErrAuthority says that the authority has refused a request.
var ErrAuthority = errors.New("the authority says")

// maxMessage bounds a message, in bytes.
const maxMessage = 64 << 10

// exchange sends a request and receives the answer to it.
func exchange(rw io.ReadWriter, r joinRequest) (Issued, error) {
	if err := send(rw, r); err != nil {
		return Issued{}, err
	}
	var a joinAnswer
	if err := receive(rw, &a); err != nil {
		return Issued{}, err
	}
	if a.Error != "" {
		return Issued{}, fmt.Errorf("%w: %q", ErrAuthority, a.Error)
	}
	return a.Issued, nil
}

// send and receive have messages of JSON, each with its length before it.
func send(w io.Writer, message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func receive(r io.Reader, message any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("reading a message: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("reading a message: %d bytes are too many", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("reading a message: %w", err)
	}
	if err := json.Unmarshal(b, message); err != nil {
		return fmt.Errorf("reading a message: %w", err)
	}
	return nil
}
