package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
)

const iccUsage = `Usage: ambassador icc COMMAND [flags]

Shows and changes what passes between containers besides links.

Commands:
  status                            what is wanted and what is found, per bridge
  off                               remove everything that is enforced, and say
                                    what that was; with or without an ambassador
                                    that serves
  allow RECIPIENT SOURCE PORT[/udp] let the recipient open connections to one
                                    port of the source, over a closed bridge both
                                    are on; follows both by name
  revoke RECIPIENT SOURCE PORT[/udp]
                                    take that back, also from what passes now

Flags:
      --dir DIR   where the ambassador keeps its socket
                  (default AMBASSADOR_DIR, else /run/ambassador)
      --json      print JSON (status and off)

Example:
  $ sudo ambassador icc allow web db 5432
  $ ambassador icc status
  mode deny

  NETWORK  BRIDGE   WANTED  FOUND   PORTS  ISOLATED  WHY
  bridge   docker0  closed  closed  2      2         every bridge is, with --icc=deny

  RECIPIENT  SOURCE  PORT      STATE
  web        db      5432/tcp  up
`

// iccCommand is what the words of an icc command come to.
type iccCommand struct {
	dir    string
	json   bool
	args   []string
	stdout io.Writer
}

func icc(ctx context.Context, args []string, stdout, _ io.Writer) error {
	commands := map[string]struct {
		args int
		run  func(context.Context, iccCommand) error
	}{
		"status": {0, iccStatus},
		"off":    {0, iccOff},
		"allow":  {3, iccAllow},
		"revoke": {3, iccRevoke},
	}
	flags := pflag.NewFlagSet("icc", pflag.ContinueOnError)
	c := iccCommand{stdout: stdout}
	flags.StringVar(&c.dir, "dir", control.Dir(), "")
	flags.BoolVar(&c.json, "json", false, "")
	flags.Usage = func() { io.WriteString(stdout, iccUsage) }
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return usageError{err, "ambassador icc"}
	}
	name := flags.Arg(0)
	command, known := commands[name]
	switch {
	case name == "":
		return usageError{errors.New("a command is missing"), "ambassador icc"}
	case !known:
		return usageError{fmt.Errorf("unknown command %q", name), "ambassador icc"}
	case flags.NArg()-1 < command.args:
		return usageError{fmt.Errorf("%s needs a recipient, a source and a port", name), "ambassador icc"}
	case flags.NArg()-1 > command.args:
		return usageError{fmt.Errorf("unexpected argument %q", flags.Arg(command.args+1)), "ambassador icc"}
	}
	c.args = flags.Args()[1:]
	return command.run(ctx, c)
}

func iccStatus(ctx context.Context, c iccCommand) error {
	s, err := control.Dial(c.dir).ICC(ctx)
	if err != nil {
		return noAgent(err)
	}
	if c.json {
		return printJSON(c.stdout, s)
	}
	fmt.Fprintf(c.stdout, "mode %s\n\n", s.Mode)
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NETWORK\tBRIDGE\tWANTED\tFOUND\tPORTS\tISOLATED\tWHY")
	for _, b := range s.Bridges {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", b.Network, b.Bridge, b.Wanted, b.Found, b.Ports, b.Isolated, b.Why)
	}
	if len(s.Allowed) > 0 {
		fmt.Fprintln(tw, "\nRECIPIENT\tSOURCE\tPORT\tSTATE")
		for _, p := range s.Allowed {
			state := p.State
			if p.Reason != "" {
				state += "\t" + p.Reason
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", p.Recipient, p.Source, p.Port, state)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for i, what := range s.Missing {
		if i == 0 {
			fmt.Fprintln(c.stdout, "\nmissing, and about to be put right:")
		}
		fmt.Fprintf(c.stdout, "  %s\n", what)
	}
	return nil
}

// iccOff asks the ambassador, or does it itself if none serves.
func iccOff(ctx context.Context, c iccCommand) error {
	removed, err := control.Dial(c.dir).ICCOff(ctx)
	if errors.Is(err, control.ErrNoAgent) {
		removed, err = removeICC(ctx, c.dir)
	}
	// What was removed is said, also if something was not.
	if c.json {
		if printed := printJSON(c.stdout, struct {
			Removed []string `json:"removed"`
		}{append([]string{}, removed...)}); printed != nil {
			return printed
		}
		return noAgent(err)
	}
	for _, what := range removed {
		fmt.Fprintln(c.stdout, what)
	}
	if len(removed) == 0 && err == nil {
		fmt.Fprintln(c.stdout, "nothing was enforced")
	}
	return noAgent(err)
}

func removeICC(ctx context.Context, dir string) ([]string, error) {
	if os.Geteuid() != 0 {
		return nil, hinted{errors.New("changing the firewall needs root"), "run it as root"}
	}
	log := slog.New(slog.DiscardHandler)
	bridges, err := bridge.Open(log)
	if err != nil {
		return nil, err
	}
	defer bridges.Close()
	k := newICC(dir, bridges, log)
	if engine, err := docker.Dial(ctx, ""); err == nil {
		defer engine.Close()
		k.Engine = engine
	}
	return k.Remove(ctx)
}

func iccAllow(ctx context.Context, c iccCommand) error {
	client := control.Dial(c.dir)
	p := c.permission()
	if err := client.ICCAllow(ctx, p); err != nil {
		return noAgent(err)
	}
	s, err := client.ICC(ctx)
	if err != nil {
		return noAgent(err)
	}
	for _, got := range s.Allowed {
		if got.Recipient == p.Recipient && got.Source == p.Source && got.State == control.StateDown {
			_, err = fmt.Fprintf(c.stdout, "allowed; nothing passes for now: %s\n", got.Reason)
		}
	}
	return err
}

func iccRevoke(ctx context.Context, c iccCommand) error {
	return noAgent(control.Dial(c.dir).ICCRevoke(ctx, c.permission()))
}

func (c iccCommand) permission() control.ICCPermission {
	return control.ICCPermission{Recipient: c.args[0], Source: c.args[1], Port: c.args[2]}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
