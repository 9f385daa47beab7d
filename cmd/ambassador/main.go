// Command ambassador serves the links of one Docker Engine and answers
// questions about them. It starts no container; linkrun does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/pflag"
)

const usage = `Usage: ambassador COMMAND [flags]

Carries links between containers: serves every container that linkrun made, or
that carries ambassador.link labels.

Commands:
  serve     carry the links of one Docker Engine, in the foreground
  links     list the links, their state and what they carried
  icc       show and change what passes between containers besides links
  doctor    prove that nothing else passes
  socks     reach a container's links from the host, by SOCKS5

Links between hosts:
  ca        look after the authority that says which hosts belong together
  token     let one host join
  join      join the hosts of an authority
  peers     list the other hosts, and the sessions with them

Links without an agent, between processes or hosts:
  source    the source's end
  recipient the recipient's end
  env       the classic ambassador container: forward what variables name

  version   print the version

Every command takes --help.

Example:
  $ sudo ambassador serve &
  $ linkrun -d --name web --link db:webdb web-image
  $ ambassador links
`

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(report(os.Stderr, err))
}

// command is one word after "ambassador".
type command func(ctx context.Context, args []string, stdout, stderr io.Writer) error

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("a command is missing"), "ambassador"}
	}
	commands := map[string]command{
		"serve":  serve,
		"links":  links,
		"icc":    icc,
		"doctor": runDoctor,
		"socks":  runSocks,

		"ca":    ca,
		"token": token,
		"join":  join,
		"peers": peers,

		"source":    source,
		"recipient": recipient,
		"env":       env,
	}
	switch name := args[0]; name {
	case "help", "--help", "-h":
		_, err := io.WriteString(stdout, usage)
		return err
	case "version", "--version":
		_, err := fmt.Fprintln(stdout, "ambassador", version())
		return err
	default:
		cmd, ok := commands[name]
		if !ok {
			return usageError{fmt.Errorf("unknown command %q", name), "ambassador"}
		}
		err := cmd(ctx, args[1:], stdout, stderr)
		if errors.Is(err, pflag.ErrHelp) {
			return nil // the flag set printed it
		}
		return err
	}
}

// version is the module's version, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// usageError is a mistake in the words after "ambassador".
type usageError struct {
	error
	command string // whose --help is worth reading
}

// hinted is an error together with what the user can do about it.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// report tells the user what went wrong in one line and what to do in the
// next, and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(w, "ambassador: error: %v\n", err)
	var u usageError
	if errors.As(err, &u) {
		fmt.Fprintf(w, "ambassador: hint: see `%s --help`\n", u.command)
		return exitUsage
	}
	var h hinted
	if errors.As(err, &h) {
		fmt.Fprintf(w, "ambassador: hint: %s\n", h.hint)
	}
	return exitFailed
}

// parse reads args into the flags of the named command; positional arguments
// are refused.
func parse(flags *pflag.FlagSet, args []string, stdout io.Writer, usage string) error {
	_, err := parseWords(flags, args, stdout, usage)
	return err
}

// parseWords is parse for a command that takes as many positional arguments as
// it is given names of, and returns them.
func parseWords(flags *pflag.FlagSet, args []string, stdout io.Writer, usage string, names ...string) ([]string, error) {
	flags.Usage = func() { io.WriteString(stdout, usage) }
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return nil, err
	case err == nil && flags.NArg() < len(names):
		err = fmt.Errorf("%s is missing", names[flags.NArg()])
	case err == nil && flags.NArg() > len(names):
		err = fmt.Errorf("unexpected argument %q", flags.Arg(len(names)))
	}
	if err != nil {
		return nil, usageError{err, "ambassador " + flags.Name()}
	}
	return flags.Args(), nil
}
