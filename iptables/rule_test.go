package iptables

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
)

var someRule = rapid.Custom(func(t *rapid.T) rule {
	name := rapid.StringMatching(`[a-z][a-z0-9_.:@-]{0,14}`)
	maybe := func(what string) string {
		if rapid.Bool().Draw(t, "has "+what) {
			return name.Draw(t, what)
		}
		return ""
	}
	r := rule{
		chain:   chainMain,
		in:      maybe("in"),
		out:     maybe("out"),
		physIn:  maybe("physIn"),
		state:   rapid.SampledFrom([]string{"", "NEW", "ESTABLISHED"}).Draw(t, "state"),
		dir:     rapid.SampledFrom([]string{"", "ORIGINAL", "REPLY"}).Draw(t, "dir"),
		comment: rapid.StringMatching(`|[ -~]{1,30}`).Draw(t, "comment"),
		jump:    rapid.SampledFrom([]string{"", "ACCEPT", "DROP", chainAny}).Draw(t, "jump"),
	}
	if rapid.Bool().Draw(t, "has addresses") {
		var a, b [4]byte
		copy(a[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "src"))
		copy(b[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "dst"))
		r.src, r.dst = netip.AddrFrom4(a), netip.AddrFrom4(b)
	}
	if rapid.Bool().Draw(t, "has port") {
		r.proto = rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "proto")
		r.dport = rapid.Uint16Min(1).Draw(t, "dport")
		r.syn = r.proto == "tcp" && rapid.Bool().Draw(t, "syn")
	}
	return r
})

// What is written as words of a line is read as the same rule.
func TestRuleIsReadAsItIsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := someRule.Draw(t, "rule")
		text := joinWords(r.args())
		words, ok := splitWords(text)
		if !ok || !slices.Equal(words, r.args()) {
			t.Fatalf("%q is split into %q, %t", text, words, ok)
		}
		if got, ok := parseRule(r.chain, words); !ok || got != r {
			t.Fatalf("%q is read as %+v, %t, want %+v", text, got, ok, r)
		}
	})
}

// Real listings of the same rule by different programs.
func TestRuleIsReadAsItIsListed(t *testing.T) {
	first := policies[3].Allow[0].rules()[0]
	for _, listed := range []string{
		// iptables 1.8.9, nf_tables and legacy
		"-s 172.17.0.3/32 -d 172.17.0.2/32 -i docker0 -o docker0 -p tcp -m physdev --physdev-in veth3 -m tcp --dport 5432 --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j ACCEPT",
		// iptables 1.4: two spaces, no masks
		"-s 172.17.0.3 -d 172.17.0.2 -i docker0 -o docker0 -p tcp -m physdev  --physdev-in veth3 -m tcp --dport 5432 --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j ACCEPT",
		// matches first
		"-p tcp -m tcp --dport 5432 --tcp-flags FIN,SYN,RST,ACK SYN -i docker0 -o docker0 -s 172.17.0.3 -d 172.17.0.2 -m conntrack --ctstate NEW -m physdev --physdev-in veth3 -j ACCEPT",
	} {
		words, ok := splitWords(listed)
		got, parsed := parseRule(chainMain, words)
		if !ok || !parsed || got != first {
			t.Errorf("%q is read as %+v, %t", listed, got, parsed)
		}
	}
}

// What this package would not make is not taken for something it would.
func TestForeignRuleIsNotOurs(t *testing.T) {
	for _, listed := range []string{
		"! -i docker0 -j DROP",
		"-i docker0 ! -o docker0 -j DROP",
		"-s 172.17.0.0/16 -j DROP",
		"-s 172.17.0.3/33 -j DROP",
		"-s fe80::1%eth0 -j DROP",
		"-i docker0 -j",
		"-i docker0 -i docker0 -j DROP",
		"-p tcp -m tcp --dport 5432 --dport 5433 -j DROP",
		"-p tcp -m tcp --dport 5432:5433 -j ACCEPT",
		"-p tcp -m tcp --dport 0 -j ACCEPT",
		"-p tcp -m tcp --tcp-flags FIN,SYN SYN -j ACCEPT",
		"-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
		"-m conntrack --ctstate NEW --ctstate NEW -j ACCEPT",
		"-m mark --mark 0x1 -j ACCEPT",
		"-i docker0 -g AMBASSADOR-ICC-ANY",
		`-m comment --comment "" -j DROP`,
	} {
		words, ok := splitWords(listed)
		if !ok {
			t.Fatalf("%q cannot be split", listed)
		}
		if r, ok := parseRule(chainMain, words); ok {
			t.Errorf("%q is read as %+v", listed, r)
		}
	}
}

