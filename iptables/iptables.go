// Package iptables keeps the rules by which the host refuses packets between
// containers: a policy goes in, and the filter tables of IPv4 and IPv6 say
// it, also after somebody flushed them. It knows neither the engine nor
// links, and does not touch the bridges, whose frames these rules see only
// where bridge netfilter is on; see package bridge.
//
// Everything is in chains of the package's own. A reconciliation reads the
// tables, compares them with what is wanted, and writes the difference in one
// transaction per family.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Firewall is the filter tables of the network namespace that it runs in. The
// zero Firewall works on those the engine works on. Safe for concurrent use.
type Firewall struct {
	// Run executes the programs; nil is Execute.
	Run Run

	// Backend is the rule set to work on. Empty: the one that the engine's
	// rules are in, else that of the program called iptables.
	Backend Backend

	// Kernel is asked what the programs cannot do; nil is this thread's.
	Kernel Kernel

	mu       sync.Mutex // one reconciliation at a time
	chosen   tool
	chosenAt time.Time // zero: the engine's rules were not found there
	alone    bool      // no other backend holds rules of ours
	verified verified
}

// Kernel is what no program offers, about the nftables of the calling
// thread's network namespace. Where there are none, its methods fail.
type Kernel interface {
	// Generation is a number that is another one after every change.
	Generation() (uint32, error)

	// DropTable removes the filter table of IPv4 or IPv6 with all that is in
	// it, if the rules are still of the generation, and fails with ERESTART
	// if they are not.
	DropTable(ipv6 bool, generation uint32) error
}

// verified is when which policy was found to be enforced.
type verified struct {
	policy     Policy // sorted
	generation uint32
	at         time.Time // zero: never
}

// trustFor is how long a rule set of an unchanged generation is taken to be
// as it was. What the generation does not show is that the engine moved to
// another backend.
const trustFor = 30 * time.Second

// attempts is how often a reconciliation is tried. Between reading the tables
// and writing them somebody else may write; the transaction fails then.
const attempts = 4

// ErrUnsettled says that the tables were found different each time after they
// had been written: somebody keeps undoing it.
var ErrUnsettled = errors.New("the rules do not stay as they are written")

// Reconcile makes the tables say the policy, and returns what it had to do
// for that, in words: nothing, if all was as it should be. If it fails for
// one family it has still tried the other. A kernel without IPv6 is no error.
// It is cheap to call often: nftables that have not changed are not read.
func (w *Firewall) Reconcile(ctx context.Context, p Policy) ([]string, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	p = p.sorted()
	w.mu.Lock()
	defer w.mu.Unlock()
	generation, unknown := w.kernel().Generation() // before the tables are read
	if unknown == nil && w.chosen.nft && w.verified.holds(p, generation) {
		return nil, nil
	}
	w.verified = verified{}
	others := w.choose(ctx)
	var done []string
	var failed []error
	for _, f := range families {
		changes, err := w.bring(ctx, w.chosen, f, p)
		done = append(done, changes...)
		if err != nil {
			failed = append(failed, fmt.Errorf("enforcing the %s policy: %w", f, err))
		}
	}
	if len(failed) == 0 && !w.alone {
		// Only now that the rules stand: what an earlier agent left elsewhere.
		changes, err := w.remove(ctx, others)
		done = append(done, changes...)
		failed = append(failed, err)
		w.alone = err == nil
	}
	err := errors.Join(failed...)
	if err == nil && unknown == nil && len(done) == 0 {
		w.verified = verified{p, generation, time.Now()}
	}
	return done, err
}

func (v verified) holds(p Policy, generation uint32) bool {
	return !v.at.IsZero() && time.Since(v.at) < trustFor && v.generation == generation &&
		slices.Equal(v.policy.Bridges, p.Bridges) && slices.Equal(v.policy.Allow, p.Allow)
}

// Check says what Reconcile would do, and does nothing.
func (w *Firewall) Check(ctx context.Context, p Policy) ([]string, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.choose(ctx)
	var todo []string
	for _, f := range families {
		found, absent, err := w.chosen.list(ctx, f)
		if err != nil {
			return todo, fmt.Errorf("reading the %s rules: %w", f, err)
		}
		if !absent {
			todo = append(todo, prefixed(f, planFor(p.rules(f), found).changes)...)
		}
	}
	return todo, nil
}

