package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
)

// dockerCLI is the installed docker command, with the global flags that
// linkrun was given as its plugin.
type dockerCLI struct {
	path    string
	globals []string
	env     []string
	socket  string // of the docker whose plugin this is; "" when it has none
}

// findDocker finds the command that name names, on the PATH or by its path.
func findDocker(name string, globals []string) (*dockerCLI, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fail("install Docker's command line, or put it on the PATH", "finding docker: %w", err)
	}
	return &dockerCLI{path: path, globals: globals, env: withoutPluginVariables(os.Environ())}, nil
}

// command prepares `docker [globals] args…` to run under linkrun.
func (d *dockerCLI) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.path, slices.Concat(d.globals, args)...)
	cmd.Env = d.env
	return cmd
}

// become executes `docker [globals] args…` in place of linkrun, or under it
// when the docker above wants to be listened to. In place, it returns only
// when it cannot.
func (d *dockerCLI) become(args, env []string) error {
	argv := slices.Concat([]string{"docker"}, d.globals, args)
	err := d.execute(argv, env)
	if exit := exitStatus(0); err == nil || errors.As(err, &exit) {
		return err
	}
	if errors.Is(err, syscall.E2BIG) {
		return fail("leave variables out with --link-env ports or --link-env none",
			"the flags and variables for docker take %d bytes, more than the kernel passes to a program", size(argv)+size(env))
	}
	return fail("see that it is a program for this machine", "executing %q: %w", d.path, err)
}

func (d *dockerCLI) execute(argv, env []string) error {
	if d.socket != "" {
		if plugin, err := net.Dial("unix", d.socket); err == nil {
			return d.runUnder(plugin, argv, env)
		}
	}
	return syscall.Exec(d.path, argv, env)
}

func size(words []string) (n int) {
	for _, w := range words {
		n += len(w) + 1
	}
	return n
}

// failed explains the error of a docker command that ran under linkrun, by
// the first line docker wrote if its output was not shown.
func failed(err error, hint, doing string) error {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		first, _, _ := bytes.Cut(bytes.TrimSpace(exit.Stderr), []byte("\n"))
		return fail(hint, "%s: %s", doing, first)
	}
	return fail(hint, "%s: %w", doing, err)
}

// unsetenv returns env without the variables of these names. What follows a
// name's "=" does not matter.
func unsetenv(env, names []string) []string {
	unset := make(map[string]bool, len(names))
	for _, n := range names {
		name, _, _ := strings.Cut(n, "=")
		unset[name] = true
	}
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return unset[name]
	})
}

// bare formats names as flags that make docker take the values from its own
// environment: `ps` shows arguments to everyone. What follows a name's "="
// does not matter.
func bare(names []string) []string {
	flags := make([]string, len(names))
	for i, n := range names {
		name, _, _ := strings.Cut(n, "=")
		flags[i] = "--env=" + name
	}
	return flags
}
