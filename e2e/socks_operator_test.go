package e2e

import (
	"bufio"
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestSocksForOperators sees a recipient's links from the host, whether it has
// a SOCKS5 address or not.
func TestSocksForOperators(t *testing.T) {
	enginetest.Require(t, enginetest.Programs("curl"))
	h := newHost(t)
	h.httpSource(t, "api", nil, 80, 8001)
	h.httpSource(t, "other", nil, 80)
	h.start(t, "web", "--link", "api:rest", h.busybox, "sleep", "1000")

	for _, listen := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "web.sock")} {
		t.Run(listen, func(t *testing.T) {
			url, stop := h.operator(t, "--as", "web", "--listen", listen)
			curl := func(proxy, url string) result {
				return run(t, h.Command(t.Context(), "curl", "-sS", "--max-time", "20", "-x", proxy, url))
			}
			for _, name := range []string{"rest", "api", "127.77.0.2"} {
				if r := curl(url, "http://"+name+"/"); r.out != "api 80\n" {
					t.Errorf("%s: %+v", name, r)
				}
			}
			for _, name := range []string{"other", "rest:8001", "localhost", "127.0.0.1", h.address(t, "api")} {
				if r := curl(url, "http://"+name+"/"); r.code != proxyRefused || !strings.Contains(r.err, notAllowed) {
					t.Errorf("%s: %+v", name, r)
				}
			}
			// Nobody else gets in.
			if _, address, hasPassword := strings.Cut(url, "@"); hasPassword {
				for _, wrong := range []string{"socks5h://" + address, "socks5h://ambassador:guess@" + address} {
					if r := curl(wrong, "http://rest/"); r.code != proxyRefused {
						t.Errorf("with a wrong password: %+v", r)
					}
				}
			}
			h.docker(t, "stop", "-t", "0", "api")
			enginetest.Poll(t, soon, func() error {
				if r := curl(url, "http://rest/"); r.code != proxyRefused || !strings.Contains(r.err, connRefused) {
					return errorOf(r)
				}
				return nil
			})
			h.docker(t, "start", "api")
			enginetest.Poll(t, soon, func() error {
				if r := curl(url, "http://rest/"); r.out != "api 80\n" {
					return errorOf(r)
				}
				return nil
			})
			stop()
			if r := curl(url, "http://rest/"); r.code == 0 {
				t.Errorf("it serves on after it was interrupted: %+v", r)
			}
		})
	}
}

// operator runs `ambassador socks` until stop is called, and returns what it
// prints.
func (h *host) operator(t *testing.T, args ...string) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	var cmd *exec.Cmd = h.Command(ctx, h.bin.Ambassador, append([]string{"socks", "--dir", h.dir}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(line), func() {
		cmd.Process.Signal(syscall.SIGINT)
		rest, _ := io.ReadAll(out)
		if err := cmd.Wait(); err != nil || len(rest) > 0 {
			t.Errorf("interrupted, it ended with %v and printed %q", err, rest)
		}
	}
}
