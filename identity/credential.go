package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Credential is what a host proves its identity with, and whom it trusts. It
// does not change.
type Credential struct {
	ID          ID
	Certificate tls.Certificate // the chain, leaf first, and the key
	NotBefore   time.Time
	NotAfter    time.Time

	anchors []*x509.Certificate
	roots   *x509.CertPool
}

// LogValue keeps the key out of logs.
func (c *Credential) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("id", c.ID.String()), slog.Time("until", c.NotAfter))
}

// Format keeps it out of everything that is printed, whatever the verb.
func (c *Credential) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "credential of %v until %v", c.ID, c.NotAfter.UTC().Format(time.RFC3339))
}

// RenewAt is when the credential is to be exchanged for the next one: after
// two thirds of its life, which leaves a third for things to go wrong.
func (c *Credential) RenewAt() time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// Check tells why nobody takes the credential now: its time has not come, or
// is over.
func (c *Credential) Check(now time.Time) error {
	var when string
	switch {
	case now.Before(c.NotBefore):
		when = "is valid from " + c.NotBefore.UTC().Format(time.RFC3339) + " on"
	case now.After(c.NotAfter):
		when = "was valid until " + c.NotAfter.UTC().Format(time.RFC3339)
	default:
		return nil
	}
	return fmt.Errorf("the certificate of %v %s, and the clock here says %s", c.ID, when, now.UTC().Format(time.RFC3339))
}

// Trusts is how many roots the credential trusts: two while the authority
// changes from one to the next.
func (c *Credential) Trusts() int { return len(c.anchors) }

// newCredential puts a credential together and checks that it is one.
func newCredential(chain, anchors [][]byte, key crypto.Signer) (*Credential, error) {
	c := &Credential{roots: x509.NewCertPool()}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	if c.ID, err = checkLeaf(leaf); err != nil {
		return nil, err
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	c.Certificate = tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	c.NotBefore, c.NotAfter = leaf.NotBefore, leaf.NotAfter
	for _, der := range anchors {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("a root: %w", err)
		}
		if !root.IsCA {
			return nil, fmt.Errorf("root %q is not an authority's", root.Subject)
		}
		c.anchors = append(c.anchors, root)
		c.roots.AddCert(root)
	}
	if len(c.anchors) == 0 {
		return nil, errors.New("there is no root to trust")
	}
	return c, nil
}

// newKey makes a key for a certificate.
func newKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// The types of PEM blocks.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// encode is the credential as a file: the key, and the chain.
func (c *Credential) encode() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.Certificate.PrivateKey)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: pemKey, Bytes: key})
	for _, der := range c.Certificate.Certificate {
		pem.Encode(&b, &pem.Block{Type: pemCertificate, Bytes: der})
	}
	return b.Bytes(), nil
}

func (c *Credential) encodeRoots() []byte {
	var b bytes.Buffer
	for _, root := range c.anchors {
		pem.Encode(&b, &pem.Block{Type: pemCertificate, Bytes: root.Raw})
	}
	return b.Bytes()
}

// decodeCertificates reads the certificates among the PEM blocks of b.
func decodeCertificates(b []byte) (ders [][]byte) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return ders
		}
		if block.Type == pemCertificate {
			ders = append(ders, block.Bytes)
		}
	}
}

// decodeKey reads the first key among the PEM blocks of b, in any of the forms
// that openssl writes.
func decodeKey(b []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, errors.New("there is no key in it")
		}
		var key any
		var err error
		switch block.Type {
		case pemKey:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		return signer, nil
	}
}
