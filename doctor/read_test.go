package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
)

// healthy are the facts of a host without a hole.
func healthy() Facts {
	return Facts{
		Engine:   Engine{Version: "20.10.24", ManagesRules: true, Forwarding: true},
		Enforced: "deny",
		Bridges: []Bridge{
			{Network: "bridge", Device: "docker0", Default: true, Closed: true, Why: "the engine was started with icc=false", Netfilter: true},
			{Network: "app", Device: "br-1", Closed: true, Why: "the ambassador denies all", Netfilter: true, Containers: []string{"web"}},
		},
		Containers: []Container{{Name: "web"}},
	}
}

func TestHealthy(t *testing.T) {
	r := Report{Findings: Judge(healthy())}
	if !r.Passed(true) {
		t.Errorf("%+v", r.Findings)
	}
	for _, cis := range []string{"2.2", "2.4", "2.16", "5.4", "5.9", "5.10", "5.14", "5.30", "5.32"} {
		if !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.CIS == cis }) {
			t.Errorf("nothing is said about item %s", cis)
		}
	}
}

// Each hole, opened in what was read, is the one that is found.
func TestJudgeFindsEachHole(t *testing.T) {
	everywhere := Published{On: netip.IPv4Unspecified(), Host: 8080, Port: link.Port{Number: 80, Proto: link.TCP}}
	for _, test := range []struct {
		name string
		open func(f *Facts)
		want []string // verdict, item, check, subject: detail
	}{
		{"icc", func(f *Facts) { f.Bridges[0].Closed, f.Bridges[0].Why = false, "icc is enabled" },
			[]string{"hole 2.2 icc bridge docker0 (network bridge): open: icc is enabled"}},
		{"icc of a network", func(f *Facts) { f.Bridges[1].Closed, f.Bridges[1].Why = false, "icc is enabled" },
			[]string{"warning 2.2 icc bridge br-1 (network app): open: icc is enabled"}},
		{"a port", func(f *Facts) { f.Bridges[1].Open = []string{"veth7"} },
			[]string{"hole 2.2 isolation bridge br-1 (network app): port veth7 is not isolated"}},
		{"rules", func(f *Facts) { f.Missing = []string{"ip: made the jump from DOCKER-USER"} },
			[]string{"hole 2.2 enforcement host: missing: ip: made the jump from DOCKER-USER"}},
		{"no ambassador", func(f *Facts) { f.Enforced = "" },
			[]string{"warning 2.2 enforcement ambassador: no ambassador serves: what it left is enforced, and new containers are not"}},
		{"an ambassador that enforces nothing", func(f *Facts) { f.Enforced = "off" },
			[]string{"warning 2.2 enforcement ambassador: the ambassador serves with --icc=off"}},
		{"bridge netfilter", func(f *Facts) { f.Bridges[0].Netfilter = false },
			[]string{"warning 2.2 bridge-netfilter bridge docker0 (network bridge): frames do not pass the host's rules: the isolation of ports is all there is"}},
		{"iptables=false", func(f *Facts) { f.Engine.ManagesRules = false },
			[]string{"warning 2.4 iptables engine: the engine changes firewall rules: false"}},
		{"userland proxy", func(f *Facts) { f.Engine.UserlandProxy = true },
			[]string{"warning 2.16 userland-proxy engine: the engine's proxy for published ports is on: true"}},
		{"no forwarding", func(f *Facts) { f.Engine.Forwarding = false },
			[]string{"warning - forwarding engine: the host forwards no packets (net.ipv4.ip_forward): containers do not reach the outside"}},
		{"raw frames", func(f *Facts) { f.Containers[0].NetRaw = true },
			[]string{"warning 5.4 net-raw container web: may send raw frames (NET_RAW)"}},
		{"privileged", func(f *Facts) { f.Containers[0].Privileged = true },
			[]string{"warning 5.4 net-raw container web: is privileged, so it may send raw frames, and leave its container"}},
		{"host network", func(f *Facts) { f.Containers[0].HostNetwork = true },
			[]string{"hole 5.10 host-network container web: is on the host's network: it reaches every container as the host does"}},
		{"published", func(f *Facts) { f.Containers[0].Published = []Published{everywhere} },
			[]string{"warning 5.14 published-everywhere container web: publishes on every interface, so that other containers reach it by way of the host, too: 0.0.0.0:8080"}},
		{"default bridge", func(f *Facts) { f.Bridges[0].Containers = []string{"web", "db"} },
			[]string{"warning 5.30 default-bridge bridge docker0 (network bridge): is used by web, db"}},
		{"socket", func(f *Facts) { f.Containers[0].Sockets = []string{"/var/run/docker.sock"} },
			[]string{"hole 5.32 engine-socket container web: has the engine's socket, by which it reaches everything: /var/run/docker.sock"}},
		{"all that is no hole", func(f *Facts) {
			f.Bridges[1].Closed, f.Bridges[1].Allowed, f.Bridges[1].Why = false, true, "labelled ambassador.icc=allow"
			f.Containers[0].Published = []Published{{On: netip.MustParseAddr("10.0.0.1"), Host: 80, Port: everywhere.Port}}
			f.Engine.FlagsUnknown = "it is on another host"
			f.Skipped = []string{"lan (macvlan)"}
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := healthy()
			test.open(&f)
			r := Report{Findings: Judge(f)}
			var got []string
			hole := false
			for _, f := range r.Findings {
				if f.How != Read {
					t.Errorf("%+v is not said to be read", f)
				}
				if rank(f.Verdict) >= rank(Warning) {
					got = append(got, fmt.Sprintf("%s %s %s %s: %s", f.Verdict, orDash(f.CIS), f.Check, f.Subject, f.Detail))
					hole = hole || f.Verdict == Hole
					if f.Hint == "" {
						t.Errorf("%s: what to do?", f.Check)
					}
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			if r.Passed(false) == hole || r.Passed(true) != (len(test.want) == 0) {
				t.Errorf("passed: %t, strictly %t", r.Passed(false), r.Passed(true))
			}
		})
	}
}

func TestTable(t *testing.T) {
	r := Report{}
	r.Add(
		Finding{Verdict: OK, How: Read, CIS: "2.4", Check: "iptables", Subject: "engine", Detail: "it does"},
		Finding{Verdict: Hole, How: Tried, CIS: "2.2", Check: "tcp", Subject: "bridge docker0", Detail: "arrives", Hint: "close it"},
		Finding{Verdict: Hole, How: Tried, CIS: "2.2", Check: "tcp", Subject: "bridge br-1", Detail: "arrives", Frames: []string{"a SYN", "another"}, Hint: "close it"},
		Finding{Verdict: OK, How: Tried, CIS: "2.2", Check: "tcp", Subject: "bridge br-2", Detail: "does not arrive", Frames: []string{"a SYN"}},
		Finding{Verdict: Note, How: Tried, CIS: "2.2", Check: "arp", Subject: "bridge br-2", Detail: "arrives", Frames: []string{"a", "b"}},
		Finding{Verdict: OK, How: Tried, CIS: "2.2", Check: "udp", Subject: "bridge br-2", Detail: "does not arrive", Frames: []string{"a", "b"}},
		Finding{Verdict: Note, How: Read, Check: "engine", Subject: "engine", Detail: "20.10"},
	)
	var table, text strings.Builder
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	const want = `READ: settings of the engine and the host

VERDICT  CIS  CHECK     SUBJECT  FOUND
ok       2.4  iptables  engine   it does
note     -    engine    engine   20.10

TRIED: frames sent from throw-away ports

VERDICT  CIS  CHECK     SUBJECT         FOUND
HOLE     2.2  tcp       bridge docker0  arrives
HOLE     2.2  tcp       bridge br-1     arrives: a SYN; another
ok       2.2  2 checks  bridge br-2     does not arrive: tcp, udp
note     2.2  arp       bridge br-2     arrives; frames sent: 2

tcp: close it

Something passes that should not: 2 holes, 0 unknown, 0 warnings.
`
	if table.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &table, want)
	}
	r.Findings = []Finding{r.Findings[0], r.Findings[2]}
	if err := r.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	const wantJSON = `{
  "worst": "hole",
  "findings": [
    {
      "verdict": "ok",
      "how": "read",
      "cis": "2.4",
      "check": "iptables",
      "subject": "engine",
      "detail": "it does"
    },
    {
      "verdict": "hole",
      "how": "tried",
      "cis": "2.2",
      "check": "tcp",
      "subject": "bridge br-1",
      "detail": "arrives",
      "frames": [
        "a SYN",
        "another"
      ],
      "hint": "close it"
    }
  ]
}
`
	if text.String() != wantJSON {
		t.Errorf("got\n%s\nwant\n%s", &text, wantJSON)
	}
}

