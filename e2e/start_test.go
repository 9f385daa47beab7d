package e2e

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestFirstInstant connects as the recipient's very first act: the link has to
// stand before the program runs, every time. Several start at once, so that
// the engine and the ambassador are never at rest.
func TestFirstInstant(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	const times, atOnce = 200, 4
	var started atomic.Int32
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := started.Add(1); i <= times && !t.Failed(); i = started.Add(1) {
				r := h.try(t, "--rm", "--link", "db:db", h.busybox, "nc", "db", "5432")
				if r.code != 0 || r.out != "db\n" {
					t.Errorf("run %d of %d: exit status %d, printed %q, %q", i, times, r.code, r.out, r.err)
				}
			}
		})
	}
	all.Wait()
}

// TestWrappedEntrypoints starts containers in all the ways docker run has to
// change what runs and as whom; each must reach its source at once.
func TestWrappedEntrypoints(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	for name, args := range map[string][]string{
		"plain command":       {h.busybox, "nc", "db", "5432"},
		"entrypoint":          {"--entrypoint", "nc", h.busybox, "db", "5432"},
		"entrypoint by path":  {"--entrypoint", "/bin/nc", h.busybox, "db", "5432"},
		"user":                {"--user", "1234:5678", h.busybox, "nc", "db", "5432"},
		"read-only":           {"--read-only", h.busybox, "nc", "db", "5432"},
		"working directory":   {"-w", "/bin", "--entrypoint", "./nc", h.busybox, "db", "5432"},
		"init":                {"--init", h.busybox, "nc", "db", "5432"},
		"no capability":       {"--cap-drop", "ALL", "--security-opt", "no-new-privileges", h.busybox, "nc", "db", "5432"},
		"host's processes":    {"--pid", "host", h.busybox, "nc", "db", "5432"},
		"few processes":       {"--pids-limit", "16", h.busybox, "nc", "db", "5432"},
		"little memory":       {"--memory", "16m", h.busybox, "nc", "db", "5432"},
		"terminal":            {"-t", h.busybox, "nc", "db", "5432"},
		"mounted temp folder": {"--tmpfs", "/run", "--tmpfs", "/tmp", h.busybox, "nc", "db", "5432"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := h.linkrun(t, append([]string{"--rm", "--link", "db"}, args...)...)
			if strings.TrimSpace(got) != "db" {
				t.Errorf("answered %q", got)
			}
		})
	}
}

// TestExitStatusOfTheProgram holds linkrun's init to what runc and a shell do.
func TestExitStatusOfTheProgram(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"its own", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"not found", []string{"no-such-program"}, 127, "executable file not found in $PATH"},
		{"path not found", []string{"/no/such"}, 127, "no such file or directory"},
		{"directory", []string{"/etc"}, 126, "directory"},
		{"not executable", []string{"/etc/hosts"}, 126, "permission denied"},
		{"signal", []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := h.try(t, append([]string{"--rm", "--link", "db", h.busybox}, c.args...)...)
			if r.code != c.code || !strings.Contains(r.err, c.says) {
				t.Errorf("exit status %d, want %d; it said %q, want %q", r.code, c.code, r.err, c.says)
			}
		})
	}
}

// TestNoAmbassadorNoStart starts a recipient behind the ambassador's back: it
// has to say so and stop, not run with links that are not there.
func TestNoAmbassadorNoStart(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.start(t, "web", "--link", "db", "--link-timeout", "300ms", h.busybox, "sleep", "1000")
	h.agent.stop(t)
	h.docker(t, "stop", "-t", "0", "web")
	r := h.docker(t, "start", "web")
	if r != "web" {
		t.Fatalf("docker start printed %q", r)
	}
	if code := h.docker(t, "wait", "web"); code != "125" {
		t.Errorf("exit status %s, want 125", code)
	}
	if said := h.logs(t, "web"); !strings.Contains(said, "linkrun: hint:") {
		t.Errorf("the container's log says %q", said)
	}
	h.startAgent(t)
	h.docker(t, "start", "web")
	h.answers(t, "web", "db", 5432, "db")
}
