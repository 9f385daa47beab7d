package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/sidecar"
)

// What the commands source, recipient and env have in common.

// endOptions are flags that all of them have.
type endOptions struct {
	drain *time.Duration
	level slog.Level
}

func endFlags(flags *pflag.FlagSet) *endOptions {
	o := &endOptions{drain: flags.Duration("drain", drainTime, "")}
	flags.TextVar(&o.level, "log", o.level, "")
	return o
}

func (o *endOptions) logger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: o.level}))
}

func raiseFileLimit(log *slog.Logger) {
	if _, err := relay.RaiseFileLimit(); err != nil {
		log.Warn("the number of connections stays limited", "err", err)
	}
}

// endpointFlag reads the flag that says where the two ends meet, and refuses
// the flags that are for the other kind of place.
func endpointFlag(flags *pflag.FlagSet, name, value string) (sidecar.Endpoint, error) {
	if value == "" {
		return sidecar.Endpoint{}, fmt.Errorf("--%s is missing", name)
	}
	at, err := sidecar.ParseEndpoint(value)
	if err != nil {
		return at, err
	}
	only := map[string]string{
		"mode": "unix", "group": "unix",
		"allow": "tls", "expect": "tls", "identity": "tls", "cert": "tls", "key": "tls", "roots": "tls",
	}
	flags.Visit(func(f *pflag.Flag) {
		if network, is := only[f.Name]; is && network != at.Network && err == nil {
			err = fmt.Errorf("--%s goes with %s:, not with %v", f.Name, network, at)
		}
	})
	if err == nil && at.Network == "tls" {
		err = proofMistake(flags)
	}
	return at, err
}

// proofMistake tells what is wrong with the flags of proofFlags.
func proofMistake(flags *pflag.FlagSet) error {
	files := 0
	for _, name := range []string{"cert", "key", "roots"} {
		if flags.Changed(name) {
			files++
		}
	}
	switch {
	case files > 0 && flags.Changed("identity"):
		return errors.New("--identity and --cert, --key, --roots exclude each other")
	case files%3 != 0:
		return errors.New("--cert, --key and --roots go together")
	}
	return nil
}

const identityUsage = `      --identity DIR  with TLS, who this end is (default
                      /var/lib/ambassador/identity); or
      --cert, --key, --roots FILE
                      the same in files of your own, which may be replaced`

// proof is the flags that say what this end proves its identity with.
type proof struct {
	dir   *string
	files identity.Files
}

func proofFlags(flags *pflag.FlagSet) *proof {
	p := &proof{dir: flags.String("identity", identityDir(control.Dir()), "")}
	flags.StringVar(&p.files.Cert, "cert", "", "")
	flags.StringVar(&p.files.Key, "key", "", "")
	flags.StringVar(&p.files.Roots, "roots", "", "")
	return p
}

func (p *proof) open() (*identity.Store, error) {
	files := p.files
	if files == (identity.Files{}) {
		files = identity.In(*p.dir)
	}
	store, err := identity.Open(files)
	if err != nil {
		return nil, hinted{err, "name a folder or files that this user may read with --identity, or --cert, --key and --roots"}
	}
	return store, nil
}

// following has store notice when its files are replaced, until stop is called.
func following(store *identity.Store, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { store.Follow(ctx, time.Second, log) })
	return func() {
		cancel()
		running.Wait()
	}
}

func noPort(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return hinted{err, "ports below 1024 take root, or docker run --sysctl net.ipv4.ip_unprivileged_port_start=0 for the container whose network it is"}
	case errors.Is(err, syscall.EADDRINUSE):
		return hinted{err, "something else listens there: stop it, or choose another address or port"}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return hinted{err, "that address is not one of this network namespace"}
	}
	return err
}
