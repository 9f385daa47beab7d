package iptables

import (
	"context"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// unstamped is the part of a listing that differs from one to the next: the
// time, and what the chains have counted.
var unstamped = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// Whatever happens in whatever order, one reconciliation puts it right, a
// second one finds nothing to do, and what others wrote is as it was.
func TestReconcileConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ctx := context.Background()
		w := fakeWorld(rapid.SampledFrom([]Backend{NFT, Legacy}).Draw(rt, "backend"))
		for range rapid.IntRange(1, 50).Draw(rt, "events") {
			e := rapid.SampledFrom(events).Draw(rt, "event")
			_ = e.do(w)
			p := rapid.SampledFrom(policies).Draw(rt, "policy")
			_, before := w.dump(rt)
			todo, err := w.firewall.Check(ctx, p)
			if err != nil {
				rt.Fatal(err)
			}
			done, err := w.firewall.Reconcile(ctx, p)
			if err != nil || len(done) < len(todo) {
				rt.Fatalf("after %q: %v, did %q where %q was to do", e.name, err, done, todo)
			}
			enforced(t, w, p)
			if _, after := w.dump(rt); after != before {
				rt.Fatalf("after %q the rules of others were\n%s\nand are\n%s", e.name, before, after)
			}
			if done, err := w.firewall.Reconcile(ctx, p); err != nil || len(done) != 0 {
				rt.Fatalf("after %q the second reconciliation did %q, %v", e.name, done, err)
			}
		}
		if _, err := w.firewall.Remove(ctx); err != nil {
			rt.Fatal(err)
		}
		if all, foreign := w.dump(rt); strings.Contains(all, "AMBASSADOR") || strings.Contains(foreign, "AMBASSADOR") {
			rt.Fatalf("the removal left\n%s", all)
		}
	})
}

