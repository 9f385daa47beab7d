package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestDockerPlugin calls linkrun as docker does that finds it among its
// plugins, also with flags of docker's own.
func TestDockerPlugin(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	config := t.TempDir()
	plugins := filepath.Join(config, "cli-plugins")
	if err := errors.Join(os.Mkdir(plugins, 0o755), os.Symlink(h.bin.Linkrun, filepath.Join(plugins, "docker-linkrun"))); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"plain":           {"linkrun"},
		"host as a flag":  {"--host", h.Host(), "linkrun"},
		"level as a flag": {"-l", "error", "linkrun"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := h.Command(t.Context(), "docker", append(args, "--rm", "--link", "db:webdb", h.busybox, "nc", "webdb", "5432")...)
			cmd.Env = append(h.Env(), "AMBASSADOR_DIR="+h.dir, "DOCKER_CONFIG="+config)
			if r := run(t, cmd); r.code != 0 || r.out != "db\n" {
				t.Errorf("exit status %d, printed %q, said %q", r.code, r.out, r.err)
			}
		})
	}
}

// TestAmbassadorIsStarted has linkrun find none, twice at the same time.
func TestAmbassadorIsStarted(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.agent.stop(t)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if r := h.try(t, "--rm", "--link", "db", h.busybox, "nc", "db", "5432"); r.code != 0 || r.out != "db\n" {
				t.Errorf("exit status %d, printed %q, said %q", r.code, r.out, r.err)
			}
		})
	}
	both.Wait()
	status, err := control.Dial(h.dir).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, soon, func() error {
		// It is nobody's child any more once linkrun has become docker.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", status.PID))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return fmt.Errorf("ambassador %d is still there", status.PID)
		}
		return nil
	})
}

// TestLeavesNothing stops an ambassador over running links, and looks at what
// it had.
func TestLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", []string{"--expose=53/udp"}, 5432)
	before := h.state(t)
	inSource, inRecipient := h.inside(t, "db"), ""
	h.start(t, "web", "--link", "db", h.busybox, "sleep", "1000")
	h.answers(t, "web", "db", 5432, "db")
	inRecipient = h.inside(t, "web")
	h.agent.stop(t)
	if got := h.inside(t, "db"); got != inSource {
		t.Errorf("in the source's network:\n%s\nbefore:\n%s", got, inSource)
	}
	if got := h.inside(t, "web"); got == inRecipient || strings.Contains(got, "127.77.0.1") {
		t.Errorf("in the recipient's network:\n%s", got)
	}
	if files, err := os.ReadDir(h.dir); err != nil || len(files) != 1 || files[0].Name() != "lock" {
		t.Errorf("in the ambassador's folder: %v, %v", files, err)
	}
	h.remove(t, "web")
	if now := h.state(t); now != before {
		t.Errorf("the engine:\n%s\nbefore:\n%s", now, before)
	}
	h.startAgent(t)
}

// inside is what there is in a container's network namespace: listeners,
// rules and routes.
func (h *host) inside(t *testing.T, container string) string {
	t.Helper()
	ns := "--net=/proc/" + h.docker(t, "inspect", "-f", "{{.State.Pid}}", container) + "/ns/net"
	r := run(t, h.Command(context.Background(), "nsenter", ns, "sh", "-c",
		"ss -Hlntux; ip rule; ip route show table all; cat /proc/sys/net/ipv4/tcp_fwmark_accept"))
	if r.code != 0 {
		t.Fatalf("looking into %s: %s", container, r.err)
	}
	return r.out
}
