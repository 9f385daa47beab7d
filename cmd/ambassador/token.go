package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/identity"
)

const tokenUsage = `Usage: ambassador token HOST [flags]

Makes a token with which one host can join, once, and prints it. HOST is what
it is going to be called. The token is a secret; it also tells the host which
authority to believe.

Flags:
      --life D         how long it is good for (default 1h, at most 168h)
      --identity DIR   where the identity of this host is kept
                       (default /var/lib/ambassador/identity)

Example:
  $ sudo ambassador token hostb | ssh root@hostb ambassador join hosta -
`

// maxTokenLife keeps forgotten tokens from being found much later.
const maxTokenLife = 7 * 24 * time.Hour

func token(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("token", pflag.ContinueOnError)
	life := flags.Duration("life", identity.TokenLife, "")
	dir := flags.String("identity", identityDir(control.Dir()), "")
	words, err := parseWords(flags, args, stdout, tokenUsage, "HOST")
	if err != nil {
		return err
	}
	host := words[0]
	if *life <= 0 || *life > maxTokenLife {
		return usageError{fmt.Errorf("a token cannot be good for %v", *life), "ambassador token"}
	}
	authority, err := openAuthority(*dir)
	if err != nil {
		return err
	}
	own, err := identity.Load(identity.In(*dir))
	if err != nil {
		return noIdentity(err)
	}
	if host == own.ID.Host {
		return hinted{errors.New("it is this host, which belongs to the domain already"), "name the host that is to join"}
	}
	t, err := authority.NewToken(host, *life)
	if err != nil {
		return noIdentity(err)
	}
	if _, err := fmt.Fprintln(stdout, t.Encode()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stderr, "within %v, on %s: ambassador join %s -   (and enter the token)\n", *life, host, own.ID.Host)
	return err
}
