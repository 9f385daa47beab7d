package iptables

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fake is the programs of one backend, and the tables they work on, in
// memory. It is kept honest by TestFakeIsLikeTheRealThing: what it does is
// what both real backends do, or that test fails.
type fake struct {
	backend    Backend // which of the two the programs say they are
	noIPv6     bool    // in the kernel
	generation uint32
	tables     map[family]*fakeTable

	ran    []string // the programs that were run, with their words
	before func()   // called once, before the next restore
}

type fakeTable struct {
	chains map[string]*fakeChain
}

type fakeChain struct {
	policy string // "-" unless built in
	rules  []string
}

func newFakeTable() *fakeTable {
	t := &fakeTable{chains: map[string]*fakeChain{}}
	for _, name := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		t.chains[name] = &fakeChain{policy: "ACCEPT"}
	}
	return t
}

func (t *fakeTable) clone() *fakeTable {
	c := &fakeTable{chains: map[string]*fakeChain{}}
	for name, ch := range t.chains {
		c.chains[name] = &fakeChain{ch.policy, slices.Clone(ch.rules)}
	}
	return c
}

var fakePrograms = regexp.MustCompile(`^(ip6?)tables(?:-(nft|legacy))?(?:-(save|restore))?$`)

func (k *fake) run(_ context.Context, argv []string, stdin string) (Result, error) {
	k.ran = append(k.ran, strings.Join(argv, " "))
	if argv[0] == "cat" {
		return k.cat(argv[1]), nil
	}
	m := fakePrograms.FindStringSubmatch(argv[0])
	if m == nil || m[2] != "" && Backend(m[2]) != k.backend {
		return Result{Status: -1}, exec.ErrNotFound
	}
	f := ip4
	if m[1] == "ip6" {
		f = ip6
	}
	if f == ip6 && k.noIPv6 {
		return Result{Status: 3, Stderr: "can't initialize ip6tables table `filter': Address family not supported"}, nil
	}
	switch m[3] {
	case "save":
		return Result{Stdout: k.tables[f].save()}, nil
	case "restore":
		if before := k.before; before != nil {
			k.before = nil
			before()
		}
		if !slices.Equal(argv[1:], []string{"--noflush", "-w", lockWait}) {
			return Result{Status: 2, Stderr: fmt.Sprintf("the fake knows no restore with %q", argv[1:])}, nil
		}
		return k.transaction(f, restoreCommands(stdin)), nil
	}
	words := argv[1:]
	if slices.Equal(words, []string{"-V"}) {
		if k.backend == Legacy {
			return Result{Stdout: argv[0] + " v1.8.9 (legacy)\n"}, nil
		}
		return Result{Stdout: argv[0] + " v1.8.9 (nf_tables)\n"}, nil
	}
	return k.transaction(f, [][]string{words}), nil
}

func (k *fake) cat(path string) Result {
	if path == "/proc/self/net/if_inet6" && !k.noIPv6 {
		return Result{Stdout: "00000000000000000000000000000001 01 80 10 80       lo\n"}
	}
	return Result{Status: 1, Stderr: "cat: " + path + ": No such file or directory"}
}

// restoreCommands turns the input of iptables-restore into the words of as
// many iptables. ":chain" becomes the command of that name.
func restoreCommands(stdin string) (commands [][]string) {
	for line := range strings.Lines(stdin) {
		line = strings.TrimSpace(line)
		if line == "*filter" || line == "COMMIT" {
			continue
		}
		words, ok := splitWords(line)
		if !ok {
			words = []string{"unbalanced quotes"}
		}
		commands = append(commands, words)
	}
	return commands
}

// transaction does all the commands or none.
func (k *fake) transaction(f family, commands [][]string) Result {
	t := k.tables[f]
	if t == nil {
		t = newFakeTable()
	}
	t = t.clone()
	for i, words := range commands {
		if why := t.command(words); why != "" {
			return Result{Status: 1, Stderr: fmt.Sprintf("line %d failed: %s", i+1, why)}
		}
	}
	k.tables[f] = t
	k.generation++
	return Result{}
}

