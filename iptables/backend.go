package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// family is IPv4 or IPv6. Each has its own programs and its own tables.
type family int

const (
	ip4 family = iota
	ip6
)

var families = [...]family{ip4, ip6}

func (f family) String() string { return [...]string{"ip", "ip6"}[f] }

// has says whether an address is of the family.
func (f family) has(a netip.Addr) bool { return a.Is4() == (f == ip4) }

// Backend says which of the kernel's two rule sets iptables works on. The
// empty Backend is whatever the program called iptables works on, which is
// also the engine's choice.
type Backend string

// The backends by name.
const (
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// program names one of the programs, such as ip6tables-legacy-save.
func (b Backend) program(f family, what string) string {
	name := f.String() + "tables"
	if b != "" {
		name += "-" + string(b)
	}
	if what != "" {
		name += "-" + what
	}
	return name
}

// Run executes a program and waits for it. The error is only about a program
// that could not be run, and is exec.ErrNotFound if there is none; a status
// other than 0 is the program's own answer. It is the one way by which this
// package reads and writes rules.
type Run func(ctx context.Context, argv []string, stdin string) (Result, error)

// Result is how a program ended.
type Result struct {
	Stdout, Stderr string
	Status         int
}

// Execute is the Run that executes the program.
func Execute(ctx context.Context, argv []string, stdin string) (Result, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Messages are shown to people as they come. They are never understood,
	// but listings are, and those must not be translated.
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, err
}

// StatusError is an answer of one of the programs other than success.
type StatusError struct {
	Program string
	Status  int
	Message string // what it said, without what it says to everybody
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s ended with status %d: %s", e.Program, e.Status, e.Message)
}

// tool runs the programs of one backend.
type tool struct {
	run     Run
	backend Backend
	nft     bool // whatever the backend is called, nftables is what it works on
}

func (t tool) exec(ctx context.Context, stdin string, argv ...string) (string, error) {
	res, err := t.run(ctx, argv, stdin)
	if err != nil {
		return "", fmt.Errorf("running %s: %w", argv[0], err)
	}
	if res.Status != 0 {
		return "", &StatusError{argv[0], res.Status, strings.Join(strings.Fields(res.Stderr), " ")}
	}
	return res.Stdout, nil
}

// list reads the filter table. It asks for all tables: asked for one, the
// legacy program makes it if it is not there.
//
// absent says that the kernel has no IPv6, so that there is nothing to stop.
// A kernel that has it, on a host without ip6tables, is an error instead.
func (t tool) list(ctx context.Context, f family) (found *listing, absent bool, err error) {
	text, err := t.exec(ctx, "", t.backend.program(f, "save"))
	if err == nil {
		found, err = parseListing(text)
	}
	if err != nil && f == ip6 {
		res, unknown := t.run(ctx, []string{"cat", "/proc/self/net/if_inet6"}, "")
		if unknown == nil && res.Status != 0 {
			return nil, true, nil
		}
	}
	return found, false, err
}

// lockWait is for how many seconds another program that changes legacy rules
// is waited for.
const lockWait = "5"

// apply brings a plan about, all of it or nothing.
func (t tool) apply(ctx context.Context, f family, p plan) error {
	_, err := t.exec(ctx, p.script(), t.backend.program(f, "restore"), "--noflush", "-w", lockWait)
	return err
}

// loaded lists the tools of the backends that may have a filter table: the
// ones called iptables first. It does not make a table by looking.
func loaded(ctx context.Context, run Run) []tool {
	version := func(program string) (string, bool) {
		res, err := run(ctx, []string{program, "-V"}, "")
		return res.Stdout, err == nil && res.Status == 0
	}
	usual, _ := version("iptables")
	tools := []tool{{run, "", strings.Contains(usual, "nf_tables")}}
	if !tools[0].nft {
		if _, ok := version("iptables-nft"); ok {
			tools = append(tools, tool{run, NFT, true})
		}
		return tools
	}
	// The files name the tables that legacy programs have touched, and are
	// missing where the kernel cannot have any.
	res, err := run(ctx, []string{"cat", "/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"}, "")
	if err == nil && slices.Contains(strings.Fields(res.Stdout), "filter") {
		if _, ok := version("iptables-legacy"); ok {
			tools = append(tools, tool{run, Legacy, false})
		}
	}
	return tools
}
