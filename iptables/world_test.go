package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/link"
)

// world is a host's tables, real or not, with a firewall that works on them.
type world struct {
	run      Run
	backend  Backend // whose programs are run for events
	firewall *Firewall
}

func (w *world) iptables(f family, args ...string) error {
	res, err := w.run(context.Background(), append([]string{w.backend.program(f, "")}, args...), "")
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("status %d: %s", res.Status, res.Stderr)
	}
	return err
}

// dump is the filter tables as text: all, which is every chain, its policy,
// and its rules in order, those of ours as this package writes them; and what
// of it belongs to others, to the byte.
func (w *world) dump(t errorer) (all, foreign string) {
	var a, other []string
	for _, f := range families {
		found, absent, err := tool{run: w.run, backend: w.backend}.list(context.Background(), f)
		if err != nil {
			t.Fatalf("listing: %v", err)
		}
		if absent || found == nil {
			continue
		}
		for _, c := range found.chains {
			own := slices.Contains(chains[:], c.name)
			a = append(a, fmt.Sprintf("%s %s %s", f, c.name, c.policy))
			for i, r := range c.rules {
				a = append(a, fmt.Sprintf("%s %s %03d %s", f, c.name, i+1, r.canonical(c.name)))
			}
			if !own {
				// Of the rules of others, the text itself counts. One that
				// leads to our chains cannot outlive them.
				var kept []string
				for _, r := range c.rules {
					if !slices.Contains(chains[:], r.jump()) {
						kept = append(kept, r.text)
					}
				}
				if c.policy != "ACCEPT" || len(kept) > 0 { // else it is as if not there
					other = append(other, fmt.Sprintf("%s %s %s %q", f, c.name, c.policy, kept))
				}
			}
		}
	}
	slices.Sort(a)
	slices.Sort(other)
	return strings.Join(a, "\n"), strings.Join(other, "\n")
}

type errorer interface {
	Fatalf(format string, args ...any)
}

// event is something that happens to a host's rules.
type event struct {
	name string
	do   func(w *world) error // an error is no reason to stop: it may not apply
}

// both runs iptables with the same words for IPv4 and IPv6.
func both(name string, commands ...string) event {
	return event{name, func(w *world) error {
		for _, f := range families {
			for _, c := range commands {
				if err := w.iptables(f, strings.Fields(c)...); err != nil {
					return err
				}
			}
		}
		return nil
	}}
}

// only4 is both without IPv6, as the engine does by default.
func only4(name string, commands ...string) event {
	return event{name, func(w *world) error {
		for _, c := range commands {
			if err := w.iptables(ip4, strings.Fields(c)...); err != nil {
				return err
			}
		}
		return nil
	}}
}

