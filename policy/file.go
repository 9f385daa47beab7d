package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/linkrun/linkrun/internal/fingerprint"
)

// File is a file of rules that is read again when it changes. One that cannot
// be read, or has a mistake in it, denies everything: somebody may just have
// tried to take a permission back.
type File struct {
	name    string
	current atomic.Pointer[contents]
}

type contents struct {
	rules   Rules
	err     error // why everything is denied
	version fingerprint.Print
}

// maxFile bounds the file, in bytes.
const maxFile = 1 << 20

// OpenFile reads the rules in the file called name.
func OpenFile(name string) (*File, error) {
	f := &File{name: name}
	c := read(name)
	f.current.Store(c)
	return f, c.err
}

// Rules are those of the file, and the error why there are none.
func (f *File) Rules() (Rules, error) {
	c := f.current.Load()
	return c.rules, c.err
}

// Follow reads the file again whenever it changes, and calls changed then,
// until ctx ends. It looks at it this often.
func (f *File) Follow(ctx context.Context, every time.Duration, changed func(), log *slog.Logger) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	last := f.current.Load().version
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := fingerprint.Of(f.name)
		if now == f.current.Load().version || now != last {
			last = now // unchanged, or somebody may still be writing
			continue
		}
		c := read(f.name)
		f.current.Store(c)
		if c.err != nil {
			log.Error("the policy is broken, and everything denied", "err", c.err)
		} else {
			log.Info("the policy has changed", "file", f.name, "rules", len(c.rules))
		}
		changed()
	}
}

func read(name string) *contents {
	c := &contents{version: fingerprint.Of(name)}
	file, err := os.Open(name)
	if err != nil {
		c.err = fmt.Errorf("reading the policy: %w", err)
		return c
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = errors.New("it is larger than a MiB")
	}
	if err != nil {
		c.err = fmt.Errorf("reading the policy %q: %w", name, err)
		return c
	}
	c.rules, c.err = Parse(filepath.Base(name), bytes.NewReader(b))
	return c
}
