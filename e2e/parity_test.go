package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// parityCases is how many generated containers and links are compared.
const parityCases = 42

// TestParityWithDockerLinks runs the same recipient with Docker's own links
// and with linkrun, and compares what it sees of its sources.
func TestParityWithDockerLinks(t *testing.T) {
	h := newHost(t)
	rng := rand.New(rand.NewPCG(1, 2)) // the same cases each time: a failure has to be found again
	for i := range parityCases {
		c := generate(rng, i)
		t.Run(c.name(), func(t *testing.T) {
			t.Parallel()
			c.compare(t, h)
		})
	}
}

// parityCase is one recipient and its sources.
type parityCase struct {
	number  int
	sources []paritySource
	own     []string // flags of the recipient that touch variables
}

type paritySource struct {
	flags []string // of docker run
	alias string
}

func (c parityCase) name() string { return fmt.Sprintf("%02d with %d links", c.number, len(c.sources)) }

func generate(rng *rand.Rand, number int) parityCase {
	c := parityCase{number: number}
	aliases := slices.Clone(parityAliases)
	rng.Shuffle(len(aliases), func(i, j int) { aliases[i], aliases[j] = aliases[j], aliases[i] })
	for i := range 1 + rng.IntN(3) {
		c.sources = append(c.sources, paritySource{alias: aliases[i], flags: slices.Concat(randomPorts(rng), randomEnv(rng))})
	}
	if rng.IntN(3) == 0 {
		c.own = append(c.own, "-e", link1(c.sources[0].alias)+"_NAME=mine")
	}
	if rng.IntN(3) == 0 {
		c.own = append(c.own, "-e", link1(c.sources[0].alias)+"_ENV_A") // unset here: takes the variable away
	}
	return c
}

// link1 is a link's prefix, written down apart from the code under test.
func link1(alias string) string {
	return strings.ReplaceAll(strings.ToUpper(alias), "-", "_")
}

var parityAliases = []string{"db", "DB2", "my-db", "my.db", "a--b", "1st", "with_under", "x", "web-1.example.com", "Ünïcode"}

func randomPorts(rng *rand.Rand) (flags []string) {
	proto := func() string { return []string{"", "/tcp", "/udp", "/sctp"}[rng.IntN(4)] }
	for range rng.IntN(4) {
		first := 1 + rng.IntN(65000)
		switch rng.IntN(3) {
		case 0:
			flags = append(flags, fmt.Sprintf("--expose=%d%s", first, proto()))
		case 1:
			flags = append(flags, fmt.Sprintf("--expose=%d-%d%s", first, first+1+rng.IntN(4), proto()))
		default: // neighbours of different protocols are no range for one algorithm and one for the other
			flags = append(flags, fmt.Sprintf("--expose=%d/tcp", first), fmt.Sprintf("--expose=%d/udp", first+1), fmt.Sprintf("--expose=%d/tcp", first+2))
		}
	}
	return flags
}

var parityValues = []string{"", "plain", "a=b=c", "with space", "line one\nline two", "\ttab", `quote " and '`, "$HOME", "trailing\n", "ünï"}

func randomEnv(rng *rand.Rand) (flags []string) {
	for _, name := range []string{"A", "b", "HOME", "PATH", "LONG_NAME", "X.Y"} {
		if rng.IntN(2) == 0 {
			flags = append(flags, "-e", name+"="+parityValues[rng.IntN(len(parityValues))])
		}
	}
	return flags
}

func (c parityCase) compare(t *testing.T, h *host) {
	links := []string{"run", "--rm", "--name", fmt.Sprintf("recipient%d", c.number), "--hostname", "recipient"}
	for i, s := range c.sources {
		name := fmt.Sprintf("source%d-%d", c.number, i)
		// By path: a generated PATH finds nothing.
		h.source(t, name, slices.Concat([]string{"--hostname", "host-" + name}, s.flags, []string{h.busybox, "/bin/sleep", "1000"})...)
		links = append(links, "--link", name+":"+s.alias)
	}
	// The variables end with a NUL each, so newlines in values are seen.
	ask := append(slices.Clone(c.own), h.busybox, "sh", "-c", "cat /proc/self/environ; printf '\\0\\0'; cat /etc/hosts")
	theirs := parseSeen(t, h.docker(t, append(slices.Clone(links), ask...)...))
	ours := parseSeen(t, h.linkrun(t, append(links[1:], ask...)...))

	if len(theirs.hosts) <= len(c.sources) || len(theirs.env) <= len(c.sources) {
		t.Fatalf("Docker's links do not show on this engine: %q", theirs)
	}
	for name := range theirs.env {
		if ours.env[name] != theirs.env[name] {
			t.Errorf("%s = %q, Docker's links set %q", name, ours.env[name], theirs.env[name])
		}
	}
	for name, value := range ours.env {
		if _, ok := theirs.env[name]; !ok {
			t.Errorf("%s = %q is set, Docker's links do not set it", name, value)
		}
	}
	if a, b := slices.Sorted(maps.Keys(ours.hosts)), slices.Sorted(maps.Keys(theirs.hosts)); !slices.Equal(a, b) {
		t.Errorf("names in the hosts file: %q, with Docker's links %q", a, b)
	}
}

type seen struct {
	env   map[string]string
	hosts map[string]string
}

// addressOfLink is an address of the default bridge or of an alias.
var addressOfLink = regexp.MustCompile(`\b(172\.17|127\.77)\.\d+\.\d+\b`)

func parseSeen(t *testing.T, out string) seen {
	t.Helper()
	env, hosts, ok := strings.Cut(out, "\x00\x00\x00")
	if !ok {
		t.Fatalf("no end of the variables in %q", out)
	}
	s := seen{env: map[string]string{}, hosts: map[string]string{}}
	for v := range strings.SplitSeq(env, "\x00") {
		name, value, _ := strings.Cut(v, "=")
		if name != "HOSTNAME" { // the container's id
			s.env[name] = addressOfLink.ReplaceAllString(value, "ADDRESS")
		}
	}
	for line := range strings.Lines(hosts) {
		fields := strings.Fields(line)
		if len(fields) > 1 && addressOfLink.MatchString(fields[0]) {
			for _, name := range fields[1:] {
				s.hosts[name] = fields[0]
			}
		}
	}
	return s
}