// events are what a host's rules go through, and worse.
var events = []event{
	both("everything is flushed", "-F"),
	both("flushed and every chain deleted", "-F", "-X"),
	both("FORWARD is flushed", "-F FORWARD"),
	both("DOCKER-USER is flushed", "-F DOCKER-USER"),
	both("our chain is flushed", "-F AMBASSADOR-ICC"),
	both("our other chain is flushed", "-F AMBASSADOR-ICC-ANY"),
	both("our chain is deleted", "-D DOCKER-USER -j AMBASSADOR-ICC", "-F AMBASSADOR-ICC", "-X AMBASSADOR-ICC"),
	both("our last chain is deleted", "-F AMBASSADOR-ICC", "-F AMBASSADOR-ICC-CLOSED", "-X AMBASSADOR-ICC-CLOSED"),
	both("the jump is removed", "-D DOCKER-USER -j AMBASSADOR-ICC"),
	both("the jump from FORWARD is removed", "-D FORWARD -j AMBASSADOR-ICC"),
	both("the jump is doubled", "-A DOCKER-USER -j AMBASSADOR-ICC"),
	both("the jump is doubled at the top", "-I DOCKER-USER 1 -j AMBASSADOR-ICC"),
	both("a jump from FORWARD is added", "-A FORWARD -j AMBASSADOR-ICC"),
	both("a rule of others leads to our chain", "-A FORWARD -i eth7 -j AMBASSADOR-ICC-ANY"),
	both("a rule of others is in our chain", "-I AMBASSADOR-ICC 1 -i eth9 -j ACCEPT"),
	both("a rule of ours is doubled", "-A AMBASSADOR-ICC-ANY -o docker0 -j DROP"),
	both("a rule of ours is removed", "-D AMBASSADOR-ICC-ANY -o docker0 -j DROP"),
	both("a user's rule before ours", "-I DOCKER-USER 1 -i eth0 -j ACCEPT"),
	both("a user's rule behind ours", "-A DOCKER-USER -o eth0 -m mark --mark 0x7 -j RETURN"),
	both("a user's rule at the top of FORWARD", "-I FORWARD 1 -i tun0 -j ACCEPT"),
	both("a policy", "-P FORWARD DROP"),
	only4("the engine starts", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-I FORWARD -j DOCKER-USER"),
	only4("the engine is back after a flush", "-I FORWARD -j DOCKER-USER"),
	only4("the engine is back, and puts its own rules first", "-I FORWARD -j DOCKER-USER", "-I FORWARD -i docker0 -o docker0 -j ACCEPT"),
	only4("a network is created", "-D FORWARD -j DOCKER-USER", "-I FORWARD -j DOCKER-USER", "-A FORWARD -i docker0 -o docker0 -j ACCEPT"),
	both("an engine that knows IPv6 starts", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-I FORWARD -j DOCKER-USER"),
	both("a user's quotes", `-I FORWARD 1 -i eth3 -m comment --comment a"b\c -j ACCEPT`),
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// policies are some to change between.
var policies = []Policy{
	{},
	{Bridges: []Bridge{{"docker0", true}}},
	{Bridges: []Bridge{{"docker0", true}, {"br-1", false}, {"br-2", true}}},
	{
		Bridges: []Bridge{{"docker0", true}, {"br-1", false}},
		Allow: []Allow{
			{"docker0", Endpoint{addr("172.17.0.3"), "veth3"}, Endpoint{addr("172.17.0.2"), "veth2"}, link.Port{Number: 5432, Proto: link.TCP}},
			{"docker0", Endpoint{addr("172.17.0.3"), ""}, Endpoint{addr("172.17.0.2"), ""}, link.Port{Number: 53, Proto: link.UDP}},
			{"docker0", Endpoint{addr("fd00::3"), "veth3"}, Endpoint{addr("fd00::2"), "veth2"}, link.Port{Number: 80, Proto: link.TCP}},
		},
	},
}

// enforced fails the test unless the tables say the policy, once.
func enforced(t testing.TB, w *world, p Policy) {
	t.Helper()
	for _, f := range families {
		found, absent, err := tool{run: w.run, backend: w.backend}.list(context.Background(), f)
		if err != nil {
			t.Fatal(err)
		}
		if absent {
			continue
		}
		want := p.rules(f)
		hook := found.hook()
		for _, name := range chains {
			c := found.chain(name)
			if len(want) == 0 && c != nil {
				t.Fatalf("%s: chain %s is there", f, name)
			}
			var got []string
			if c != nil {
				for _, r := range c.rules {
					if r, ok := parseRule(name, r.words); !ok || r != made {
						got = append(got, joinWords(r.args()))
					}
				}
			}
			var wanted []string
			for _, r := range want[name] {
				wanted = append(wanted, joinWords(r.args()))
			}
			if !slices.Equal(got, wanted) {
				t.Fatalf("%s: chain %s is\n%s\nwant\n%s", f, name, strings.Join(got, "\n"), strings.Join(wanted, "\n"))
			}
		}
		if found == nil {
			continue
		}
		for _, c := range found.chains {
			for i, r := range c.rules {
				if r.always(chainMain) && (c.name != hook || i != 0 || len(want) == 0) {
					t.Fatalf("%s: rule %d of %s jumps to our chain", f, i+1, c.name)
				}
			}
		}
		if c := found.chain(hook); len(want) > 0 && (c == nil || len(c.rules) == 0 || !c.rules[0].always(chainMain)) {
			t.Fatalf("%s: %s does not begin with a jump to our chain", f, hook)
		}
	}
}
