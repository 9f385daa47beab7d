package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
)

// reason is why the links of a recipient are down, as the ambassador tells.
func (h *host) reason(t *testing.T, recipient string) (reason string) {
	t.Helper()
	for _, l := range h.links(t) {
		if l.Recipient == recipient && l.State == control.StateDown {
			reason = l.Reason
		}
	}
	return reason
}

// TestSharedNetworksGetNoLink labels containers whose network is not their
// own: a link there would be open to the host, or take the place of another
// container's.
func TestSharedNetworksGetNoLink(t *testing.T) {
	// The engine keeps something for containers on the host's network, from
	// the first one on.
	e := suite.Engine(t)
	e.MustDocker(t, "run", "--rm", "--network", "host", e.Image(t, "busybox"), "true")
	h := newHostOn(t, e)
	h.echo(t, "db", nil, 5432)
	h.echo(t, "other", nil, 5432)
	h.start(t, "web", "--link", "db", h.busybox, "sleep", "1000")
	for _, network := range []string{"host", "container:web"} {
		t.Run(network, func(t *testing.T) {
			h.source(t, "guest", "--network", network, "--label", "ambassador.link.x=other", h.busybox, "sleep", "1000")
			h.eventuallyLogs(t, "not linking", "recipient=guest", "hint=")
			// What is logged may be of the guest before.
			enginetest.Poll(t, soon, func() error {
				if got := h.reason(t, "guest"); !strings.Contains(got, "everyone who shares it") {
					return fmt.Errorf("links says %q", got)
				}
				return nil
			})
			if got, err := h.ask("guest", "127.77.0.2", 5432); network == "host" && err == nil {
				t.Errorf("the host reaches %q", got)
			}
			h.answers(t, "web", "db", 5432, "db")
		})
	}
}

// TestImageRemoved restarts a recipient whose image is gone: which labels are
// its own cannot be told any more, and it has to say so.
func TestImageRemoved(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.source(t, "maker", h.busybox, "true")
	h.docker(t, "wait", "maker")
	h.docker(t, "commit", "maker", "gone")
	h.start(t, "web", "--link", "db", "gone", "sleep", "1000")
	h.docker(t, "stop", "-t", "0", "web")
	h.docker(t, "rmi", "-f", "gone")

	h.docker(t, "start", "web")
	if code := h.docker(t, "wait", "web"); code != "125" {
		t.Errorf("exit status %s, want 125", code)
	}
	if said := h.logs(t, "web"); !strings.Contains(said, "its image was removed") || !strings.Contains(said, "linkrun: hint:") {
		t.Errorf("it said %q", said)
	}
}

// TestGateTaken has somebody in a recipient listen where its gate would be. It
// harms nobody but itself: an ambassador that starts says that it is ready, and
// does not try for ever.
func TestGateTaken(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.start(t, "web", "--link", "db", h.busybox, "sleep", "1000")
	enginetest.Poll(t, soon, func() error { _, err := h.Docker("exec", "web", "pidof", "sleep"); return err }) // its init is through
	h.agent.stop(t)

	pid := h.docker(t, "inspect", "-f", "{{.State.Pid}}", "web")
	squatter := h.Command(t.Context(), "nsenter", "--net=/proc/"+pid+"/ns/net", "--",
		"socat", "-u", "ABSTRACT-LISTEN:ambassador.gate", "-")
	if err := squatter.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		squatter.Process.Kill()
		squatter.Wait()
	})
	enginetest.Poll(t, soon, func() error {
		_, err := h.Docker("exec", "web", "grep", "-q", "@ambassador.gate", "/proc/net/unix")
		return err
	})

	h.startAgent(t)
	h.eventuallyLogs(t, "the gate is taken", "recipient=web")
	h.eventuallyLogs(t, "msg=ready")
	h.answers(t, "web", "db", 5432, "db")
	h.start(t, "other", "--link", "db", h.busybox, "sleep", "1000")
	h.answers(t, "other", "db", 5432, "db")
	if log := h.agent.log.String(); strings.Contains(log, "trying again") {
		t.Errorf("it goes on trying:\n%s", log)
	}
}
