package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestOwnServerOnTheSamePort has a recipient serve the very port its source
// exposes, on all addresses and on one, started before and after the link.
func TestOwnServerOnTheSamePort(t *testing.T) {
	const port = 5000
	for _, own := range []string{"0.0.0.0", "127.0.0.1"} {
		for _, first := range []string{"link", "server"} {
			t.Run(fmt.Sprintf("%s, %s first", own, first), func(t *testing.T) {
				h := newHost(t)
				h.echo(t, "app", nil, port)
				server := fmt.Sprintf("mkdir -p /srv; echo own >/srv/index.html; httpd -f -p %s:%d -h /srv", own, port)
				if first == "link" {
					h.start(t, "web", "--link", "app", h.busybox, "sh", "-c", server)
				} else {
					// The server runs; then another ambassador has to make the link anew.
					h.start(t, "web", "--link", "app", h.busybox, "sh", "-c", server)
					h.serves(t, "web", "127.0.0.1", port, "own")
					h.agent.kill()
					h.startAgent(t)
				}
				h.answers(t, "web", "app", port, "app")
				h.serves(t, "web", "127.0.0.1", port, "own")
				if own == "0.0.0.0" {
					address := h.docker(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
					h.serves(t, "web", address, port, "own")
				}

				// With the source gone, its name must not lead to the own server.
				h.docker(t, "stop", "-t", "0", "app")
				enginetest.Poll(t, soon, func() error {
					got, err := h.ask("web", "app", port)
					if err == nil {
						return fmt.Errorf("answered %q", got)
					}
					if !strings.Contains(err.Error(), "refused") {
						return err
					}
					return nil
				})
				h.serves(t, "web", "127.0.0.1", port, "own")
			})
		}
	}
}

// serves waits until a web server answers inside the container.
func (h *host) serves(t *testing.T, container, address string, port int, want string) {
	t.Helper()
	h.eventually(t, want, "exec", container, "wget", "-qO-", fmt.Sprintf("http://%s:%d/", address, port))
}