func (t *fakeTable) command(words []string) (why string) {
	if len(words) == 0 {
		return "no command"
	}
	verb, rest := words[0], words[1:]
	if verb == "-F" && len(rest) == 0 {
		for _, c := range t.chains {
			c.rules = nil
		}
		return ""
	}
	if verb == "-X" && len(rest) == 0 {
		for _, name := range slices.Sorted(maps.Keys(t.chains)) {
			if t.chains[name].policy == "-" {
				if why := t.deleteChain(name); why != "" {
					return why
				}
			}
		}
		return ""
	}
	name, made := strings.CutPrefix(verb, ":")
	if made {
		t.chains[name] = &fakeChain{policy: "-"}
		return ""
	}
	if len(rest) == 0 {
		return "no chain"
	}
	name, rest = rest[0], rest[1:]
	c := t.chains[name]
	if verb == "-N" {
		if c != nil {
			return "chain already exists"
		}
		t.chains[name] = &fakeChain{policy: "-"}
		return ""
	}
	if c == nil {
		return "no chain by that name"
	}
	switch verb {
	case "-F":
		c.rules = nil
		return ""
	case "-X":
		return t.deleteChain(name)
	case "-P":
		c.policy = rest[0]
		return ""
	}
	at := 1
	if verb == "-I" && len(rest) > 0 {
		if n, err := strconv.Atoi(rest[0]); err == nil {
			at, rest = n, rest[1:]
		}
	}
	text := fakeRule(name, rest)
	if why := t.leads(line{words: rest}.jump()); why != "" {
		return why
	}
	place := slices.Index(c.rules, text)
	switch verb {
	case "-A":
		c.rules = append(c.rules, text)
	case "-I":
		if at > len(c.rules)+1 {
			return "index of insertion too big"
		}
		c.rules = slices.Insert(c.rules, at-1, text)
	case "-D":
		if place < 0 {
			return "no matching rule"
		}
		c.rules = slices.Delete(c.rules, place, place+1)
	case "-C":
		if place < 0 {
			return "no matching rule"
		}
	default:
		return "unknown command"
	}
	return ""
}

func (t *fakeTable) leads(target string) (why string) {
	if target == "" || slices.Contains([]string{"ACCEPT", "DROP", "RETURN"}, target) || t.chains[target] != nil {
		return ""
	}
	return "no target by that name"
}

func (t *fakeTable) deleteChain(name string) (why string) {
	if len(t.chains[name].rules) > 0 || t.chains[name].policy != "-" {
		return "chain is not empty"
	}
	for _, c := range t.chains {
		for _, r := range c.rules {
			if words, _ := splitWords(r); (line{words: words}).jump() == name {
				return "chain is in use"
			}
		}
	}
	delete(t.chains, name)
	return ""
}

// fakeRule is a rule as the real programs list it: with masks, and with
// matches in their order.
func fakeRule(chain string, words []string) string {
	r, ok := parseRule(chain, words)
	if !ok {
		return joinWords(words)
	}
	words = r.args()
	for i := range words[1:] {
		if words[i] == "-s" || words[i] == "-d" {
			words[i+1] = fmt.Sprintf("%s/%d", words[i+1], r.src.BitLen())
		}
	}
	return joinWords(words)
}

func (t *fakeTable) save() string {
	if t == nil {
		return ""
	}
	var s strings.Builder
	fmt.Fprintln(&s, "# Generated by the fake\n*filter")
	names := slices.Sorted(maps.Keys(t.chains))
	for _, name := range names {
		fmt.Fprintf(&s, ":%s %s [7:42]\n", name, t.chains[name].policy)
	}
	for _, name := range names {
		for _, r := range t.chains[name].rules {
			fmt.Fprintf(&s, "-A %s %s\n", name, r)
		}
	}
	fmt.Fprintln(&s, "COMMIT\n# Completed")
	return s.String()
}

// Generation is part of Kernel.
func (k *fake) Generation() (uint32, error) {
	if k.backend == Legacy {
		return 0, unix.EOPNOTSUPP
	}
	return k.generation, nil
}

// DropTable is part of Kernel.
func (k *fake) DropTable(ipv6 bool, generation uint32) error {
	if generation != k.generation {
		return unix.ERESTART
	}
	f := ip4
	if ipv6 {
		f = ip6
	}
	if k.tables[f] == nil {
		return unix.ENOENT
	}
	delete(k.tables, f)
	k.generation++
	return nil
}

func newFake(b Backend) *fake {
	return &fake{backend: b, tables: map[family]*fakeTable{}}
}

func (k *fake) firewall() *Firewall { return &Firewall{Run: k.run, Kernel: k} }
