package iptables

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns/netnstest"
)

// two is a host with both backends. The plain names are the usual one's.
type two struct {
	usual, other *fake
	names        string // what the kernel says the legacy tables are
}

func (h *two) run(ctx context.Context, argv []string, stdin string) (Result, error) {
	if argv[0] == "cat" && strings.HasSuffix(argv[1], "ip_tables_names") {
		return Result{Stdout: h.names}, nil
	}
	res, err := h.usual.run(ctx, argv, stdin)
	if errors.Is(err, exec.ErrNotFound) {
		return h.other.run(ctx, argv, stdin)
	}
	return res, err
}

func must(t *testing.T, k *fake, program string, args ...string) {
	t.Helper()
	if res, err := k.run(t.Context(), append([]string{program}, args...), ""); err != nil || res.Status != 0 {
		t.Fatalf("%s %q: %+v, %v", program, args, res, err)
	}
}

// The rules go where the engine's are, whatever the host's default is by now.
func TestBackendIsTheEngines(t *testing.T) {
	for _, usual := range []Backend{NFT, Legacy} {
		host := &two{usual: newFake(usual), other: newFake(map[Backend]Backend{NFT: Legacy, Legacy: NFT}[usual]), names: "filter\n"}
		must(t, host.other, "iptables", "-N", "DOCKER-USER")
		w := &Firewall{Run: host.run, Kernel: host.usual}
		if _, err := w.Reconcile(t.Context(), policies[1]); err != nil {
			t.Fatal(err)
		}
		if host.usual.tables[ip4] != nil {
			t.Errorf("%s is the default, and got rules that belong to the other", usual)
		}
		enforced(t, &world{run: host.other.run, backend: host.other.backend}, policies[1])
	}
}

// A host that moves from one backend to the other is left with the rules of
// one, and a removal finds those of both.
func TestBackendChanges(t *testing.T) {
	host := &two{usual: newFake(NFT), other: newFake(Legacy), names: "filter\n"}
	must(t, host.other, "iptables", "-N", "DOCKER-USER")
	w := &Firewall{Run: host.run, Kernel: host.usual}
	reconcile := func() {
		t.Helper()
		if _, err := w.Reconcile(t.Context(), policies[1]); err != nil {
			t.Fatal(err)
		}
	}
	reconcile()
	must(t, host.other, "iptables", "-F", "DOCKER-USER")
	must(t, host.other, "iptables", "-X", "DOCKER-USER")
	must(t, host.usual, "iptables", "-N", "DOCKER-USER")
	w.chosenAt = w.chosenAt.Add(-2 * trustFor)
	reconcile()
	enforced(t, &world{run: host.usual.run, backend: NFT}, policies[1])
	enforced(t, &world{run: host.other.run, backend: Legacy}, Policy{})

	must(t, host.other, "iptables", "-N", chainAny) // an agent was killed half-way
	if removed, err := (&Firewall{Run: host.run, Kernel: host.usual}).Remove(t.Context()); err != nil || len(removed) == 0 {
		t.Fatal(removed, err)
	}
	for _, k := range []*fake{host.usual, host.other} {
		if s := k.tables[ip4].save(); strings.Contains(s, "AMBASSADOR") {
			t.Errorf("%s has\n%s", k.backend, s)
		}
	}
}

// Where the engine's rules are is not looked up at every glance: on a host
// with legacy rules there is one a second.
func TestGlanceIsCheap(t *testing.T) {
	k := newFake(Legacy)
	must(t, k, "iptables", "-N", "DOCKER-USER")
	w := &Firewall{Run: k.run, Kernel: k}
	for range 3 {
		k.ran = nil
		if _, err := w.Reconcile(t.Context(), policies[1]); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"iptables-save", "ip6tables-save"}; !slices.Equal(k.ran, want) {
		t.Errorf("it ran %q, want %q", k.ran, want)
	}
}

// Looking at the rules does not make a legacy table: the kernel would never
// lose it again.
func TestLookingMakesNoTable(t *testing.T) {
	netnstest.NeedRoot(t)
	in := inside{netnstest.New(t)}
	w := &Firewall{Run: in.run, Kernel: in}
	for range 2 {
		if todo, err := w.Check(t.Context(), Policy{}); err != nil || len(todo) != 0 {
			t.Fatal(todo, err)
		}
		if _, err := w.Reconcile(t.Context(), Policy{}); err != nil {
			t.Fatal(err)
		}
		if removed, err := w.Remove(t.Context()); err != nil || len(removed) != 0 {
			t.Fatal(removed, err)
		}
	}
	for _, args := range [][]string{{"cat", "/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"}, {"iptables-save"}, {"ip6tables-save"}} {
		res, err := in.run(t.Context(), args, "")
		if err != nil || strings.Contains(res.Stdout, "filter") {
			t.Errorf("%q: %+v, %v", args, res, err)
		}
	}
}

// A table that changed since its generation was asked for is not dropped.
func TestDropTableOfAnotherGeneration(t *testing.T) {
	w := realWorld(t, NFT)
	in := w.firewall.Kernel.(inside)
	if err := in.DropTable(true, 0); !errors.Is(err, unix.ERESTART) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("dropping what is not there: %v", err)
	}
	if err := w.iptables(ip6, "-P", "FORWARD", "ACCEPT"); err != nil {
		t.Fatal(err)
	}
	before, err := in.Generation()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.iptables(ip6, "-A", "FORWARD", "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	after, err := in.Generation()
	if err != nil || after == before {
		t.Fatalf("the generation was %d and is %d, %v", before, after, err)
	}
	if err := in.DropTable(true, before); !errors.Is(err, unix.ERESTART) {
		t.Fatalf("the error is %v", err)
	}
	if all, _ := w.dump(t); !strings.Contains(all, "ip6 FORWARD 001 -j DROP") {
		t.Fatalf("the table is\n%s", all)
	}
	if err := in.DropTable(true, after); err != nil {
		t.Fatal(err)
	}
	if all, _ := w.dump(t); all != "" {
		t.Errorf("the table is\n%s", all)
	}
}

// Messages are shown as the program gave them, on one line.
func TestRefusalIsReported(t *testing.T) {
	backendsHere(t, func(t *testing.T, b Backend) {
		w := realWorld(t, b)
		err := tool{run: w.run, backend: b}.apply(t.Context(), ip4, plan{lines: []string{"-A NOWHERE -j DROP"}})
		var status *StatusError
		if !errors.As(err, &status) || status.Status == 0 || strings.Contains(err.Error(), "\n") ||
			!strings.HasPrefix(err.Error(), b.program(ip4, "restore")+" ended with status ") {
			t.Errorf("the error is %v", err)
		}
	})
	if _, err := (tool{run: Execute}).exec(t.Context(), "", "no-such-program-anywhere"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("the error is %v", err)
	}
}
