// Package e2e runs the programs as users do, against a real Docker Engine.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/internal/logbook"
)

var suite enginetest.Suite

func TestMain(m *testing.M) { suite.Main(m) }

// soon bounds every wait for something that should happen at once. No test
// measures with it.
const soon = 10 * time.Second

// host is an engine with an ambassador beside it.
type host struct {
	*enginetest.Engine
	bin     enginetest.Binaries
	dir     string   // of the ambassador
	serve   []string // further arguments of `ambassador serve`
	agent   *ambassador
	busybox string

	identity string // where its identity is kept, on a host of two
}

// newHost starts an ambassador on the engine the tests share. It stops with
// the test, which fails if anything is left behind.
func newHost(t *testing.T) *host {
	t.Helper()
	return newHostOn(t, suite.Engine(t))
}

func newHostOn(t *testing.T, e *enginetest.Engine, serve ...string) *host {
	t.Helper()
	e.Image(t, "busybox") // which stays
	e.LeavesNothing(t)
	return newHostToWreck(t, e, serve...)
}

// newHostToWreck is newHostOn for a test that does things to the engine which
// nobody puts right.
func newHostToWreck(t *testing.T, e *enginetest.Engine, serve ...string) *host {
	t.Helper()
	h := &host{Engine: e, serve: serve, bin: suite.Binaries(t), dir: filepath.Join(t.TempDir(), "ambassador")}
	h.busybox = e.Image(t, "busybox")
	h.startAgent(t)
	t.Cleanup(func() {
		h.agent.stop(t)
		// What is enforced outlives the ambassador that enforced it.
		if r := h.ambassador(t, "icc", "off"); r.code != 0 {
			t.Errorf("icc off: exit status %d\n%s", r.code, r.err)
		}
	})
	return h
}

// ambassador is a running `ambassador serve`.
type ambassador struct {
	cmd  *exec.Cmd
	log  logbook.Log
	done chan error
}

// startAgent starts an ambassador and returns when it answers.
func (h *host) startAgent(t *testing.T) {
	t.Helper()
	program := h.bin.Ambassador
	if h.bin.Checked != "" {
		program = h.bin.Checked
	}
	a := &ambassador{done: make(chan error, 1)}
	args := append([]string{"serve", "--dir", h.dir, "--log", "debug"}, h.serve...)
	a.cmd = h.Command(context.Background(), program, args...)
	a.cmd.Stderr = &a.log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { a.done <- a.cmd.Wait() }()
	h.agent = a
	enginetest.Poll(t, soon, func() error {
		select {
		case err := <-a.done:
			a.done <- err
			t.Fatalf("the ambassador ended: %v\n%s", err, a.log.String())
		default:
		}
		_, err := control.Dial(h.dir).Status(t.Context())
		return err
	})
}

// stop stops the ambassador as a service manager would.
func (a *ambassador) stop(t *testing.T) {
	t.Helper()
	a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-a.done:
		a.done <- err
		if err != nil {
			t.Errorf("the ambassador ended with %v\n%s", err, a.log.String())
		}
	case <-time.After(soon):
		a.kill()
		t.Errorf("the ambassador did not stop\n%s", a.log.String())
	}
	if t.Failed() {
		t.Logf("the ambassador's log:\n%s", a.log.String())
	}
}

// kill ends the ambassador as the kernel would.
func (a *ambassador) kill() {
	a.cmd.Process.Kill()
	err := <-a.done
	a.done <- err
}

// ambassador runs a command of the ambassador's, whatever comes of it.
func (h *host) ambassador(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := h.Command(ctx, h.bin.Ambassador, args...)
	cmd.Env = append(h.Env(), "AMBASSADOR_DIR="+h.dir)
	return run(t, cmd)
}

// result is what a program printed and how it ended.
type result struct {
	out, err string
	code     int
}

// try runs linkrun, whatever comes of it.
func (h *host) try(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := h.Command(ctx, h.bin.Linkrun, args...)
	cmd.Env = append(h.Env(), "AMBASSADOR_DIR="+h.dir)
	return run(t, cmd)
}

func run(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// linkrun runs linkrun, which must succeed, and returns what it printed.
func (h *host) linkrun(t *testing.T, args ...string) string {
	t.Helper()
	r := h.try(t, args...)
	if r.code != 0 {
		t.Fatalf("linkrun %q: exit status %d\n%s%s\nthe ambassador's log:\n%s", args, r.code, r.out, r.err, h.agent.log.String())
	}
	return r.out
}

// start runs linkrun -d and removes the container with the test.
func (h *host) start(t *testing.T, name string, args ...string) {
	t.Helper()
	t.Cleanup(func() { h.remove(t, name) })
	h.linkrun(t, append([]string{"-d", "--name", name}, args...)...)
}

// source runs a plain container in the background and removes it with the
// test.
func (h *host) source(t *testing.T, name string, args ...string) {
	t.Helper()
	t.Cleanup(func() { h.remove(t, name) })
	h.docker(t, append([]string{"run", "-d", "--name", name}, args...)...)
}

func (h *host) remove(t *testing.T, name string) {
	t.Helper()
	h.docker(t, "rm", "-f", "-v", name)
}

func (h *host) docker(t *testing.T, args ...string) string {
	t.Helper()
	return h.MustDocker(t, args...)
}

// logs is everything a container said.
func (h *host) logs(t *testing.T, container string) string {
	t.Helper()
	r := run(t, h.Command(t.Context(), "docker", "logs", container))
	return r.out + r.err
}

// eventuallyLogs waits until the ambassador logged all of these in one line.
func (h *host) eventuallyLogs(t *testing.T, words ...string) {
	t.Helper()
	enginetest.Poll(t, soon, func() error {
		for line := range strings.Lines(h.agent.log.String()) {
			missing := slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
			if !missing {
				return nil
			}
		}
		return fmt.Errorf("no line with %q in\n%s", words, h.agent.log.String())
	})
}

// links asks the ambassador.
func (h *host) links(t *testing.T) []control.Link {
	t.Helper()
	list, err := control.Dial(h.dir).Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// echo is a container that answers every connection to the ports with its
// name and closes it.
func (h *host) echo(t *testing.T, name string, flags []string, ports ...int) {
	t.Helper()
	h.source(t, name, echoArgs(h, flags, name, ports...)...)
}

func echoArgs(h *host, flags []string, answer string, ports ...int) []string {
	args := append([]string{}, flags...)
	var script strings.Builder
	for _, p := range ports {
		args = append(args, fmt.Sprintf("--expose=%d", p))
		fmt.Fprintf(&script, "nc -ll -p %d -e echo %s & ", p, answer)
	}
	return append(args, h.busybox, "sh", "-c", script.String()+"wait")
}

// ask connects from inside a container and returns the answer, or why there
// was none.
func (h *host) ask(container, address string, port int) (string, error) {
	out, err := h.Docker("exec", container, "nc", "-w", "2", address, fmt.Sprint(port))
	return out, err
}

// answers waits until the link carries.
func (h *host) answers(t *testing.T, container, address string, port int, want string) {
	t.Helper()
	enginetest.Poll(t, soon, func() error {
		got, err := h.ask(container, address, port)
		if err == nil && got != want {
			err = fmt.Errorf("%s:%d answered %q, want %q", address, port, got, want)
		}
		return err
	})
}
