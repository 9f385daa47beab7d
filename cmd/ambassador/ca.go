package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/identity"
)

const caUsage = `Usage: ambassador ca COMMAND [flags]

Looks after the authority that says which hosts belong together. One host has
it; the others join there.

Commands:
  init   make an authority, and let this host be its first one
  roll   begin the change to a new root key; nothing is cut off, as every host
         learns of it when its certificate is renewed

Flags:
      --domain NAME    what the trust domain is called (default ambassador)
      --host NAME      what this host is called by others, as in --link db@NAME
                       (default: its host name)
      --identity DIR   where the identity of this host is kept
                       (default /var/lib/ambassador/identity)

Keys are readable for root alone, and never leave the host. A certificate is
good for a day and renewed in time by the ambassadors themselves.

Example:
  $ sudo ambassador ca init
  $ sudo ambassador token hostb
`

func ca(_ context.Context, args []string, stdout, _ io.Writer) error {
	flags := pflag.NewFlagSet("ca", pflag.ContinueOnError)
	domain := flags.String("domain", "ambassador", "")
	host := flags.String("host", "", "")
	dir := flags.String("identity", identityDir(control.Dir()), "")
	words, err := parseWords(flags, args, stdout, caUsage, "COMMAND")
	if err != nil {
		return err
	}
	switch words[0] {
	case "init":
		return caInit(*dir, *domain, *host, stdout)
	case "roll":
		return caRoll(*dir, stdout)
	}
	return usageError{fmt.Errorf("unknown command %q", words[0]), "ambassador ca"}
}

// identityDir is where the identity of the host is kept whose ambassador has
// its socket in dir, unless something else is said.
func identityDir(dir string) string { return filepath.Join(control.StateDir(dir), "identity") }

func caInit(dir, domain, host string, stdout io.Writer) error {
	if host == "" {
		name, err := os.Hostname()
		if err != nil {
			return hinted{fmt.Errorf("finding the name of this host: %w", err), "say it with --host"}
		}
		host, _, _ = strings.Cut(name, ".")
	}
	id := identity.ID{Domain: domain, Host: host}
	if err := id.Validate(); err != nil {
		return hinted{err, "choose other names with --domain and --host"}
	}
	if c, err := identity.Load(identity.In(dir)); err == nil {
		return hinted{fmt.Errorf("this host is %v already", c.ID),
			fmt.Sprintf("keep it, or remove %q first: the hosts that it talks to will not know it any more", dir)}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return noIdentity(err)
	}
	authority, err := identity.InitAuthority(identity.AuthorityIn(dir), domain)
	if errors.Is(err, fs.ErrExist) {
		// It was made, and then something went wrong.
		authority, err = identity.OpenAuthority(identity.AuthorityIn(dir))
	}
	if err != nil {
		return noIdentity(err)
	}
	c, err := authority.First(host)
	if err != nil {
		return err
	}
	if err := identity.Save(dir, c); err != nil {
		return noIdentity(err)
	}
	_, err = fmt.Fprintf(stdout, "this host is %v, and has the authority\n", c.ID)
	return err
}

func caRoll(dir string, stdout io.Writer) error {
	authority, err := openAuthority(dir)
	if err != nil {
		return err
	}
	signs, gone, err := authority.Roll()
	if err != nil {
		return noIdentity(err)
	}
	_, err = fmt.Fprintf(stdout, "the new root signs from %s on, and the old one is trusted until %s\n",
		signs.UTC().Format(time.RFC3339), gone.UTC().Format(time.RFC3339))
	return err
}

// openAuthority opens the authority of this host.
func openAuthority(dir string) (*identity.Authority, error) {
	authority, err := identity.OpenAuthority(identity.AuthorityIn(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hinted{fmt.Errorf("this host has no authority in %q", dir),
			"run this on the host that has it, or make one with `ambassador ca init`"}
	}
	if err != nil {
		return nil, noIdentity(err)
	}
	return authority, nil
}

// noIdentity adds what to do about files that cannot be used.
func noIdentity(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return hinted{err, "run it as root, or keep the identity elsewhere with --identity"}
	}
	return err
}
