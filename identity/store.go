package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/linkrun/linkrun/internal/fingerprint"
)

// Files are where a credential is kept, in PEM.
type Files struct {
	Cert  string // the chain, leaf first
	Key   string // may be the same file
	Roots string // whom to trust
}

// In is the files of a directory that this package fills itself.
func In(dir string) Files {
	own := filepath.Join(dir, "identity.pem")
	return Files{Cert: own, Key: own, Roots: filepath.Join(dir, "roots.pem")}
}

// Store holds the credential of now. It is safe for concurrent use.
type Store struct {
	files Files
	clock func() time.Time // nil is time.Now

	current atomic.Pointer[Credential]

	mu      sync.Mutex
	changed chan struct{}
	seen    [3]fingerprint.Print
}

// Open loads the credential that is in files.
func Open(files Files) (*Store, error) {
	s := &Store{files: files, changed: make(chan struct{})}
	if err := s.reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Current is the credential of now.
func (s *Store) Current() *Credential { return s.current.Load() }

// Changed is closed when the credential is another than at the time of the
// call.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Store) now() time.Time {
	if s.clock == nil {
		return time.Now()
	}
	return s.clock()
}

// Load reads a credential and checks that it is one.
func Load(files Files) (*Credential, error) {
	key, err := readKey(files.Key)
	if err != nil {
		return nil, err
	}
	chain, err := os.ReadFile(files.Cert)
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	roots, err := os.ReadFile(files.Roots)
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	signer, err := decodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("loading the key %q: %w", files.Key, err)
	}
	c, err := newCredential(decodeCertificates(chain), decodeCertificates(roots), signer)
	if err != nil {
		return nil, fmt.Errorf("loading the identity %q: %w", files.Cert, err)
	}
	return c, nil
}

// readKey reads the file of a key, unless others can read it too.
func readKey(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("loading the key %q: its mode is %#o, so others can read it; it has to be 0600", name, mode)
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return nil, fmt.Errorf("loading the key %q: %w", name, err)
	}
	return b, nil
}

func (s *Store) reload() error {
	seen := s.versions()
	c, err := Load(s.files)
	if err != nil {
		return err
	}
	s.set(c, seen)
	return nil
}

func (s *Store) set(c *Credential, seen [3]fingerprint.Print) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = seen
	s.current.Store(c)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Store) versions() (v [3]fingerprint.Print) {
	for i, name := range []string{s.files.Cert, s.files.Key, s.files.Roots} {
		v[i] = fingerprint.Of(name)
	}
	return v
}

// Follow loads the credential again whenever its files change, until ctx ends.
// It looks at them this often. Files that make no credential, as half of a
// change does, leave the one there is in place.
func (s *Store) Follow(ctx context.Context, every time.Duration, log *slog.Logger) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var last, failed [3]fingerprint.Print
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := s.versions()
		if now != last {
			last = now // somebody may still be writing
			continue
		}
		s.mu.Lock()
		same := now == s.seen || now == failed
		s.mu.Unlock()
		if same {
			continue
		}
		if err := s.reload(); err != nil {
			failed = now
			log.Error("the identity has changed and is not used", "err", err, "still", s.Current())
			continue
		}
		log.Info("the identity has changed", "now", s.Current())
	}
}

// Replace writes c to the files and makes it the credential of now.
func (s *Store) Replace(c *Credential) error {
	if err := save(s.files, c); err != nil {
		return err
	}
	s.set(c, s.versions())
	return nil
}

// Save writes c to the files of a directory, see In, which is made if need be.
func Save(dir string, c *Credential) error {
	if err := makeDir(dir); err != nil {
		return fmt.Errorf("saving the identity in %q: %w", dir, err)
	}
	return save(In(dir), c)
}

// save writes c to files that hold chain and key together. The roots come
// first: with new roots the old chain is still good.
func save(files Files, c *Credential) error {
	own, err := c.encode()
	if err != nil {
		return fmt.Errorf("saving the identity %q: %w", files.Cert, err)
	}
	if files.Cert != files.Key {
		return fmt.Errorf("saving the identity %q: certificate and key are not in one file", files.Cert)
	}
	if err := writeFile(files.Roots, c.encodeRoots()); err != nil {
		return err
	}
	return writeFile(files.Cert, own)
}

// writeFile puts b in the place of the file at once, readable for its owner
// alone, and on the disk.
func writeFile(name string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %q: %w", name, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("writing %q: %w", name, err)
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// makeDir makes a directory for secrets.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

func exists(name string) (bool, error) {
	_, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
