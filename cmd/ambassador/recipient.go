package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/sidecar"
)

const recipientUsage = `Usage: ambassador recipient --connect ENDPOINT --listen ADDRESS:PORT[=SOURCE-PORT][/udp][,...] [flags]

The recipient's end of a link without an agent, in the foreground: listens where
the recipient looks for the source's ports, and has the source's end connect.
It needs no privilege and no engine, and runs beside the recipient, as with
docker run --network container:web. While the source's end is away, connections
are refused.

ENDPOINT is what the source's end listens at: unix:PATH or tls:HOST:PORT.

Flags:
      --listen LIST   where to listen, and for which port of the source, if that
                      is another
      --expect HOST   the only host to connect to over TLS (default: any of the
                      own trust domain)
` + identityUsage + `
      --hold TIME     let connections wait this long for the source's end,
                      instead of refusing them (default 0s)
      --drain TIME    how long connections may take to end when it is told to
                      stop (default 8s)
      --log LEVEL     debug, info, warn or error (default info)

Example:
  $ docker run -d --network container:web -v link:/run/link --read-only --cap-drop ALL \
      linkrun/ambassador recipient --connect unix:/run/link/db.sock --listen 127.77.0.2:5432
`

func recipient(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("recipient", pflag.ContinueOnError)
	connect := flags.String("connect", "", "")
	listen := flags.StringSlice("listen", nil, "")
	expect := flags.String("expect", "", "")
	hold := flags.Duration("hold", 0, "")
	proof := proofFlags(flags)
	common := endFlags(flags)
	if err := parse(flags, args, stdout, recipientUsage); err != nil {
		return err
	}
	mistake := func(err error) error { return usageError{err, "ambassador recipient"} }
	to, err := endpointFlag(flags, "connect", *connect)
	if err != nil {
		return mistake(err)
	}
	if len(*listen) == 0 {
		return mistake(errors.New("--listen is missing"))
	}
	mappings, err := sidecar.ParseMappings(strings.Join(*listen, ","))
	if err != nil {
		return mistake(err)
	}

	log := common.logger(stderr)
	raiseFileLimit(log)
	end := &sidecar.Recipient{
		Peer:     to.String(),
		Mappings: mappings,
		Hold:     *hold,
		Drain:    *common.drain,
		Log:      log,
	}
	end.Own, _ = os.Hostname()
	if to.Network == "unix" {
		mover, err := startRelay(log)
		if err != nil {
			return err
		}
		defer mover.Close()
		end.Engine, end.Dial = mover, sidecar.DialSocket(to.Address, log)
	} else {
		store, err := proof.open()
		if err != nil {
			return err
		}
		defer following(store, log)()
		end.Dial, end.Proven = sidecar.DialTLS(to.Address, *expect, store, log), store.Changed
	}
	log.Info("connecting", "connect", to, "listen", mappings, "version", version())
	err = end.Run(ctx, func() { log.Info("ready") })
	log.Info("stopped")
	return noPort(err)
}

// startRelay starts an engine beside which the program does other things.
func startRelay(log *slog.Logger) (*relay.Engine, error) {
	// Its workers may occupy a processor of Go's each, for as long as they are
	// busy; nothing would be accepted meanwhile.
	workers := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(workers + 1)
	mover := &relay.Engine{Workers: workers, Log: log}
	if err := mover.Start(); err != nil {
		return nil, fmt.Errorf("starting the relay: %w", err)
	}
	return mover, nil
}
