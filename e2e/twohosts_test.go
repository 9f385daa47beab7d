package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
)

// The two hosts of a test, as their engines' namespaces see them.
const (
	addrA = "192.0.2.1"
	addrB = "192.0.2.2"
	wire  = "wire" // the interface between them, in both
)

// twoHosts are two engines in network namespaces of their own, joined by a
// cable, each with an ambassador that serves. hosta has the authority, and
// hostb has joined; both listen. serve are further arguments of hostb's.
func twoHosts(t *testing.T, serve ...string) (a, b *host) {
	t.Helper()
	a, b = unjoinedHosts(t, serve...)
	token := a.identityCommand(t, "", "token", "hostb").mustPrint(t)
	b.identityCommand(t, token, "join", addrA, "-").mustPrint(t)
	return a, b
}

// unjoinedHosts are twoHosts before hostb has joined.
func unjoinedHosts(t *testing.T, serve ...string) (a, b *host) {
	t.Helper()
	ea, eb := enginetest.Start(t, enginetest.Options{}), enginetest.Start(t, enginetest.Options{})
	cable(t, ea, eb)
	identityA, identityB := filepath.Join(t.TempDir(), "identity"), filepath.Join(t.TempDir(), "identity")
	a = newHostOn(t, ea, "--identity", identityA, "--listen", "7443", "--peer", "hostb="+addrB)
	b = newHostOn(t, eb, append([]string{"--identity", identityB, "--listen", "7443"}, serve...)...)
	a.identity, b.identity = identityA, identityB
	a.identityCommand(t, "", "ca", "init", "--host", "hosta").mustPrint(t)
	return a, b
}

// cable joins the namespaces of two engines.
func cable(t *testing.T, a, b *enginetest.Engine) {
	t.Helper()
	ip := func(e *enginetest.Engine, args ...string) {
		t.Helper()
		if out, err := e.Command(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v\n%s", args, err, out)
		}
	}
	ip(a, "link", "add", wire, "type", "veth", "peer", "name", wire, "netns", filepath.Base(b.NetNS()))
	t.Cleanup(func() { exec.Command("ip", "-n", filepath.Base(a.NetNS()), "link", "del", wire).Run() })
	ip(a, "addr", "add", addrA+"/24", "dev", wire)
	ip(b, "addr", "add", addrB+"/24", "dev", wire)
	ip(a, "link", "set", wire, "up")
	ip(b, "link", "set", wire, "up")
	for _, e := range []*enginetest.Engine{a, b} {
		// It takes the kernel up to a second to say so, and the state of the
		// engine, which is to be the same at the end, has it.
		enginetest.Poll(t, soon, func() error {
			out, err := e.Command(t.Context(), "ip", "-brief", "link", "show", wire).Output()
			if err == nil && !strings.Contains(string(out), " UP ") {
				err = fmt.Errorf("the cable is not up: %s", out)
			}
			return err
		})
	}
}

// identityCommand runs one of the commands about this host's identity, with
// its standard input.
func (h *host) identityCommand(t *testing.T, input string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := h.Command(ctx, h.bin.Ambassador, append(args, "--identity", h.identity)...)
	cmd.Stdin = strings.NewReader(input)
	return run(t, cmd)
}

func (r result) mustPrint(t *testing.T) string {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit status %d\n%s", r.code, r.err)
	}
	return r.out
}

// session asks the ambassador for its session with another host.
func (h *host) session(t *testing.T, name string) (control.Peer, error) {
	t.Helper()
	peers, err := control.Dial(h.dir).Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers.Hosts {
		if p.Host == name {
			return p, nil
		}
	}
	return control.Peer{}, fmt.Errorf("there is no host %q among %+v", name, peers)
}

// eventuallySession waits until the session with another host is as it has to be,
// and returns how it is then.
func (h *host) eventuallySession(t *testing.T, name string, is func(control.Peer) bool) (found control.Peer) {
	t.Helper()
	enginetest.Poll(t, 2*soon, func() (err error) {
		if found, err = h.session(t, name); err == nil && !is(found) {
			err = fmt.Errorf("%+v", found)
		}
		return err
	})
	return found
}

func isUp(p control.Peer) bool { return p.State == control.StateUp }
