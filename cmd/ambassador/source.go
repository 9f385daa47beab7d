package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/sidecar"
	"github.com/linkrun/linkrun/tunnel"
)

const sourceUsage = `Usage: ambassador source --listen ENDPOINT --to ADDRESS:PORT[/udp][,...] [flags]

The source's end of a link without an agent, in the foreground: connects to the
source for the recipients' ends that connect to it. It needs no privilege and
no engine, and runs beside the source, as with docker run --network container:db.

ENDPOINT is one of
  unix:PATH    for this host: who may write to the file may connect. The
               connected socket is handed over, so connections outlive this end.
  tls:ADDRESS  for others: the two ends prove to each other who they are.

Flags:
      --to LIST       the source's ports. Recipients ask for them by number
      --from ADDRESS  what the source sees as the address of who connects
                      (default: 127.77.0.1 if the source is on 127.0.0.1, so that
                      servers which trust their own host do not trust links)
      --mode MODE     permissions of the socket's file (default 0600)
      --group GID     group of the socket's file, a number
      --allow LIST    hosts that may connect over TLS, with * for any characters;
                      without it, none
` + identityUsage + `
      --drain TIME    how long connections may take to end when it is told to
                      stop (default 8s)
      --log LEVEL     debug, info, warn or error (default info)

Example:
  $ docker run -d --network container:db -v link:/run/link --read-only --cap-drop ALL \
      linkrun/ambassador source --listen unix:/run/link/db.sock --to 127.0.0.1:5432
`

func source(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("source", pflag.ContinueOnError)
	listen := flags.String("listen", "", "")
	to := flags.StringSlice("to", nil, "")
	var from netip.Addr
	flags.TextVar(&from, "from", from, "")
	mode := flags.String("mode", "0600", "")
	group := flags.Int("group", 0, "")
	allow := flags.StringSlice("allow", nil, "")
	proof := proofFlags(flags)
	common := endFlags(flags)
	if err := parse(flags, args, stdout, sourceUsage); err != nil {
		return err
	}
	mistake := func(err error) error { return usageError{err, "ambassador source"} }
	at, err := endpointFlag(flags, "listen", *listen)
	if err != nil {
		return mistake(err)
	}
	if len(*to) == 0 {
		return mistake(errors.New("--to is missing"))
	}
	targets, err := sidecar.ParseTargets(strings.Join(*to, ","))
	if err != nil {
		return mistake(err)
	}
	for _, glob := range *allow {
		if _, err := path.Match(glob, ""); err != nil {
			return mistake(fmt.Errorf("parsing %q in --allow: %w", glob, err))
		}
	}
	permissions, err := strconv.ParseUint(*mode, 8, 9)
	if err != nil {
		return mistake(fmt.Errorf("parsing --mode %q: want permissions like 0660", *mode))
	}

	log := common.logger(stderr)
	raiseFileLimit(log)
	end := &sidecar.Source{
		Targets: targets,
		From:    from,
		Allowed: func(host string) bool { return matchesAny(*allow, host) },
		Drain:   *common.drain,
		Log:     log,
	}
	if at.Network == "unix" {
		ln, err := sidecar.Socket{Path: at.Address, Mode: fs.FileMode(permissions), Group: *group}.Listen()
		if err != nil {
			return noSocket(err)
		}
		log.Info("ready", "listen", at, "to", targets, "mode", *mode, "version", version())
		err = end.ServeSocket(ctx, ln)
		log.Info("stopped")
		return err
	}
	store, err := proof.open()
	if err != nil {
		return err
	}
	ln, err := tunnel.Listen(ctx, at.Address)
	if err != nil {
		return noPort(err)
	}
	defer following(store, log)()
	if len(*allow) == 0 {
		log.Warn("every host is refused: none is named with --allow")
	}
	log.Info("ready", "listen", at, "to", targets, "as", store.Current().ID, "allow", *allow, "version", version())
	err = end.ServeTLS(ctx, ln, store)
	log.Info("stopped")
	return err
}

// matchesAny has no slash on either side, so that path's globs are plain ones.
func matchesAny(globs []string, name string) bool {
	for _, glob := range globs {
		if ok, err := path.Match(glob, name); ok && err == nil {
			return true
		}
	}
	return false
}

func noSocket(err error) error {
	switch {
	case errors.Is(err, sidecar.ErrServed):
		return hinted{err, "stop it first, or choose another path"}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return hinted{err, "the folder has to be there, and belong to the user that this runs as"}
	}
	return err
}

// drainTime is less than what docker gives a container to stop, 10 s.
const drainTime = 8 * time.Second