func TestPolicyIsRefused(t *testing.T) {
	closed := []Bridge{{"docker0", true}, {"br-1", false}}
	a, b := Endpoint{Addr: addr("172.17.0.2")}, Endpoint{Addr: addr("172.17.0.3")}
	port := link.Port{Number: 80, Proto: link.TCP}
	for _, test := range []struct {
		policy Policy
		text   string
	}{
		{Policy{Bridges: []Bridge{{"", true}}}, `impossible policy: interface "" cannot be named in a rule`},
		{Policy{Bridges: []Bridge{{"br+", true}}}, `impossible policy: interface "br+" cannot be named in a rule`},
		{Policy{Bridges: []Bridge{{"-i", true}}}, `impossible policy: interface "-i" cannot be named in a rule`},
		{Policy{Bridges: []Bridge{{"a b", true}}}, `impossible policy: interface "a b" cannot be named in a rule`},
		{Policy{Bridges: []Bridge{{"a\nCOMMIT", true}}}, `impossible policy: interface "a\nCOMMIT" cannot be named in a rule`},
		{Policy{Bridges: []Bridge{{"longer-than-there-is", true}}}, `impossible policy: interface "longer-than-there-is" cannot be named in a rule`},
		{Policy{closed, []Allow{{"docker0", Endpoint{a.Addr, "veth+"}, b, port}}}, `impossible policy: interface "veth+" cannot be named in a rule`},
		{Policy{closed, []Allow{{"br-1", a, b, port}}}, `impossible policy: 172.17.0.2 is allowed to reach 172.17.0.3 on "br-1", which is not closed`},
		{Policy{closed, []Allow{{"br-2", a, b, port}}}, `impossible policy: 172.17.0.2 is allowed to reach 172.17.0.3 on "br-2", which is not closed`},
		{Policy{closed, []Allow{{"docker0", a, a, port}}}, `impossible policy: 172.17.0.2 is both ends`},
		{Policy{closed, []Allow{{"docker0", a, Endpoint{}, port}}}, `impossible policy: no rule goes from 172.17.0.2 to invalid IP`},
		{Policy{closed, []Allow{{"docker0", a, Endpoint{Addr: addr("fd00::1")}, port}}}, `impossible policy: no rule goes from 172.17.0.2 to fd00::1`},
		{Policy{closed, []Allow{{"docker0", Endpoint{Addr: addr("fe80::1%x")}, Endpoint{Addr: addr("fd00::1")}, port}}}, `impossible policy: no rule goes from fe80::1%x to fd00::1`},
		{Policy{closed, []Allow{{"docker0", a, b, link.Port{Number: 80, Proto: link.SCTP}}}}, `impossible policy: port "80/sctp" of 172.17.0.3 is neither tcp nor udp`},
		{Policy{closed, []Allow{{"docker0", a, b, link.Port{Proto: link.TCP}}}}, `impossible policy: port "0/tcp" of 172.17.0.3 is neither tcp nor udp`},
	} {
		k := newFake(NFT)
		_, err := k.firewall().Reconcile(t.Context(), test.policy)
		if !errors.Is(err, ErrPolicy) || err.Error() != test.text {
			t.Errorf("%+v: the error is %v, want %s", test.policy, err, test.text)
		}
		if len(k.tables) != 0 {
			t.Errorf("%+v: rules were made", test.policy)
		}
	}
}

