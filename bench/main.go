// Command bench measures links side by side with what else carries
// connections between two containers, and writes what it found. It measures
// nothing that is not on this machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

const usage = `Usage: go run ./bench [flags]

Measures the ambassador's links side by side with Docker's own, docker-proxy,
HAProxy and socat, and its tunnels with stunnel and raw TLS: round after round, in turn, on a Docker Engine of its own in
a network namespace of its own. Needs root; a peer whose program is missing is
left out, and named. make bench installs what is missing first.

Flags:
      --rounds N         how often everything is measured (default 7)
      --duration D       how long each measurement takes (default 1s)
      --only REGEXP      only workloads whose name matches
      --peers REGEXP     only peers whose name matches
      --ambassador FILE  a program to measure (default: built from the checkout)
      --out DIR          where to write RESULTS.md and results.svg; "" does not
                         (default bench, if nothing is left out)
      --quick            everything once, briefly: the figures mean nothing

Example:
  $ sudo go run ./bench --only 'bulk|request' --peers 'HAProxy|ambassador'
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := benchmark(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func benchmark(ctx context.Context, args []string, stdout io.Writer, stderr *os.File) error {
	c, out, err := parseFlags(args, stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	progress := newProgress(stderr)
	tb := new(standIn)
	return tb.try(func() error {
		fmt.Fprintln(stderr, "starting an engine, five peers and their sources")
		s, err := newStage(ctx, tb, c.ambassador)
		if err != nil {
			return err
		}
		b, err := newBench(ctx, c, s)
		if err != nil {
			return err
		}
		started := time.Now()
		if err := b.rehearse(ctx, progress); err != nil {
			return err
		}
		if err := b.measure(ctx, progress); err != nil {
			return err
		}
		tunnels, err := measureTunnels(ctx, b, progress)
		if err != nil {
			return err
		}
		report := newReport(b, environment(ctx, b, args, started))
		report.tunnels = tunnels
		fmt.Fprint(stdout, report.tables())
		if out == "" {
			return nil
		}
		return report.write(out)
	})
}

func parseFlags(args []string, stdout io.Writer) (c config, out string, err error) {
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	flags.Usage = func() { io.WriteString(stdout, usage) }
	flags.SetOutput(io.Discard)
	flags.IntVar(&c.rounds, "rounds", 7, "")
	flags.DurationVar(&c.time, "duration", time.Second, "")
	only := flags.String("only", "", "")
	peers := flags.String("peers", "", "")
	flags.StringVar(&c.ambassador, "ambassador", "", "")
	flags.StringVar(&out, "out", "bench", "")
	flags.BoolVar(&c.brief, "quick", false, "")
	if err := flags.Parse(args); err != nil {
		return c, out, err
	}
	if flags.NArg() > 0 {
		return c, out, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if c.brief {
		c.rounds, c.time = 1, 50*time.Millisecond
	}
	if c.rounds < 1 || c.time <= 0 {
		return c, out, errors.New("--rounds and --duration must be positive")
	}
	if c.only, err = regexp.Compile(*only); err != nil {
		return c, out, fmt.Errorf("parsing --only: %w", err)
	}
	if c.peers, err = regexp.Compile(*peers); err != nil {
		return c, out, fmt.Errorf("parsing --peers: %w", err)
	}
	// Half of the results would overwrite all of them.
	if part := *only + *peers; !flags.Changed("out") && (part != "" || c.brief) {
		out = ""
	}
	return c, strings.TrimSuffix(out, "/"), nil
}
