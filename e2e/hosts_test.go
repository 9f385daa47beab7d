package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// twoHosts is two engines with an ambassador each, a cable between them, and
// identities of one trust domain. hosta has the authority.
type twoHosts struct {
	a, b   *host
	policy string // the policy file of hostb
}

var (
	addrA = netip.MustParsePrefix("10.99.0.1/24")
	addrB = netip.MustParsePrefix("10.99.0.2/24")
)

func newTwoHosts(t *testing.T, serveA ...string) *twoHosts {
	t.Helper()
	a, b := suite.Engine(t), enginetest.Start(t, enginetest.Options{})
	enginetest.Connect(t, a, addrA, b, addrB)
	dir := t.TempDir()
	idA, idB := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	p := &twoHosts{policy: filepath.Join(dir, "policy")}
	writeFile(t, p.policy, "# nothing yet\n")
	p.a = newHostOn(t, a, append([]string{"--listen", "7443", "--peer", "hostb=" + addrB.Addr().String(), "--identity", idA}, serveA...)...)
	p.b = newHostOn(t, b, "--listen", "7443", "--identity", idB, "--policy", p.policy)
	p.a.says(t, "ca", "init", "--host", "hosta", "--identity", idA)
	token := strings.TrimSpace(p.a.says(t, "token", "hostb", "--identity", idA))
	// hosta's ambassador notices its identity by itself, and then lets others
	// join.
	enginetest.Poll(t, soon, func() error { return p.b.tries("join", addrA.Addr().String(), token, "--identity", idB) })
	return p
}

// says runs a command of the ambassador's that must succeed, and returns what
// it printed.
func (h *host) says(t *testing.T, args ...string) string {
	t.Helper()
	r := h.ambassador(t, args...)
	if r.code != 0 {
		t.Fatalf("ambassador %q: exit status %d\n%s", args, r.code, r.err)
	}
	return r.out
}

// tries runs a command of the ambassador's that may fail.
func (h *host) tries(args ...string) error {
	out, err := h.Command(context.Background(), h.bin.Ambassador, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("ambassador %s: %w: %s", args[0], err, out)
	}
	return err
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	// As editors do: nobody reads half of it.
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}
