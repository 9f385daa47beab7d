package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// config is what a user says of a run of the bench.
type config struct {
	rounds     int
	time       time.Duration // of one measurement
	only       *regexp.Regexp
	peers      *regexp.Regexp
	ambassador string // a program; empty: built from the checkout
	brief      bool
}

// bench is a run: what is measured of whom, and what came out.
type bench struct {
	config
	stage     *stage
	peers     []peer
	names     map[peer]string
	workloads []workload
	missing   map[string]string // a peer or workload that cannot be had, and why
	failures  []string          // of single measurements: the others stand
	results   *results
}

// newBench starts the peers on a stage.
func newBench(ctx context.Context, c config, s *stage) (*bench, error) {
	b := &bench{config: c, stage: s, names: make(map[peer]string), missing: make(map[string]string), results: newResults(c.rounds)}
	for _, name := range peerNames {
		if !c.peers.MatchString(name) {
			continue
		}
		p := newPeer(name)
		if program := lacks(p.needs()); program != "" {
			b.missing[name] = program + " is not installed"
			continue
		}
		if err := p.start(ctx, s); err != nil {
			return nil, fmt.Errorf("starting %s: %w", name, err)
		}
		b.peers = append(b.peers, p)
		b.names[p] = name
	}
	for _, w := range workloads() {
		if !c.only.MatchString(w.name) {
			continue
		}
		if program := lacks(w.needs); program != "" {
			b.missing[w.name] = program + " is not installed"
			continue
		}
		b.workloads = append(b.workloads, w)
	}
	return b, nil
}

// lacks is the first of some programs that is not installed, or "".
func lacks(programs []string) string {
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			return program
		}
	}
	return ""
}

// step is one measurement of a round.
type step struct {
	workload workload
	peer     peer
}

func (b *bench) title(s step) string { return b.names[s.peer] + ", " + s.workload.name }

// steps are those of a round. The peers of a workload follow each other, and
// another one begins in each round.
func (b *bench) steps(round int) (steps []step) {
	for _, w := range b.workloads {
		for i := range b.peers {
			p := b.peers[(i+round)%len(b.peers)]
			pids, err := p.carriers()
			if !w.kernel && err == nil && len(pids) == 0 || w.packets && !p.packets() {
				continue
			}
			if st := (step{w, p}); b.missing[b.title(st)] == "" {
				steps = append(steps, st)
			}
		}
	}
	return steps
}

// rehearse does every measurement once, briefly: it waits until every service
// answers through every peer, and warms everything up. What does not work is
// missing from then on.
func (b *bench) rehearse(ctx context.Context, progress *progress) error {
	steps := b.steps(0)
	progress.begin("warming up", len(steps))
	for _, st := range steps {
		progress.step(b.title(st))
		err := poll(ctx, 15*time.Second, func() error {
			_, err := b.try(ctx, st)
			return err
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fallen := b.stage.fallen(); fallen != nil {
			return fmt.Errorf("trying %s: %w", b.title(st), fallen)
		}
		if err != nil {
			b.missing[b.title(st)] = err.Error()
		}
		progress.done(0)
	}
	return nil
}

// try does a measurement as short as it can be.
func (b *bench) try(ctx context.Context, st step) (sample, error) {
	return st.workload.measure(ctx, run{b.stage, st.peer, 50 * time.Millisecond, true})
}

// measure runs all rounds.
func (b *bench) measure(ctx context.Context, progress *progress) error {
	progress.begin("", b.rounds*len(b.steps(0)))
	for round := range b.rounds {
		progress.phase = fmt.Sprintf("round %d of %d", round+1, b.rounds)
		for _, st := range b.steps(round) {
			if err := ctx.Err(); err != nil {
				return err
			}
			progress.step(b.title(st))
			s, err := st.workload.measure(ctx, run{b.stage, st.peer, b.time, b.brief})
			if fallen := b.stage.fallen(); fallen != nil {
				return fmt.Errorf("measuring %s: %w", b.title(st), fallen)
			}
			if err != nil && ctx.Err() == nil {
				b.failures = append(b.failures, fmt.Sprintf("round %d, %s: %v", round+1, b.title(st), err))
			} else if err == nil {
				b.results.add(st.workload.name, b.names[st.peer], round, s)
			}
			progress.done(round)
		}
	}
	return ctx.Err()
}

// progress tells how far the bench is, and how long it will take: on one line
// where that is a terminal, and by a line for each round elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	phase    string
	total    int
	count    int
	started  time.Time
	round    int
}

func newProgress(out *os.File) *progress {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &progress{out: out, terminal: err == nil}
}

func (p *progress) begin(phase string, total int) {
	p.phase, p.total, p.count, p.round, p.started = phase, total, 0, -1, time.Now()
	if !p.terminal && phase != "" {
		fmt.Fprintln(p.out, phase)
	}
}

func (p *progress) step(title string) {
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s · %s · %d %% · %s", p.phase, p.left(), 100*p.count/p.total, title)
	}
}

// done counts a step.
func (p *progress) done(round int) {
	p.count++
	switch {
	case p.terminal && p.count == p.total:
		fmt.Fprint(p.out, "\r\x1b[K")
	case !p.terminal && round != p.round && p.phase != "":
		p.round = round
		fmt.Fprintf(p.out, "%s, %s\n", p.phase, p.left())
	}
}

// left is the time that is left, by that which it has taken so far.
func (p *progress) left() string {
	if p.count == 0 {
		return "time left unknown"
	}
	left := time.Since(p.started) / time.Duration(p.count) * time.Duration(p.total-p.count)
	return left.Round(time.Second).String() + " left"
}