// The state is what a person reads, and what scripts are compared by.
func TestState(t *testing.T) {
	w := fakeWorld(NFT)
	ctx := context.Background()
	for _, e := range events {
		if e.name == "the engine starts" {
			if err := e.do(w); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := w.firewall.Reconcile(ctx, policies[3]); err != nil {
		t.Fatal(err)
	}
	got, err := w.firewall.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const want = `ip6: AMBASSADOR-ICC 001 -m comment --comment "ambassador: this table was not there before"
ip6: AMBASSADOR-ICC 002 -s fd00::3 -d fd00::2 -i docker0 -o docker0 -p tcp -m physdev --physdev-in veth3 -m tcp --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j ACCEPT
ip6: AMBASSADOR-ICC 003 -s fd00::3 -d fd00::2 -i docker0 -o docker0 -p tcp -m physdev --physdev-in veth3 -m tcp --dport 80 -m conntrack --ctstate ESTABLISHED --ctdir ORIGINAL -j ACCEPT
ip6: AMBASSADOR-ICC 004 -s fd00::2 -d fd00::3 -i docker0 -o docker0 -p tcp -m physdev --physdev-in veth2 -m tcp --sport 80 -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j ACCEPT
ip6: AMBASSADOR-ICC 005 -i br-1 -j AMBASSADOR-ICC-CLOSED
ip6: AMBASSADOR-ICC 006 -i docker0 -j AMBASSADOR-ICC-ANY
ip6: AMBASSADOR-ICC-ANY 001 -o br-1 -j DROP
ip6: AMBASSADOR-ICC-ANY 002 -o docker0 -j DROP
ip6: AMBASSADOR-ICC-CLOSED 001 -o docker0 -j DROP
ip6: FORWARD 001 -j AMBASSADOR-ICC
ip: AMBASSADOR-ICC 001 -s 172.17.0.3 -d 172.17.0.2 -i docker0 -o docker0 -p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT
ip: AMBASSADOR-ICC 002 -s 172.17.0.3 -d 172.17.0.2 -i docker0 -o docker0 -p udp -m udp --dport 53 -m conntrack --ctstate ESTABLISHED --ctdir ORIGINAL -j ACCEPT
ip: AMBASSADOR-ICC 003 -s 172.17.0.2 -d 172.17.0.3 -i docker0 -o docker0 -p udp -m udp --sport 53 -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j ACCEPT
ip: AMBASSADOR-ICC 004 -s 172.17.0.3 -d 172.17.0.2 -i docker0 -o docker0 -p tcp -m physdev --physdev-in veth3 -m tcp --dport 5432 --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j ACCEPT
ip: AMBASSADOR-ICC 005 -s 172.17.0.3 -d 172.17.0.2 -i docker0 -o docker0 -p tcp -m physdev --physdev-in veth3 -m tcp --dport 5432 -m conntrack --ctstate ESTABLISHED --ctdir ORIGINAL -j ACCEPT
ip: AMBASSADOR-ICC 006 -s 172.17.0.2 -d 172.17.0.3 -i docker0 -o docker0 -p tcp -m physdev --physdev-in veth2 -m tcp --sport 5432 -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j ACCEPT
ip: AMBASSADOR-ICC 007 -i br-1 -j AMBASSADOR-ICC-CLOSED
ip: AMBASSADOR-ICC 008 -i docker0 -j AMBASSADOR-ICC-ANY
ip: AMBASSADOR-ICC-ANY 001 -o br-1 -j DROP
ip: AMBASSADOR-ICC-ANY 002 -o docker0 -j DROP
ip: AMBASSADOR-ICC-CLOSED 001 -o docker0 -j DROP
ip: DOCKER-USER 001 -j AMBASSADOR-ICC`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// All that a repair writes comes in one transaction per family: between two
// of them there would be a moment without the drops.
func TestOneTransactionPerFamily(t *testing.T) {
	k := newFake(NFT)
	w := k.firewall()
	if _, err := w.Reconcile(context.Background(), policies[3]); err != nil {
		t.Fatal(err)
	}
	var wrote []string
	for _, program := range k.ran {
		if !strings.Contains(program, "-save") && !strings.HasSuffix(program, "-V") && !strings.HasPrefix(program, "cat ") {
			wrote = append(wrote, program)
		}
	}
	want := []string{"iptables-restore --noflush -w 5", "ip6tables-restore --noflush -w 5"}
	if !slices.Equal(wrote, want) {
		t.Errorf("wrote by %q, want %q", wrote, want)
	}
}

// Tables of an unchanged generation are not read again; others are.
func TestReconcileReadsOnlyWhatChanged(t *testing.T) {
	ctx := context.Background()
	k := newFake(NFT)
	w := k.firewall()
	reconcile := func(p Policy) (ran int) {
		t.Helper()
		k.ran = nil
		if _, err := w.Reconcile(ctx, p); err != nil {
			t.Fatal(err)
		}
		return len(k.ran)
	}
	reconcile(policies[1])
	reconcile(policies[1]) // reads what the first one wrote
	if n := reconcile(policies[1]); n != 0 {
		t.Errorf("nothing changed, and %d programs were run: %q", n, k.ran)
	}
	if reconcile(policies[2]) == 0 {
		t.Error("another policy was not enforced")
	}
	reconcile(policies[2])
	if res, err := k.run(ctx, []string{"iptables", "-F"}, ""); err != nil || res.Status != 0 {
		t.Fatal(res, err)
	}
	if reconcile(policies[2]) == 0 {
		t.Error("a flush was not seen")
	}
	w.verified.at = w.verified.at.Add(-2 * trustFor)
	if reconcile(policies[2]) == 0 {
		t.Error("an old look at the tables was trusted")
	}
}

// The tables change between being read and being written.
func TestReconcileTriesAgain(t *testing.T) {
	ctx := context.Background()
	k := newFake(NFT)
	w := k.firewall()
	if _, err := w.Reconcile(ctx, policies[1]); err != nil {
		t.Fatal(err)
	}
	if res, _ := k.run(ctx, []string{"iptables", "-A", "FORWARD", "-j", chainMain}, ""); res.Status != 0 {
		t.Fatal(res)
	}
	k.before = func() { // removes what the plan is about to remove
		k.tables[ip4].command([]string{"-D", "FORWARD", "-j", chainMain})
		k.tables[ip4].command([]string{"-D", "FORWARD", "-j", chainMain})
	}
	if _, err := w.Reconcile(ctx, policies[1]); err != nil {
		t.Fatal(err)
	}
	enforced(t, &world{run: k.run, backend: NFT}, policies[1])
}

func TestReconcileGivesUpOnATableThatIsUndone(t *testing.T) {
	k := newFake(NFT)
	w := k.firewall()
	w.Run = func(ctx context.Context, argv []string, stdin string) (Result, error) {
		res, err := k.run(ctx, argv, stdin)
		if strings.HasSuffix(argv[0], "-restore") {
			delete(k.tables, ip4)
		}
		return res, err
	}
	if _, err := w.Reconcile(context.Background(), policies[1]); !errors.Is(err, ErrUnsettled) {
		t.Fatalf("the error is %v", err)
	}
	if k.tables[ip6] == nil {
		t.Error("IPv6 was not enforced because IPv4 failed")
	}
}

func TestWithoutIPv6(t *testing.T) {
	ctx := context.Background()
	k := newFake(NFT)
	k.noIPv6 = true
	w := k.firewall()
	if _, err := w.Reconcile(ctx, policies[1]); err != nil {
		t.Fatalf("a kernel without IPv6: %v", err)
	}
	enforced(t, &world{run: k.run, backend: NFT}, policies[1])
	if _, err := w.Check(ctx, policies[1]); err != nil {
		t.Error(err)
	}
	if _, err := w.Remove(ctx); err != nil {
		t.Error(err)
	}

	// The kernel has IPv6, and nothing can be told about it.
	k = newFake(NFT)
	w = k.firewall()
	w.Run = func(ctx context.Context, argv []string, stdin string) (Result, error) {
		if strings.HasPrefix(argv[0], "ip6tables") {
			return Result{Status: -1}, exec.ErrNotFound
		}
		return k.run(ctx, argv, stdin)
	}
	_, err := w.Reconcile(ctx, policies[1])
	const text = "enforcing the ip6 policy: running ip6tables-save: executable file not found in $PATH"
	if !errors.Is(err, exec.ErrNotFound) || err.Error() != text {
		t.Errorf("the error is %q, want %q", err, text)
	}
	k.noIPv6 = true // so that only the other half is looked at
	enforced(t, &world{run: k.run, backend: NFT}, policies[1])
}

// A table that had to be made for our chains is not removed from under
// somebody who put a rule into it since.
func TestRemoveLeavesATableThatOthersUse(t *testing.T) {
	ctx := context.Background()
	k := newFake(NFT)
	w := k.firewall()
	if _, err := w.Reconcile(ctx, policies[1]); err != nil {
		t.Fatal(err)
	}
	if res, _ := k.run(ctx, []string{"ip6tables", "-A", "INPUT", "-i", "eth0", "-j", "DROP"}, ""); res.Status != 0 {
		t.Fatal(res)
	}
	removed, err := w.Remove(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if k.tables[ip4] != nil || k.tables[ip6] == nil {
		t.Errorf("removed %q", removed)
	}
	want := []string{
		"ip: removed rule -A FORWARD -j AMBASSADOR-ICC",
		"ip: removed chain AMBASSADOR-ICC-ANY: 1 rule",
		"ip: removed chain AMBASSADOR-ICC-CLOSED: 1 rule",
		"ip: removed chain AMBASSADOR-ICC: 2 rules",
		"ip: removed the filter table, which was not there before",
		"ip6: removed rule -A FORWARD -j AMBASSADOR-ICC",
		"ip6: removed chain AMBASSADOR-ICC-ANY: 1 rule",
		"ip6: removed chain AMBASSADOR-ICC-CLOSED: 1 rule",
		"ip6: removed chain AMBASSADOR-ICC: 2 rules",
		"ip6: left the filter table, which others use by now",
	}
	if !slices.Equal(removed, want) {
		t.Errorf("said\n%s\nwant\n%s", strings.Join(removed, "\n"), strings.Join(want, "\n"))
	}
}

// Nothing is accepted before our rules are asked: what others put before
// DOCKER-USER would be.
func TestReconcileGoesFirst(t *testing.T) {
	w := fakeWorld(NFT)
	for _, step := range []struct {
		words, hook string
	}{
		{"-P FORWARD DROP", hookForward},
		{"-N DOCKER-USER", hookForward},
		{"-I FORWARD -j DOCKER-USER", hookDocker},
		{"-A FORWARD -i docker0 -o docker0 -j ACCEPT", hookDocker},
		{"-I FORWARD -i docker0 -o docker0 -j ACCEPT", hookForward},
		{"-A FORWARD -j DOCKER-USER", hookForward},
		{"-I FORWARD -j DOCKER-USER", hookDocker},
		{"-F", hookForward},
	} {
		if err := w.iptables(ip4, strings.Fields(step.words)...); err != nil {
			t.Fatal(err)
		}
		for range 2 { // where it is put, it stays
			if _, err := w.firewall.Reconcile(t.Context(), policies[1]); err != nil {
				t.Fatal(err)
			}
		}
		all, _ := w.dump(t)
		if n := strings.Count(all, "-j AMBASSADOR-ICC\n"); !strings.Contains(all, "ip "+step.hook+" 001 -j AMBASSADOR-ICC\n") || n != 2 {
			t.Errorf("after %q, of %d jumps none is the first rule of %s:\n%s", step.words, n, step.hook, all)
		}
	}
}

// A rule of others that leads to our chains under some condition is theirs.
func TestReconcileLeavesConditionalJumps(t *testing.T) {
	w := fakeWorld(NFT)
	for range 2 {
		if _, err := w.firewall.Reconcile(t.Context(), policies[1]); err != nil {
			t.Fatal(err)
		}
		if err := w.iptables(ip4, "-I", "FORWARD", "1", "-i", "eth0", "-j", chainMain); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.firewall.Reconcile(t.Context(), policies[1]); err != nil {
		t.Fatal(err)
	}
	all, _ := w.dump(t)
	for _, want := range []string{
		"ip FORWARD 001 -j AMBASSADOR-ICC",
		"ip FORWARD 002 -i eth0 -j AMBASSADOR-ICC",
		"ip FORWARD 003 -i eth0 -j AMBASSADOR-ICC",
	} {
		if !strings.Contains(all, want+"\n") {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	if n := strings.Count(all, "-j AMBASSADOR-ICC\n"); n != 4 { // the fourth is IPv6's
		t.Errorf("%d jumps to our chain in\n%s", n, all)
	}
}
