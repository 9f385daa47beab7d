package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// Where packets come by our chains. Docker runs DOCKER-USER before all rules
// of its own, never edits it and never removes it; it is the place the
// engine leaves for others. Without it (the engine's nftables backend, a
// daemon with iptables=false, another bridge tool) the hook is in FORWARD.
const (
	hookDocker  = "DOCKER-USER"
	hookForward = "FORWARD"
)

// made is a rule that does nothing. It says, to whoever removes the chains,
// that the table was not there before them. The note stands with the rules it
// is about: no file can be lost, or be wrong.
var made = rule{chain: chainMain, comment: "ambassador: this table was not there before"}

// hook is the chain the jump belongs in. DOCKER-USER counts only if packets
// come by it before anything else. After `iptables -F` it is there, and nothing
// jumps to it. An engine that is then started again while its containers run
// (live-restore) puts the rules that accept what they send each other before
// it, and DOCKER-USER back to the top only when the next network is made.
func (l *listing) hook() string {
	forward := l.chain(hookForward)
	if forward == nil || l.chain(hookDocker) == nil {
		return hookForward
	}
	for _, r := range forward.rules {
		if !r.always(chainMain) {
			if r.always(hookDocker) {
				return hookDocker
			}
			break
		}
	}
	return hookForward
}

// madeTable says that the table is there because of this package.
func (l *listing) madeTable() bool {
	main := l.chain(chainMain)
	if main == nil || len(main.rules) == 0 {
		return false
	}
	first, ok := parseRule(chainMain, main.rules[0].words)
	return ok && first == made
}

// plan is how to get from what was found to what is wanted.
type plan struct {
	changes []string // what is done, for people; empty: nothing is to do
	lines   []string // the same for iptables-restore
}

// script is the input of iptables-restore --noflush: all of it happens, or
// nothing does.
func (p *plan) script() string {
	return "*filter\n" + strings.Join(p.lines, "\n") + "\nCOMMIT\n"
}

// planFor compares the wanted rules with what was found. What is right is
// left alone, so that its counters go on counting.
func planFor(want map[string][]rule, found *listing) plan {
	if len(want) == 0 {
		return planRemoval(found)
	}
	if found == nil || found.madeTable() {
		want[chainMain] = slices.Insert(want[chainMain], 0, made)
	}
	var p plan
	for _, name := range chains {
		p.write(name, want[name], found.chain(name))
	}
	hook := found.hook()
	for _, name := range []string{hookDocker, hookForward} {
		p.jumpFrom(name, name == hook, found.chain(name))
	}
	return p
}

// write fills a chain unless it says what it should.
func (p *plan) write(name string, want []rule, found *chain) {
	if found != nil && slices.EqualFunc(want, found.rules, func(w rule, f line) bool {
		r, ok := parseRule(name, f.words)
		return ok && r == w
	}) {
		return
	}
	verb := "made"
	if found != nil {
		verb = "repaired"
	}
	p.changes = append(p.changes, fmt.Sprintf("%s chain %s: %s", verb, name, count(len(want), "rule")))
	p.lines = append(p.lines, ":"+name+" - [0:0]") // empties it if it is there
	for _, r := range want {
		p.lines = append(p.lines, "-A "+name+" "+joinWords(r.args()))
	}
}

// jumpFrom sees to it that a chain jumps to ours once, as the first thing it
// does, or not at all. Rules before it could accept what it is to drop.
func (p *plan) jumpFrom(name string, wanted bool, found *chain) {
	var at []int
	if found != nil {
		for i, r := range found.rules {
			if r.always(chainMain) {
				at = append(at, i)
			}
		}
	}
	if wanted && len(at) == 1 && at[0] == 0 || !wanted && len(at) == 0 {
		return
	}
	rule := name + " -j " + chainMain
	for range at {
		p.lines = append(p.lines, "-D "+rule)
	}
	if !wanted {
		p.changes = append(p.changes, fmt.Sprintf("removed %s from %s", count(len(at), "jump"), name))
		return
	}
	p.lines = append(p.lines, "-I "+strings.Replace(rule, " ", " 1 ", 1))
	switch len(at) {
	case 0:
		p.changes = append(p.changes, "made the jump from "+name)
	case 1:
		p.changes = append(p.changes, "moved the jump from "+name+" to its top")
	default:
		p.changes = append(p.changes, fmt.Sprintf("made one jump from %s out of %d", name, len(at)))
	}
}

// planRemoval takes away the chains and, wherever it is, each rule that leads
// to one of them: a chain that is led to cannot be removed.
func planRemoval(found *listing) plan {
	var p plan
	if found == nil {
		return p
	}
	ours := func(name string) bool { return slices.Contains(chains[:], name) }
	for _, c := range found.chains {
		if ours(c.name) {
			continue
		}
		for _, r := range c.rules {
			if ours(r.jump()) {
				p.changes = append(p.changes, "removed rule -A "+c.name+" "+r.text)
				p.lines = append(p.lines, "-D "+c.name+" "+r.text)
			}
		}
	}
	var last []string // chains that still lead to each other cannot go
	for _, name := range chains {
		if c := found.chain(name); c != nil {
			p.changes = append(p.changes, fmt.Sprintf("removed chain %s: %s", name, count(len(c.rules), "rule")))
			p.lines = append(p.lines, "-F "+name)
			last = append(last, "-X "+name)
		}
	}
	p.lines = append(p.lines, last...)
	return p
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
