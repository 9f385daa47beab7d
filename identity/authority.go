package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// LeafLife is how long a certificate is good for.
	LeafLife = 24 * time.Hour
	// rootLife is how long a root is.
	rootLife = 10 * 365 * 24 * time.Hour
	// backdate is how far the clocks of two hosts may be apart.
	backdate = 5 * time.Minute
)

// Authority issues certificates of one trust domain. It is a directory with
// one file for the roots and one for tokens, which several processes may use
// at a time.
type Authority struct {
	Domain string

	dir      string
	leafLife time.Duration
	clock    func() time.Time // nil is time.Now
}

// root is a certificate that signs others, or will, or did.
type root struct {
	Cert  []byte    `json:"cert"`          // DER
	Key   []byte    `json:"key,omitempty"` // PKCS #8
	Signs time.Time `json:"signs"`         // from then on, until the next one does
	Gone  time.Time `json:"gone"`          // from then on nobody needs to trust it; zero for the newest
}

// state is what the file of an authority has.
type state struct {
	Domain string `json:"domain"`
	Roots  []root `json:"roots"` // oldest first
}

func (a *Authority) now() time.Time {
	if a.clock == nil {
		return time.Now()
	}
	return a.clock()
}

func (a *Authority) file() string { return filepath.Join(a.dir, "authority.json") }

// InitAuthority makes an authority in dir, with a root of its own. An
// authority that is there already is left alone, and an error.
func InitAuthority(dir, domain string) (*Authority, error) {
	a := &Authority{Domain: domain, dir: dir, leafLife: LeafLife}
	if err := (ID{domain, "x"}).Validate(); err != nil {
		return nil, fmt.Errorf("making an authority: %w", err)
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("making an authority: %w", err)
	}
	err := a.locked(func() error {
		there, err := exists(a.file())
		if err != nil {
			return err
		}
		if there {
			return fmt.Errorf("%q is one already: %w", dir, fs.ErrExist)
		}
		first, err := newRoot(domain, a.now())
		if err != nil {
			return err
		}
		return a.save(state{Domain: domain, Roots: []root{first}})
	})
	if err != nil {
		return nil, fmt.Errorf("making an authority: %w", err)
	}
	return a, nil
}

// OpenAuthority opens the authority in dir. The error is fs.ErrNotExist if
// there is none.
func OpenAuthority(dir string) (*Authority, error) {
	a := &Authority{dir: dir, leafLife: LeafLife}
	s, err := a.load()
	if err != nil {
		return nil, err
	}
	a.Domain = s.Domain
	return a, nil
}

// Issue signs a certificate for a key of a host.
func (a *Authority) Issue(host string, public crypto.PublicKey) (Issued, error) {
	id := ID{a.Domain, host}
	if err := id.Validate(); err != nil {
		return Issued{}, fmt.Errorf("issuing a certificate: %w", err)
	}
	s, err := a.load()
	if err != nil {
		return Issued{}, err
	}
	now := a.now()
	signer, key, err := s.signer(now)
	if err != nil {
		return Issued{}, fmt.Errorf("issuing a certificate for %q: %w", host, err)
	}
	serial, err := newSerial()
	if err != nil {
		return Issued{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: host},
		URIs:         []*url.URL{id.url()},
		NotBefore:    now.Add(-min(backdate, a.leafLife/4)),
		NotAfter:     now.Add(a.leafLife - min(backdate, a.leafLife/4)),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},

		BasicConstraintsValid: true,
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, signer, public, key)
	if err != nil {
		return Issued{}, fmt.Errorf("issuing a certificate for %q: %w", host, err)
	}
	return Issued{Chain: [][]byte{leaf}, Roots: s.trusted(now)}, nil
}

// Roll begins the change to a new root. Everyone learns to trust it when
// renewing, so it signs from one life of a certificate on; the old one is
// trusted for one more. It returns both moments.
func (a *Authority) Roll() (signs, gone time.Time, err error) {
	err = a.locked(func() error {
		s, err := a.load()
		if err != nil {
			return err
		}
		now := a.now()
		last := &s.Roots[len(s.Roots)-1]
		if now.Before(last.Signs) {
			return fmt.Errorf("the change to the newest root is under way until %v", last.Signs.UTC().Format(time.RFC3339))
		}
		next, err := newRoot(a.Domain, now)
		if err != nil {
			return err
		}
		signs, gone = now.Add(a.leafLife), now.Add(2*a.leafLife)
		next.Signs, last.Gone = signs, gone
		kept := []root{}
		for _, r := range s.Roots {
			if r.Gone.IsZero() || now.Before(r.Gone) {
				kept = append(kept, r)
			}
		}
		s.Roots = append(kept, next)
		return a.save(s)
	})
	if err != nil {
		err = fmt.Errorf("making a new root: %w", err)
	}
	return signs, gone, err
}

// signer is the root that signs now: the newest whose time has come.
func (s state) signer(now time.Time) (*x509.Certificate, crypto.Signer, error) {
	for i := len(s.Roots) - 1; i >= 0; i-- {
		if r := s.Roots[i]; !now.Before(r.Signs) {
			cert, err := x509.ParseCertificate(r.Cert)
			if err != nil {
				return nil, nil, err
			}
			key, err := x509.ParsePKCS8PrivateKey(r.Key)
			if err != nil {
				return nil, nil, err
			}
			signer, ok := key.(crypto.Signer)
			if !ok {
				return nil, nil, fmt.Errorf("a key of type %T cannot sign", key)
			}
			return cert, signer, nil
		}
	}
	return nil, nil, errors.New("no root signs yet; is the clock right?")
}

// trusted are the roots that everyone is to trust now.
func (s state) trusted(now time.Time) (ders [][]byte) {
	for _, r := range s.Roots {
		if r.Gone.IsZero() || now.Before(r.Gone) {
			ders = append(ders, r.Cert)
		}
	}
	return ders
}

func newRoot(domain string, now time.Time) (root, error) {
	key, err := newKey()
	if err != nil {
		return root{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return root{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Two roots of a domain are told apart by their names, too.
		Subject:   pkix.Name{CommonName: "ambassador " + domain + " " + now.UTC().Format("2006-01-02"), SerialNumber: serial.Text(16)},
		URIs:      []*url.URL{{Scheme: "spiffe", Host: domain}},
		NotBefore: now.Add(-backdate),
		NotAfter:  now.Add(rootLife),
		KeyUsage:  x509.KeyUsageCertSign | x509.KeyUsageCRLSign,

		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return root{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return root{}, err
	}
	return root{Cert: cert, Key: der, Signs: now}, nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func (a *Authority) load() (state, error) {
	b, err := readKey(a.file())
	if err != nil {
		return state{}, fmt.Errorf("opening the authority in %q: %w", a.dir, err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil || len(s.Roots) == 0 {
		return state{}, fmt.Errorf("opening the authority in %q: its file is damaged: %w", a.dir, err)
	}
	return s, nil
}

func (a *Authority) save(s state) error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(a.file(), append(b, '\n'))
}

// locked keeps other processes out while fn changes the authority's files.
func (a *Authority) locked(fn func() error) error {
	f, err := os.OpenFile(filepath.Join(a.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // unlocks
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return fn()
		}
		if err != unix.EINTR {
			return fmt.Errorf("locking %q: %w", f.Name(), err)
		}
	}
}
