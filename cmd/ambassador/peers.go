package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/control"
)

const peersUsage = `Usage: ambassador peers [flags]

Lists the hosts that this one keeps a session with, or would like to.

Flags:
      --dir DIR   where the ambassador keeps its socket
                  (default AMBASSADOR_DIR, else /run/ambassador)
      --json      print JSON

Example:
  $ ambassador peers
  this host is spiffe://ambassador/host/hosta until 2026-11-22T09:12:03Z
  it has the authority, and it listens at [::]:7443

  HOST   STATE  SINCE   ADDRESS          ROUND TRIP  STREAMS
  hostb  up     3m12s   192.0.2.2:41954  310µs       4
`

func peers(ctx context.Context, args []string, stdout, _ io.Writer) error {
	flags := pflag.NewFlagSet("peers", pflag.ContinueOnError)
	dir := flags.String("dir", control.Dir(), "")
	asJSON := flags.Bool("json", false, "")
	if err := parse(flags, args, stdout, peersUsage); err != nil {
		return err
	}
	p, err := control.Dial(*dir).Peers(ctx)
	if err != nil {
		return noAgent(err)
	}
	if *asJSON {
		return printJSON(stdout, p)
	}
	return printPeers(stdout, p, time.Now())
}

func printPeers(w io.Writer, p control.Peers, now time.Time) error {
	if p.Self.ID == "" {
		_, err := fmt.Fprintln(w, "this host has no identity: make an authority with `ambassador ca init`, or join one with `ambassador join`")
		return err
	}
	fmt.Fprintf(w, "this host is %s until %s\n", p.Self.ID, p.Self.Until.UTC().Format(time.RFC3339))
	if p.Self.Problem != "" {
		fmt.Fprintf(w, "nobody talks to it: %s\n", p.Self.Problem)
	}
	fmt.Fprintf(w, "%s, and %s\n\n", authorityLine(p.Self), listensLine(p.Self.Listens))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "HOST\tSTATE\tSINCE\tADDRESS\tROUND TRIP\tSTREAMS\t")
	for _, h := range p.Hosts {
		address, roundTrip := "-", "-"
		if h.State == control.StateUp {
			address, roundTrip = h.Address, h.RTT.Round(10*time.Microsecond).String()
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", h.Host, h.State, since(h.Since, now), address, roundTrip, h.Streams, h.Reason)
	}
	return tw.Flush()
}

func authorityLine(s control.Self) string {
	switch {
	case s.Authority == "":
		return "its certificate is renewed by whoever put it there"
	case strings.HasSuffix(s.ID, "/host/"+s.Authority):
		return "it has the authority"
	}
	return s.Authority + " has the authority"
}

func listensLine(at []string) string {
	if len(at) == 0 {
		return "it does not listen: it calls others"
	}
	return "it listens at " + strings.Join(at, ", ")
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return max(now.Sub(t), 0).Round(time.Second).String()
}