// Remove takes every trace away, from every backend, and says what it removed.
func (w *Firewall) Remove(ctx context.Context) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verified = verified{}
	return w.remove(ctx, w.tools(ctx))
}

func (w *Firewall) remove(ctx context.Context, from []tool) ([]string, error) {
	var done []string
	var failed []error
	for _, t := range from {
		for _, f := range families {
			changes, err := w.bring(ctx, t, f, Policy{})
			done = append(done, changes...)
			if err != nil {
				failed = append(failed, fmt.Errorf("removing the %s rules: %w", f, err))
			}
		}
	}
	return done, errors.Join(failed...)
}

// bring brings one family in line with the policy. What it wrote it reads
// again, until there is nothing to write.
func (w *Firewall) bring(ctx context.Context, t tool, f family, p Policy) (done []string, err error) {
	var refused error
	for range attempts {
		found, absent, err := t.list(ctx, f)
		want := p.rules(f)
		if absent || len(want) == 0 && errors.Is(err, exec.ErrNotFound) {
			return done, nil // without the programs, nobody has made a rule
		}
		if err != nil {
			return done, err
		}
		todo := planFor(want, found)
		if len(todo.changes) == 0 {
			return done, nil
		}
		refused = t.apply(ctx, f, todo)
		var status *StatusError
		switch {
		case refused == nil:
			done = append(done, prefixed(f, todo.changes)...)
		case !errors.As(refused, &status):
			return done, refused
		}
		if refused == nil && len(want) == 0 && found.madeTable() {
			change, err := w.dropTable(ctx, t, f)
			done = append(done, prefixed(f, []string{change})...)
			if err != nil {
				return done, err
			}
		}
	}
	return done, errors.Join(ErrUnsettled, refused)
}

// dropTable removes a table that was made for our chains, unless somebody
// uses it by now.
func (w *Firewall) dropTable(ctx context.Context, t tool, f family) (string, error) {
	if !t.nft {
		return "left the empty filter table: the kernel keeps it until it is booted", nil
	}
	for range attempts {
		generation, err := w.kernel().Generation()
		if err != nil {
			return "left the empty filter table", err
		}
		found, _, err := t.list(ctx, f)
		if err != nil || !found.empty() {
			return "left the filter table, which others use by now", err
		}
		err = w.kernel().DropTable(f == ip6, generation)
		switch {
		case errors.Is(err, unix.ERESTART):
		case err != nil:
			return "left the empty filter table", err
		default:
			return "removed the filter table, which was not there before", nil
		}
	}
	return "left the empty filter table", ErrUnsettled
}

// choose decides which backend the rules go to, and returns the others. Where
// the engine's rules were seen a moment ago, they still are.
func (w *Firewall) choose(ctx context.Context) (others []tool) {
	if w.alone && !w.chosenAt.IsZero() && time.Since(w.chosenAt) < trustFor {
		return nil
	}
	w.chosenAt = time.Time{}
	tools := w.tools(ctx)
	now := tools[0]
	for _, t := range tools {
		found, _, err := t.list(ctx, ip4)
		if err == nil && found.chain(hookDocker) != nil {
			now, w.chosenAt = t, time.Now()
			break
		}
	}
	if now.backend != w.chosen.backend {
		w.alone = false
	}
	w.chosen = now
	return slices.DeleteFunc(tools, func(t tool) bool { return t.backend == now.backend })
}

// tools are those of every backend that may hold rules of ours.
func (w *Firewall) tools(ctx context.Context) []tool {
	run := w.Run
	if run == nil {
		run = Execute
	}
	if w.Backend != "" {
		return []tool{{run, w.Backend, w.Backend == NFT}}
	}
	return loaded(ctx, run)
}

func (w *Firewall) kernel() Kernel {
	if w.Kernel == nil {
		return nftables{}
	}
	return w.Kernel
}

// State is everything that this package's rules are, as sorted text of one
// fact per line: each rule of its chains, and each that leads there.
func (w *Firewall) State(ctx context.Context) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.choose(ctx)
	var lines []string
	for _, f := range families {
		found, absent, err := w.chosen.list(ctx, f)
		if err != nil {
			return "", fmt.Errorf("reading the %s rules: %w", f, err)
		}
		if !absent {
			lines = append(lines, prefixed(f, found.ours())...)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

func prefixed(f family, facts []string) []string {
	for i := range facts {
		facts[i] = f.String() + ": " + facts[i]
	}
	return facts
}
