package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/classic"
)

const envUsage = `Usage: ambassador env [flags]

The classic ambassador container, in the foreground: for each variable of a link

  ALIAS_PORT_6379_TCP=tcp://172.17.0.2:6379      (or UDP)

it listens on the port in the name, and forwards what comes to the address in
the value. It is what the image does without a command. The variables are read
once: unlike a link of linkrun's, it does not follow a source that gets another
address.

Flags:
      --listen ADDRESS  where to listen, IPv4 (default 0.0.0.0)
      --drain TIME      how long connections may take to end when it is told to
                        stop (default 8s)
      --log LEVEL       debug, info, warn or error (default info)

Example:
  $ docker run -d --link redis:redis --name redis_ambassador -p 6379:6379 linkrun/ambassador
`

func env(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("env", pflag.ContinueOnError)
	listen := netip.IPv4Unspecified()
	flags.TextVar(&listen, "listen", listen, "")
	common := endFlags(flags)
	if err := parse(flags, args, stdout, envUsage); err != nil {
		return err
	}
	if !listen.Is4() {
		return usageError{fmt.Errorf("parsing --listen: %v is no IPv4 address", listen), "ambassador env"}
	}
	log := common.logger(stderr)
	forwards, ignored, err := classic.Parse(os.Environ())
	for _, i := range ignored {
		log.Warn("ignored a variable", "variable", i.Variable, "why", i.Why)
	}
	var conflict *classic.ConflictError
	switch {
	case errors.As(err, &conflict):
		return hinted{err, "one container for each of the two links keeps them apart"}
	case err != nil:
		return err
	case len(forwards) == 0:
		return hinted{classic.ErrNone, "run it with --link, on an engine that sets them, or with -e"}
	}
	raiseFileLimit(log)
	mover, err := startRelay(log)
	if err != nil {
		return err
	}
	defer mover.Close()
	server := classic.Server{Listen: listen, Engine: mover, Drain: *common.drain, Log: log}
	err = server.Run(ctx, forwards, func() { log.Info("ready", "version", version()) })
	log.Info("stopped")
	return noPort(err)
}
