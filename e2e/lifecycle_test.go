package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestSourceComesAndGoes takes a running recipient through all that may happen
// to its source.
func TestSourceComesAndGoes(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.start(t, "web", "--link", "db:webdb", h.busybox, "sleep", "1000")
	h.answers(t, "web", "webdb", 5432, "db")
	address := h.address(t, "db")

	t.Run("stopped", func(t *testing.T) {
		h.docker(t, "stop", "-t", "0", "db")
		enginetest.Poll(t, soon, func() error { return h.refused("web", "webdb", 5432) })
		if got := h.docker(t, "exec", "web", "echo", "alive"); got != "alive" {
			t.Errorf("docker exec printed %q", got)
		}
		if l := h.links(t); len(l) != 1 || l[0].State != "down" || !strings.Contains(l[0].Reason, `"db" is not running`) {
			t.Errorf("links: %+v", l)
		}
	})
	t.Run("restarted with another address", func(t *testing.T) {
		// Somebody else has its address by now.
		h.source(t, "squatter", h.busybox, "sleep", "1000")
		if got := h.address(t, "squatter"); got != address {
			t.Logf("the squatter got %s instead of %s", got, address)
		}
		h.docker(t, "start", "db")
		h.back(t, "db")
		if got := h.address(t, "db"); got == address {
			t.Errorf("the address did not change: the case was not tried")
		}
	})
	t.Run("restarted at once", func(t *testing.T) {
		h.docker(t, "restart", "-t", "0", "db")
		h.back(t, "db")
	})
	t.Run("renamed", func(t *testing.T) {
		h.docker(t, "rename", "db", "db-old")
		h.back(t, "db")
		h.agent.kill()
		h.startAgent(t)
		h.back(t, "db") // the labels alone say where it went
	})
	t.Run("another takes the name", func(t *testing.T) {
		h.docker(t, append([]string{"run", "-d", "--name", "db"}, echoArgs(h, nil, "new", 5432)...)...)
		h.back(t, "new")
		h.docker(t, "rm", "-f", "db-old")
		h.back(t, "new")
	})
	t.Run("re-created with other ports", func(t *testing.T) {
		h.docker(t, "rm", "-f", "db")
		enginetest.Poll(t, soon, func() error { return h.refused("web", "webdb", 5432) })
		h.docker(t, append([]string{"run", "-d", "--name", "db"}, echoArgs(h, nil, "newer", 5432, 6543)...)...)
		h.back(t, "newer")
		h.answers(t, "web", "webdb", 6543, "newer")
	})
}

// back waits until the link of web answers, and says how long that took.
func (h *host) back(t *testing.T, want string) {
	t.Helper()
	start := time.Now()
	h.answers(t, "web", "webdb", 5432, want)
	t.Logf("the next connection works after %v", time.Since(start).Round(time.Millisecond))
}

func (h *host) refused(container, address string, port int) error {
	got, err := h.ask(container, address, port)
	switch {
	case err == nil:
		return fmt.Errorf("%s:%d answered %q", address, port, got)
	case !strings.Contains(err.Error(), "refused"):
		return err
	}
	return nil
}

// TestSourceLosesItsAddress stops a source in the state Docker leaves one in
// for a moment: it still runs, its address is gone, and a connect gets no
// answer. Whoever waits has to be told when the source is down, not later.
func TestSourceLosesItsAddress(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.start(t, "web", "--link", "db", h.busybox, "sleep", "1000")
	h.answers(t, "web", "db", 5432, "db")
	pid := h.docker(t, "inspect", "-f", "{{.State.Pid}}", "db")
	if out, err := h.Command(t.Context(), "nsenter", "--net=/proc/"+pid+"/ns/net", "ip", "address", "flush", "dev", "eth0").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	client := h.Command(t.Context(), "docker", "exec", "web", "nc", "db", "5432")
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, soon, func() error {
		if l := h.links(t); len(l) != 1 || l[0].Open != 1 {
			return fmt.Errorf("no connection is open: %+v", l)
		}
		return nil
	})
	h.docker(t, "kill", "db")
	client.Wait() // its status depends on how far it got
	if l := h.links(t); len(l) != 1 || l[0].Open != 0 || l[0].Failures["unreachable"] != 1 || l[0].Failures["connect timeout"] != 0 {
		t.Errorf("links: %+v", l)
	}
}

// TestRecipientRestarts restarts a recipient, and looks whether it has its
// links and what they say now.
func TestRecipientRestarts(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", []string{"-e", "COLOUR=red"}, 5432)
	h.start(t, "web", "--link", "db:webdb", h.busybox, "sh", "-c", "env; nc webdb 5432; sleep 1000")
	h.docker(t, "rm", "-f", "db")
	h.docker(t, append([]string{"run", "-d", "--name", "db"}, echoArgs(h, []string{"-e", "COLOUR=blue", "-e", "SHAPE=round"}, "again", 5432)...)...)
	before := h.logs(t, "web")
	h.docker(t, "restart", "-t", "0", "web")
	enginetest.Poll(t, soon, func() error {
		after, _ := strings.CutPrefix(h.logs(t, "web"), before)
		for _, want := range []string{"WEBDB_ENV_COLOUR=blue", "WEBDB_ENV_SHAPE=round", "\nagain"} {
			if !strings.Contains(after, want) {
				return fmt.Errorf("no %q after the restart in %q", want, after)
			}
		}
		return nil
	})
	h.back(t, "again")
}

// TestAmbassadorKilled kills the ambassador; what it left must not be in the
// way of the next one.
func TestAmbassadorKilled(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.source(t, "slow", "--expose=6000", h.busybox, "nc", "-ll", "-p", "6000", "-e", "sh", "-c", "echo half; exec sleep 1000")
	h.start(t, "web", "--link", "slow:slow", "--link", "db:webdb", h.busybox, "sleep", "1000")
	h.back(t, "db")
	for range 3 {
		open := h.dialIn(t, "web", "127.77.0.2:6000")
		if got, err := bufio.NewReader(open).ReadString('\n'); got != "half\n" {
			t.Fatalf("%q, %v from a source that has not finished", got, err)
		}
		h.agent.kill()
		// Half must not look like the whole.
		if n, err := open.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection that was open reads %d bytes, %v, want a reset", n, err)
		}
		if err := h.refused("web", "webdb", 5432); err != nil {
			t.Error("without an ambassador:", err)
		}
		h.startAgent(t)
		h.back(t, "db")
	}
}

// TestEngineRestarts restarts the engine under running containers.
func TestEngineRestarts(t *testing.T) {
	e := enginetest.Start(t, enginetest.Options{LiveRestore: true})
	h := newHostOn(t, e)
	h.echo(t, "db", nil, 5432)
	h.start(t, "web", "--link", "db:webdb", h.busybox, "sleep", "1000")
	h.back(t, "db")
	if err := e.Restart(); err != nil {
		t.Fatal(err)
	}
	h.back(t, "db")
	// And it goes on seeing what happens.
	h.docker(t, "restart", "-t", "0", "db")
	h.back(t, "db")
}
