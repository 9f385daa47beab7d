package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/control"
)

const linksUsage = `Usage: ambassador links [flags]

Lists the links, one row each.

Flags:
      --dir DIR   where the ambassador keeps its socket
                  (default AMBASSADOR_DIR, else /run/ambassador)
      --json      print JSON

A link that is down refuses connections; the last column says why.

Example:
  $ ambassador links
  RECIPIENT  ALIAS  SOURCE  ADDRESS      PORTS     STATE  OPEN  TO SOURCE  FROM SOURCE
  web        webdb  db      127.77.0.2   5432/tcp  up     2     1.2kB      80kB
`

func links(ctx context.Context, args []string, stdout, _ io.Writer) error {
	flags := pflag.NewFlagSet("links", pflag.ContinueOnError)
	dir := flags.String("dir", control.Dir(), "")
	asJSON := flags.Bool("json", false, "")
	if err := parse(flags, args, stdout, linksUsage); err != nil {
		return err
	}
	list, err := control.Dial(*dir).Links(ctx)
	if err != nil {
		return noAgent(err)
	}
	if *asJSON {
		return printJSON(stdout, list)
	}
	return printLinks(stdout, list)
}

// noAgent adds what to do when the question could not be asked, or was
// refused.
func noAgent(err error) error {
	var refused *control.RefusedError
	switch {
	case errors.As(err, &refused) && refused.Hint != "":
		return hinted{err, refused.Hint}
	case errors.Is(err, control.ErrNoAgent):
		return hinted{err, "start it with `ambassador serve` as root, or name its directory with --dir"}
	case errors.Is(err, fs.ErrPermission):
		return hinted{err, "run it as root, or as a member of the docker group"}
	}
	return err
}

func printLinks(w io.Writer, list []control.Link) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "RECIPIENT\tALIAS\tSOURCE\tADDRESS\tPORTS\tSTATE\tOPEN\tTO SOURCE\tFROM SOURCE")
	for _, l := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s",
			l.Recipient, l.Alias, l.Source, l.Address, portList(l.Ports), l.State,
			l.Open, size(l.ToSource), size(l.ToRecipient))
		if l.Reason != "" {
			fmt.Fprint(tw, "\t", l.Reason)
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// maxPorts is how many ports a row names: a source may expose thousands.
const maxPorts = 4

func portList(ports []string) string {
	switch n := len(ports); {
	case n == 0:
		return "-"
	case n > maxPorts:
		return strings.Join(ports[:maxPorts-1], ",") + ",… (" + strconv.Itoa(n) + ")"
	}
	return strings.Join(ports, ",")
}

// size prints bytes with a decimal unit, as the docker command does.
func size(n int64) string {
	const unit = 1000
	if n < unit {
		return strconv.FormatInt(n, 10) + "B"
	}
	f, prefix := float64(n)/unit, 0
	for f >= unit && prefix < len(prefixes)-1 {
		f /= unit
		prefix++
	}
	return strconv.FormatFloat(f, 'g', 3, 64) + prefixes[prefix:prefix+1] + "B"
}

const prefixes = "kMGTPE"
