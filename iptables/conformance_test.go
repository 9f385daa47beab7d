package iptables

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// inside makes a firewall whose every system call is made in a namespace.
type inside struct{ ns *netns.Namespace }

func (in inside) run(ctx context.Context, argv []string, stdin string) (res Result, err error) {
	err = in.ns.Do(func() error {
		res, err = Execute(ctx, argv, stdin)
		return err
	})
	return res, err
}

func (in inside) Generation() (gen uint32, err error) {
	err = in.ns.Do(func() error {
		gen, err = nftables{}.Generation()
		return err
	})
	return gen, err
}

func (in inside) DropTable(ipv6 bool, gen uint32) error {
	return in.ns.Do(func() error { return nftables{}.DropTable(ipv6, gen) })
}

// backendsHere are the backends whose programs are installed.
func backendsHere(t *testing.T, each func(t *testing.T, b Backend)) {
	for _, b := range []Backend{NFT, Legacy} {
		t.Run(string(b), func(t *testing.T) {
			netnstest.NeedRoot(t)
			for _, f := range families {
				if _, err := exec.LookPath(b.program(f, "restore")); err != nil {
					t.Skipf("CANNOT BE TESTED HERE: %v", err)
				}
			}
			each(t, b)
		})
	}
}

// realWorld is the tables of a namespace of its own.
func realWorld(t testing.TB, b Backend) *world {
	in := inside{netnstest.New(t)}
	return &world{run: in.run, backend: b, firewall: &Firewall{Run: in.run, Backend: b, Kernel: in}}
}

func fakeWorld(b Backend) *world {
	k := newFake(b)
	return &world{run: k.run, backend: b, firewall: &Firewall{Run: k.run, Backend: b, Kernel: k}}
}

// The same events, in the same random order, happen to the fake and to the
// real thing. After each, and after each repair, both are the same as text.
func TestFakeIsLikeTheRealThing(t *testing.T) {
	backendsHere(t, func(t *testing.T, b Backend) {
		ctx := context.Background()
		for seed := range uint64(2) {
			random := rand.New(rand.NewPCG(seed, 1))
			compared, last := 0, ""
			real, fake := realWorld(t, b), fakeWorld(b)
			for _, w := range []*world{real, fake} {
				// What else makes a table differs between the backends, and
				// between versions of one. TestRemoveLeavesNoTrace is about it.
				if err := both("", "-P FORWARD ACCEPT").do(w); err != nil {
					t.Fatal(err)
				}
			}
			same := func(after string) {
				t.Helper()
				got, _ := fake.dump(t)
				want, _ := real.dump(t)
				if got != want {
					t.Fatalf("seed %d: after %q the fake is\n%s\nthe real thing is\n%s", seed, after, got, want)
				}
				if compared++; strings.Contains(got, chainMain) {
					last = got
				}
			}
			for range 50 {
				e := events[random.IntN(len(events))]
				errReal, errFake := e.do(real), e.do(fake)
				if (errReal == nil) != (errFake == nil) {
					t.Fatalf("seed %d: %q: the fake says %v, the real thing %v", seed, e.name, errFake, errReal)
				}
				same(e.name)
				p := policies[random.IntN(len(policies))]
				for _, w := range []*world{real, fake} {
					_, before := w.dump(t)
					if _, err := w.firewall.Reconcile(ctx, p); err != nil {
						t.Fatalf("seed %d: after %q: %v", seed, e.name, err)
					}
					enforced(t, w, p)
					if _, after := w.dump(t); before != after {
						t.Fatalf("seed %d: after %q the rules of others were\n%s\nand are\n%s", seed, e.name, before, after)
					}
				}
				same("repair of " + e.name)
			}
			for _, w := range []*world{real, fake} {
				if _, err := w.firewall.Remove(ctx); err != nil {
					t.Fatal(err)
				}
			}
			same("removal")
			t.Logf("seed %d: the same %d times, the last with our rules being\n%s", seed, compared, last)
		}
	})
}

// What is in the tables is checked by a library that knows nothing of this
// package, with iptables -C.
func TestRulesAreThereForOthers(t *testing.T) {
	backendsHere(t, func(t *testing.T, b Backend) {
		w := realWorld(t, b)
		p := policies[3]
		if _, err := w.firewall.Reconcile(context.Background(), p); err != nil {
			t.Fatal(err)
		}
		netnstest.Do(t, w.firewall.Kernel.(inside).ns, func() error {
			for f, proto := range map[family]goiptables.Protocol{ip4: goiptables.ProtocolIPv4, ip6: goiptables.ProtocolIPv6} {
				other, err := goiptables.New(goiptables.IPFamily(proto), goiptables.Path(mustLook(t, b.program(f, ""))))
				if err != nil {
					return err
				}
				check := func(chain string, args ...string) {
					if ok, err := other.Exists("filter", chain, args...); err != nil || !ok {
						t.Errorf("%s: -C %s %q: %t, %v", f, chain, args, ok, err)
					}
				}
				check("FORWARD", "-j", chainMain)
				n := 0
				for name, rules := range p.rules(f) {
					for _, r := range rules {
						check(name, r.args()...)
						n++
					}
				}
				if n < 5 {
					t.Errorf("%s: only %d rules were looked for", f, n)
				}
			}
			return nil
		})
	})
}

func mustLook(t *testing.T, program string) string {
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A removal leaves what there was, to the byte: also if there was no table.
func TestRemoveLeavesNoTrace(t *testing.T) {
	saved := func(t *testing.T, w *world) (text string) {
		for _, f := range families {
			res, err := w.run(context.Background(), []string{w.backend.program(f, "save")}, "")
			if err != nil || res.Status != 0 {
				t.Fatal(err, res.Stderr)
			}
			text += unstamped.ReplaceAllString(res.Stdout, "")
		}
		return text
	}
	backendsHere(t, func(t *testing.T, b Backend) {
		for name, prepare := range map[string][]event{
			"no table": nil,
			"an engine": {only4("", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-P FORWARD DROP", "-A FORWARD -j DOCKER-USER",
				"-A FORWARD -i docker0 -o docker0 -m comment --comment two\\words -j ACCEPT")},
			"both families": {both("", "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT", "-N OTHER")},
		} {
			t.Run(name, func(t *testing.T) {
				w := realWorld(t, b)
				for _, e := range prepare {
					if err := e.do(w); err != nil {
						t.Fatal(err)
					}
				}
				if b == Legacy {
					// The kernel makes a legacy table when somebody first asks
					// for it, and never removes it.
					both("", "-L FORWARD").do(w)
				}
				before := saved(t, w)
				for _, p := range policies {
					if _, err := w.firewall.Reconcile(context.Background(), p); err != nil {
						t.Fatal(err)
					}
				}
				if saved(t, w) == before {
					t.Fatal("nothing was enforced")
				}
				removed, err := w.firewall.Remove(context.Background())
				if err != nil || len(removed) == 0 {
					t.Fatal(removed, err)
				}
				if after := saved(t, w); after != before {
					t.Fatalf("before\n%s\nafter\n%s", before, after)
				}
				if removed, err := w.firewall.Remove(context.Background()); err != nil || len(removed) != 0 {
					t.Fatalf("removed %q, %v from nothing", removed, err)
				}
			})
		}
	})
}
