package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestManyLinksAndPorts gives one recipient a hundred links, and another a
// source with a thousand ports. What the ambassador needs for it is logged;
// what it must not do is need a descriptor for each.
func TestManyLinksAndPorts(t *testing.T) {
	h := newHost(t)
	pid := h.agent.cmd.Process.Pid
	before := usage(t, pid)
	t.Logf("before: %v", before)

	t.Run("1,000 ports", func(t *testing.T) {
		const first, last = 20000, 20999
		h.source(t, "wide", fmt.Sprintf("--expose=%d-%d", first, last), h.busybox, "sh", "-c",
			fmt.Sprintf("nc -ll -p %d -e echo first & nc -ll -p %d -e echo last & wait", first, last))
		h.start(t, "web", "--link", "wide", h.busybox, "sleep", "1000")
		h.answers(t, "web", "wide", first, "first")
		h.answers(t, "web", "wide", last, "last")
		h.refuses(t, "web", "wide", last+1)
		after := usage(t, pid)
		t.Logf("after: %v", after)
		if more := after.descriptors - before.descriptors; more > 40 {
			t.Errorf("1,000 ports took %d descriptors", more)
		}
		if env := h.docker(t, "exec", "web", "sh", "-c", "env | grep -c ^WIDE_PORT_"); env != strconv.Itoa(1000*4+4) {
			t.Errorf("%s variables", env)
		}
	})
	t.Run("100 links", func(t *testing.T) {
		const links, sources = 100, 4
		args := []string{}
		for i := range sources {
			h.echo(t, fmt.Sprintf("s%d", i), nil, 7000)
		}
		for i := range links {
			args = append(args, "--link", fmt.Sprintf("s%d:alias%d", i%sources, i))
		}
		before := usage(t, pid)
		h.start(t, "web", append(args, h.busybox, "sleep", "1000")...)
		for _, i := range []int{0, 1, 57, links - 1} {
			h.answers(t, "web", fmt.Sprintf("alias%d", i), 7000, fmt.Sprintf("s%d", i%sources))
		}
		after := usage(t, pid)
		t.Logf("after: %v", after)
		if more := after.descriptors - before.descriptors; more > 60 {
			t.Errorf("100 links took %d descriptors", more)
		}
	})
	enginetest.Poll(t, soon, func() error {
		if left := h.links(t); len(left) != 0 {
			return fmt.Errorf("links left: %v", left)
		}
		return nil
	})
}

// need is what a process holds.
type need struct {
	descriptors, threads, kilobytes int
}

func (n need) String() string {
	return fmt.Sprintf("%d descriptors, %d threads, %d kB resident", n.descriptors, n.threads, n.kilobytes)
}

func usage(t *testing.T, pid int) (n need) {
	t.Helper()
	fds, err := enginetest.FDs(pid)
	if err != nil {
		t.Fatal(err)
	}
	n.descriptors = len(fds)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "Threads:":
			n.threads, _ = strconv.Atoi(fields[1])
		case fields[0] == "VmRSS:":
			n.kilobytes, _ = strconv.Atoi(fields[1])
		}
	}
	return n
}
