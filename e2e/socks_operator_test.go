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
	cmd.Stderr = t.Output()
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

// TestSocksBetweenHosts reaches a source on another host, whose own host decides
// about its ports.
func TestSocksBetweenHosts(t *testing.T) {
	enginetest.Require(t, enginetest.Programs("curl"))
	a, b := twoHosts(t)
	b.httpSource(t, "api", []string{"--label", "ambassador.allow=hosta/web", "--label", "ambassador.socks-ports=8001"}, 80, 8001, 9001)
	b.httpSource(t, "narrow", []string{"--label", "ambassador.allow=hosta/web:80", "--label", "ambassador.socks-ports=all"}, 80, 8001)
	a.start(t, "web", "--link-socks", "--link", "api@hostb:rest", "--link", "narrow@hostb:narrow", a.Image(t, "socks"), "sleep", "1000")
	queries := recordQueries(t, a.processNetNS(t, "web"))
	here := recordQueries(t, a.NetNS())

	const proxy = "-xsocks5h://127.77.0.1:1080"
	for _, name := range []string{"rest", "api", "127.77.0.3"} {
		a.curlGets(t, "web", "api 80", proxy, "http://"+name+"/")
	}
	a.curlGets(t, "web", "narrow 80", proxy, "http://narrow/")
	a.curlGets(t, "web", "api 8001", proxy, "http://rest:8001/") // that is its label's
	a.refuses(t, "web", "rest", 8001)
	for _, url := range []string{
		"rest:9001", "rest:81", // neither exposed nor in its label
		"narrow:8001", // its label would have it, what it allows does not
		"hostb", "api.hostb", "api@hostb", "other", addrB, b.address(t, "api"),
	} {
		a.curlRefused(t, "web", notAllowed, proxy, "http://"+url+"/")
	}
	b.docker(t, "stop", "-t", "0", "api")
	enginetest.Poll(t, soon, func() error {
		if r := a.curl(t, "web", proxy, "http://rest/"); r.code != proxyRefused || !strings.Contains(r.err, connRefused) {
			return errorOf(r)
		}
		return nil
	})
	b.docker(t, "start", "api")
	a.curlGets(t, "web", "api 80", proxy, "http://rest/")
	if asked := append(queries.list(), here.list()...); len(asked) > 0 {
		t.Errorf("names were looked up: %q", asked)
	}

	// They are connections of the link, and an operator has them, too.
	for _, l := range a.links(t) {
		if l.Total == 0 || l.ToSource == 0 || l.ToRecipient == 0 || l.Open != 0 {
			t.Errorf("link %q has carried %+v", l.Alias, l)
		}
	}
	url, stop := a.operator(t, "--as", "web", "--listen", "127.0.0.1:0")
	defer stop()
	r := run(t, a.Command(t.Context(), "curl", "-sS", "--max-time", "20", "-x", url, "http://rest/"))
	if r.out != "api 80\n" {
		t.Error(errorOf(r))
	}
}
