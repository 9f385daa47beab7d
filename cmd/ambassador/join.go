package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/peering"
)

const joinUsage = `Usage: ambassador join ADDR TOKEN [flags]

Has this host join those of the authority at ADDR, and keeps what it gets. ADDR
is where the ambassador of the authority's host listens, by default at port
7443. TOKEN is from ` + "`ambassador token`" + ` there; with - it is read from the
standard input, as everyone on this host can see the arguments of a program.

An ambassador that serves notices; it need not be restarted.

Flags:
      --identity DIR   where the identity of this host is kept
                       (default /var/lib/ambassador/identity)

Example:
  $ sudo ambassador join hosta - <token
`

func join(ctx context.Context, args []string, stdout, _ io.Writer) error {
	flags := pflag.NewFlagSet("join", pflag.ContinueOnError)
	dir := flags.String("identity", identityDir(control.Dir()), "")
	words, err := parseWords(flags, args, stdout, joinUsage, "ADDR", "TOKEN")
	if err != nil {
		return err
	}
	addr := peering.Address(words[0])
	t, err := readToken(words[1])
	if err != nil {
		return err
	}
	before, err := ready(*dir)
	if err != nil {
		return err
	}
	c, at, err := peering.Join(ctx, addr, t)
	if err != nil {
		return notJoined(err, addr)
	}
	// First who renews: an ambassador that serves waits for the credential.
	if err := identity.SaveJoined(*dir, identity.Joined{Host: at.Host, Address: addr}); err != nil {
		return noIdentity(err)
	}
	if err := identity.Save(*dir, c); err != nil {
		return noIdentity(err)
	}
	was := ""
	if before != nil && before.ID != c.ID {
		was = fmt.Sprintf(" (and was %v)", before.ID)
	}
	_, err = fmt.Fprintf(stdout, "this host is %v%s; %s has the authority\n", c.ID, was, at.Host)
	return err
}

// readToken reads a token that was given as an argument, or as a line of the
// standard input.
func readToken(word string) (identity.Token, error) {
	if word == "-" {
		line, err := bufio.NewReader(io.LimitReader(os.Stdin, 4096)).ReadString('\n')
		if err != nil && err != io.EOF {
			return identity.Token{}, fmt.Errorf("reading the token: %w", err)
		}
		word = line
	}
	t, err := identity.ParseToken(word)
	if err != nil {
		return identity.Token{}, hinted{err, "copy all of what `ambassador token` prints"}
	}
	return t, nil
}

// ready finds out, before the token is spent, whether dir can take what comes
// of it. It returns what is there already, if that is anything.
func ready(dir string) (*identity.Credential, error) {
	if _, err := identity.OpenAuthority(identity.AuthorityIn(dir)); err == nil {
		return nil, hinted{fmt.Errorf("this host has an authority of its own in %q", dir),
			"let the other host join here, or remove that directory first"}
	}
	probe, err := createIn(dir)
	if err != nil {
		return nil, noIdentity(fmt.Errorf("preparing %q: %w", dir, err))
	}
	probe.Close()
	os.Remove(probe.Name())
	c, err := identity.Load(identity.In(dir))
	if err != nil {
		return nil, nil // nothing, or nothing that is worth keeping
	}
	return c, nil
}

func createIn(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.CreateTemp(dir, ".new-*")
}

// notJoined adds what to do.
func notJoined(err error, addr string) error {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(err, identity.ErrAuthority):
		return hinted{err, "get a new token with `ambassador token` on the host that has the authority"}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return hinted{err, "compare the clocks of the two hosts"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return hinted{err, fmt.Sprintf("let `ambassador serve --listen` run on the host that has the authority; nobody listens at %s", addr)}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return hinted{err, fmt.Sprintf("see whether a firewall is between this host and %s", addr)}
	}
	return hinted{err, "see that ADDR is of the host that has the authority, and that the token is from there"}
}