func TestReadFlags(t *testing.T) {
	for _, test := range []struct {
		name, cmdline, config string
		manages, proxy        bool
		unknown               string
	}{
		{"nothing is said", "/usr/bin/dockerd -H fd://", "", true, true, ""},
		{"the command line", "dockerd --iptables=false --userland-proxy=false", "", false, false, ""},
		{"given without a value", "dockerd --iptables --userland-proxy", "", true, true, ""},
		{"the file", "dockerd", `{"iptables": false, "userland-proxy": false, "debug": true}`, false, false, ""},
		{"another file", "dockerd --config-file /etc/docker/other.json", "", true, true, ""},
		{"a file that is broken", "dockerd", `{"iptables": fals`, true, true,
			`reading the engine's configuration "/etc/docker/daemon.json": invalid character '}' in literal false (expecting 'e')`},
	} {
		t.Run(test.name, func(t *testing.T) {
			proc := t.TempDir()
			if strings.HasSuffix(test.config, "fals") {
				test.config += "}"
			}
			write := func(name, text string) {
				path := filepath.Join(proc, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("cmdline", strings.ReplaceAll(test.cmdline, " ", "\x00")+"\x00")
			if test.config != "" {
				write("root/etc/docker/daemon.json", test.config)
			}
			e := Engine{ManagesRules: true, UserlandProxy: true}
			unknown := ""
			if err := e.readProcess(proc); err != nil {
				unknown = err.Error()
			}
			if unknown != test.unknown || e.ManagesRules != test.manages || e.UserlandProxy != test.proxy {
				t.Errorf("read %+v, %q", e, unknown)
			}
		})
	}
	var e Engine
	e.ReadFlags(filepath.Join(t.TempDir(), "none.sock"))
	if !strings.HasPrefix(e.FlagsUnknown, "asking who the engine is: dial unix ") {
		t.Errorf("unknown because %q", e.FlagsUnknown)
	}
}

// Spare addresses are of the subnet, nobody's, and not everybody's.
func TestSpareAddresses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var bytes [4]byte
		copy(bytes[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))
		subnet := netip.PrefixFrom(netip.AddrFrom4(bytes), rapid.IntRange(8, 32).Draw(t, "bits"))
		used := []netip.Addr{subnet.Masked().Addr().Next()}
		for a, n := last(subnet), rapid.IntRange(0, 20).Draw(t, "used"); n > 0 && subnet.Contains(a); n-- {
			used = append(used, a)
			a = a.Prev()
		}
		seen := map[netip.Addr]bool{}
		for _, p := range spare(subnet, used, 2) {
			a := p.Addr()
			if !subnet.Contains(a) || slices.Contains(used, a) || seen[a] || a == subnet.Masked().Addr() ||
				p.Bits() != subnet.Bits() || subnet.Bits() < 31 && a == last(subnet) {
				t.Fatalf("%v of %v, of which %v are used", p, subnet, used)
			}
			seen[a] = true
		}
		if free := 1<<(32-subnet.Bits()) - 2 - len(used); len(seen) < 2 && free >= 3 {
			t.Fatalf("found %v in %v, where %d are free", seen, subnet, free)
		}
	})
	for subnet, want := range map[string]string{
		"172.17.0.0/16": "[172.17.255.254/16 172.17.255.253/16]",
		"10.0.0.0/30":   "[10.0.0.2/30 10.0.0.1/30]",
		"10.0.0.0/32":   "[]",
		"fd00::/64":     "[fd00::ffff:ffff:ffff:ffff/64 fd00::ffff:ffff:ffff:fffe/64]",
	} {
		if got := fmt.Sprint(spare(netip.MustParsePrefix(subnet), nil, 2)); got != want {
			t.Errorf("%s: %s, want %s", subnet, got, want)
		}
	}
}

// What is not seen, and would not have been seen, is no proof.
func TestBlindTrialProvesNothing(t *testing.T) {
	trial := trial{shots: []shot{{check: "tcp", subject: "a"}, {check: "arp", subject: "a"}}, seen: []bool{false, false}}
	r := Report{Findings: trial.judge(map[string]bool{"tcp": true})}
	if r.Findings[0].Verdict != Unknown || r.Findings[1].Verdict != OK || r.Passed(false) {
		t.Errorf("found %+v", r.Findings)
	}
}
