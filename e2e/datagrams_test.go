package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestDNS resolves names over a link to a real server, by UDP and by TCP, and
// takes the server through a restart.
func TestDNS(t *testing.T) {
	h := newHost(t)
	image := h.Image(t, "dns")
	h.source(t, "ns", image)
	// The recipient has a server of its own on the same port, on all addresses.
	h.start(t, "web", "--link", "ns:resolver", image)
	h.resolves(t, "resolver")
	h.resolves(t, "127.0.0.1")
	// An answer that is cut short: the client asks again, by TCP.
	h.eventually(t, "4444444444", "exec", "web", "kdig", "@resolver", "big.test", "TXT")

	// Many clients at once: each is a flow.
	out := h.docker(t, "exec", "web", "sh", "-c",
		"for i in $(seq 300); do kdig +short +retry=0 +time=5 @resolver a.test & [ $((i % 30)) = 0 ] && wait; done; wait")
	if got := strings.Count(out, "192.0.2.1"); got != 300 {
		t.Errorf("%d of 300 clients got their answer", got)
	}

	h.docker(t, "restart", "-t", "0", "ns")
	h.resolves(t, "resolver")
	h.docker(t, "stop", "-t", "0", "ns")
	enginetest.Poll(t, soon, func() error {
		out, err := h.Docker("exec", "web", "kdig", "+retry=0", "+time=1", "@resolver", "a.test")
		if err == nil && strings.Contains(out, "192.0.2.1") {
			return fmt.Errorf("answered with the source down: %s", out)
		}
		return nil
	})
	h.resolves(t, "127.0.0.1")
}

func (h *host) resolves(t *testing.T, server string) {
	t.Helper()
	h.eventually(t, "192.0.2.1", "exec", "web", "kdig", "+short", "+retry=0", "+time=1", "@"+server, "a.test")
}

// TestIperf3Datagrams sends a stream of datagrams each way. A busy machine may
// lose some of them; how many is for the benchmarks to say.
func TestIperf3Datagrams(t *testing.T) {
	h := newHost(t)
	image := h.Image(t, "iperf3")
	h.source(t, "sink", "--expose", "5201/tcp", "--expose", "5201/udp", image)
	h.start(t, "web", "--link", "sink", "--entrypoint", "sleep", image, "1000")
	for name, flags := range map[string][]string{"to the source": nil, "from the source": {"-R"}} {
		t.Run(name, func(t *testing.T) {
			var report struct {
				End struct {
					Sum struct {
						Packets int     `json:"packets"`
						Lost    int     `json:"lost_packets"`
						Bits    float64 `json:"bits_per_second"`
					} `json:"sum"`
				} `json:"end"`
			}
			enginetest.Poll(t, soon, func() error {
				out, err := h.Docker(append([]string{"exec", "web", "iperf3", "-c", "sink", "-u", "-b", "20M", "-l", "1400", "-t", "2", "-J"}, flags...)...)
				if err != nil {
					return err
				}
				return json.Unmarshal([]byte(out), &report)
			})
			sum := report.End.Sum
			t.Logf("%d datagrams, %d lost", sum.Packets, sum.Lost)
			if sum.Packets < 1000 || sum.Lost > sum.Packets/2 {
				t.Errorf("%d of %d datagrams were lost", sum.Lost, sum.Packets)
			}
		})
	}
}