// The order in which a policy names things, and how often, does not show.
func TestPolicyHasOneForm(t *testing.T) {
	p := policies[3]
	q := Policy{
		Bridges: append(slices.Clone(p.Bridges), Bridge{"docker0", false}),
		Allow:   append(slices.Clone(p.Allow), p.Allow...),
	}
	slices.Reverse(q.Bridges)
	slices.Reverse(q.Allow)
	for _, f := range families {
		got, want := q.rules(f), p.rules(f)
		for _, name := range chains {
			if !slices.Equal(got[name], want[name]) {
				t.Errorf("%s: %s is %+v, want %+v", f, name, got[name], want[name])
			}
		}
	}
}

func TestListingIsRefused(t *testing.T) {
	for _, test := range []struct{ text, err string }{
		{"*filter\n:INPUT ACCEPT [0:0]\n", `reading the listed rules: table "filter" does not end`},
		{"*filter\n-A INPUT -j DROP\nCOMMIT\n", `reading line 2 of the listed rules: "-A INPUT -j DROP" is no rule of a chain`},
		{"*filter\n:INPUT ACCEPT\n:INPUT ACCEPT\nCOMMIT\n", `reading line 3 of the listed rules: chain "INPUT" is there twice`},
		{"*filter\n:INPUT\nCOMMIT\n", `reading line 2 of the listed rules: ":INPUT" is no line of a table`},
		{"*filter\n:INPUT ACCEPT\n-A INPUT --comment \"x\nCOMMIT\n", `reading line 3 of the listed rules: "-A INPUT --comment \"x" is no line of a table`},
	} {
		if _, err := parseListing(test.text); err == nil || err.Error() != test.err {
			t.Errorf("%q: the error is %v, want %s", test.text, err, test.err)
		}
	}
}

// Only the filter table counts, wherever it stands.
func TestListingKeepsTheFilterTable(t *testing.T) {
	text := "# x\n*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DROP\nCOMMIT\n*filter\n:FORWARD DROP [1:2]\n-A FORWARD  -i  eth0 -m comment --comment \"a \\\"b\\\" -j x\" -j ACCEPT\nCOMMIT\n*raw\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
	l, err := parseListing(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.chains) != 1 || l.chains[0].name != "FORWARD" || l.chains[0].policy != "DROP" || len(l.chains[0].rules) != 1 {
		t.Fatalf("read %+v", l)
	}
	r := l.chains[0].rules[0]
	if want := `-i  eth0 -m comment --comment "a \"b\" -j x" -j ACCEPT`; r.text != want {
		t.Errorf("the text is %q, want %q", r.text, want)
	}
	if want := []string{"-i", "eth0", "-m", "comment", "--comment", `a "b" -j x`, "-j", "ACCEPT"}; !slices.Equal(r.words, want) {
		t.Errorf("the words are %q, want %q", r.words, want)
	}
	if l, err := parseListing("*nat\nCOMMIT\n"); l != nil || err != nil {
		t.Errorf("no filter table is read as %+v, %v", l, err)
	}
}

func FuzzListing(f *testing.F) {
	f.Add("*filter\n:FORWARD ACCEPT [0:0]\n:AMBASSADOR-ICC - [0:0]\n-A FORWARD -j AMBASSADOR-ICC\n-A AMBASSADOR-ICC -i docker0 -j DROP\nCOMMIT\n")
	f.Add("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m comment --comment \"a \\\" b\" -j ACCEPT\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parseListing(text)
		if err != nil {
			return
		}
		for _, want := range policies {
			planFor(want.rules(ip4), l)
		}
		if l == nil {
			return
		}
		for _, c := range l.chains {
			for _, r := range c.rules {
				if words, ok := splitWords(joinWords(r.words)); !ok || !slices.Equal(words, r.words) {
					t.Errorf("%q is joined and split to %q", r.words, words)
				}
				if strings.Contains(r.text, "\n") {
					t.Errorf("rule %q is more than a line", r.text)
				}
				if own, ok := parseRule(c.name, r.words); ok {
					if again, ok := parseRule(c.name, own.args()); !ok || again != own {
						t.Errorf("%q is read as %+v, and that as %+v", r.text, own, again)
					}
				}
			}
		}
	})
}
