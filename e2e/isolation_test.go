package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// The ports of a source: one that is exposed and one that is not.
const exposed, hidden = 5432, 9999

// TestNothingButTheLink puts recipient and source on all kinds of networks
// that let no packet pass between containers, and looks for what else passes.
func TestNothingButTheLink(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"closed-a", "closed-b"} {
		h.docker(t, "network", "create", "-o", "com.docker.network.bridge.enable_icc=false", name)
		t.Cleanup(func() { h.docker(t, "network", "rm", name) })
	}
	for i, c := range []struct{ recipient, source string }{
		{"bridge", "bridge"},
		{"closed-a", "closed-a"},
		{"closed-a", "closed-b"},
		{"bridge", "closed-a"},
		{"closed-a", "bridge"},
		{"none", "bridge"},
		{"bridge", "none"},
		{"none", "none"},
		{"closed-a", "none"},
	} {
		t.Run(c.recipient+" to "+c.source, func(t *testing.T) {
			t.Parallel()
			source, recipient := fmt.Sprint("source", i), fmt.Sprint("recipient", i)
			h.source(t, source, "--network", c.source, fmt.Sprintf("--expose=%d", exposed), h.busybox, "sh", "-c",
				fmt.Sprintf("nc -ll -p %d -e echo exposed & nc -ll -p %d -e echo hidden & wait", exposed, hidden))
			h.start(t, recipient, "--network", c.recipient, "--link", source+":db", h.busybox, "sh", "-c",
				fmt.Sprintf("nc -ll -p %d -e echo recipient", exposed))

			h.answers(t, recipient, "db", exposed, "exposed")
			h.answers(t, recipient, source, exposed, "exposed")
			h.refuses(t, recipient, "db", hidden)
			h.refuses(t, recipient, "127.77.0.1", exposed)

			// Not by address either, and not the other way round.
			var tries sync.WaitGroup
			for _, way := range []struct{ from, to string }{{recipient, source}, {source, recipient}} {
				if address := h.address(t, way.to); address != "" {
					for _, port := range []int{exposed, hidden} {
						tries.Go(func() {
							if got, err := h.ask(way.from, address, port); err == nil {
								t.Errorf("%s reached port %d of %s and got %q", way.from, port, way.to, got)
							}
						})
					}
				}
			}
			tries.Wait()
			// In the source, the address of the link is one of its own.
			if got, err := h.ask(source, "127.77.0.2", exposed); err == nil && got != "exposed" {
				t.Errorf("the source reached %q at an address of links", got)
			}
		})
	}
}

// refuses checks that nothing at the address answers, at once.
func (h *host) refuses(t *testing.T, container, address string, port int) {
	t.Helper()
	got, err := h.ask(container, address, port)
	if err == nil {
		t.Errorf("%s reached %s:%d and got %q", container, address, port, got)
	} else if !strings.Contains(err.Error(), "refused") {
		t.Errorf("%s:%d: %v, want a refusal", address, port, err)
	}
}

// address is a container's on its first network, "" when it has none.
func (h *host) address(t *testing.T, container string) string {
	t.Helper()
	return strings.TrimSpace(h.docker(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", container))
}

// TestAStrangerHasNoLink looks from a container without links for those of
// others.
func TestAStrangerHasNoLink(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, exposed)
	h.start(t, "web", "--link", "db", h.busybox, "sleep", "1000")
	h.answers(t, "web", "db", exposed, "db")
	h.source(t, "stranger", h.busybox, "sleep", "1000")
	for _, address := range []string{"127.77.0.2", h.address(t, "db")} {
		if got, err := h.ask("stranger", address, exposed); err == nil {
			t.Errorf("the stranger reached %s and got %q", address, got)
		}
	}
}
