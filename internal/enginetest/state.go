package enginetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// State is everything of the engine that something could be left in, as text
// of one fact per line: containers, networks, volumes, mounts,
// interfaces and the rules of both firewalls. Two states are equal if and
// only if nothing was left or lost between them.
func (e *Engine) State() (string, error) {
	var lines []string
	add := func(what string, facts []string) {
		for _, fact := range facts {
			lines = append(lines, what+" "+fact)
		}
	}
	for what, args := range map[string][]string{
		"container": {"docker", "ps", "--all", "--no-trunc", "--format", "{{.Names}} {{.ID}} {{.State}}"},
		"network":   {"docker", "network", "ls", "--no-trunc", "--format", "{{.Name}} {{.ID}}"},
		"volume":    {"docker", "volume", "ls", "--format", "{{.Name}}"},
		"link":      {"ip", "-brief", "link"},
		"rule":      {"ip", "rule"},
		"iptables":  {"iptables-save"},
		"ip6tables": {"ip6tables-save"},
	} {
		path, err := lookPath(args[0])
		if err != nil {
			return "", err
		}
		out, err := e.Command(context.Background(), path, args[1:]...).Output()
		if err != nil {
			return "", fmt.Errorf("listing %ss: %w", what, err)
		}
		add(what, facts(string(out)))
	}
	// The containers' network namespaces are among the mounts. Their files are
	// not counted: dockerd unmounts them at once, but removes them once a minute.
	add("mount", mountsBelow(e.Dir()))
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// facts are the lines without comments and packet counters.
func facts(text string) (facts []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(counters.ReplaceAllString(line, ""))
		if line != "" && !strings.HasPrefix(line, "#") {
			facts = append(facts, line)
		}
	}
	return facts
}

// LeavesNothing fails the test if, at its end, the engine's State is not what
// it is now. Call it before anything else registers its own clean-up.
func (e *Engine) LeavesNothing(t testing.TB) {
	t.Helper()
	before, err := e.State()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := until(10*time.Second, func() error {
			after, err := e.State()
			if err == nil && after != before {
				err = fmt.Errorf("the test left the engine changed (-lost +left):\n%s", diff(before, after))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func diff(before, after string) string {
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out, "\n")
}

// FDs lists what the descriptors of a process are open on, sorted.
func FDs(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var fds []string
	for _, entry := range entries {
		to, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err == nil { // else it was closed meanwhile
			fds = append(fds, to)
		}
	}
	slices.Sort(fds)
	return fds, nil
}

// NetNamespaces lists the host's named network namespaces, without those of
// engines.
func NetNamespaces() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), prefix) {
			names = append(names, entry.Name())
		}
	}
	return names, err
}
