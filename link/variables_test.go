package link

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var addr = netip.MustParseAddr("127.77.0.2")

func ports(t interface {
	Helper()
	Fatal(...any)
}, list string) []Port {
	t.Helper()
	var out []Port
	for s := range strings.FieldsSeq(list) {
		p, err := ParsePort(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// Whole environments, one per line of thought of moby's own links_test.go.
func TestVariables(t *testing.T) {
	for _, tt := range []struct {
		name  string
		major int
		alias string
		ports string
		env   []string
		mode  Mode
		want  string
	}{
		{
			name: "dash in the alias", major: 28, alias: "docker-1", ports: "6379/tcp",
			want: `
				DOCKER_1_PORT=tcp://127.77.0.2:6379
				DOCKER_1_PORT_6379_TCP=tcp://127.77.0.2:6379
				DOCKER_1_PORT_6379_TCP_ADDR=127.77.0.2
				DOCKER_1_PORT_6379_TCP_PORT=6379
				DOCKER_1_PORT_6379_TCP_PROTO=tcp
				DOCKER_1_NAME=/web/docker-1`,
		},
		{
			name: "several protocols and a range", major: 28, alias: "docker",
			ports: "6300/udp 6379/tcp 6380/tcp 6381/tcp 6382/udp", env: []string{"PASSWORD=gordon"},
			want: `
				DOCKER_PORT=tcp://127.77.0.2:6379
				DOCKER_PORT_6379_TCP=tcp://127.77.0.2:6379
				DOCKER_PORT_6379_TCP_ADDR=127.77.0.2
				DOCKER_PORT_6379_TCP_PORT=6379
				DOCKER_PORT_6379_TCP_PROTO=tcp
				DOCKER_PORT_6380_TCP=tcp://127.77.0.2:6380
				DOCKER_PORT_6380_TCP_ADDR=127.77.0.2
				DOCKER_PORT_6380_TCP_PORT=6380
				DOCKER_PORT_6380_TCP_PROTO=tcp
				DOCKER_PORT_6381_TCP=tcp://127.77.0.2:6381
				DOCKER_PORT_6381_TCP_ADDR=127.77.0.2
				DOCKER_PORT_6381_TCP_PORT=6381
				DOCKER_PORT_6381_TCP_PROTO=tcp
				DOCKER_PORT_6300_UDP=udp://127.77.0.2:6300
				DOCKER_PORT_6300_UDP_ADDR=127.77.0.2
				DOCKER_PORT_6300_UDP_PORT=6300
				DOCKER_PORT_6300_UDP_PROTO=udp
				DOCKER_PORT_6382_UDP=udp://127.77.0.2:6382
				DOCKER_PORT_6382_UDP_ADDR=127.77.0.2
				DOCKER_PORT_6382_UDP_PORT=6382
				DOCKER_PORT_6382_UDP_PROTO=udp
				DOCKER_PORT_6379_TCP_START=tcp://127.77.0.2:6379
				DOCKER_PORT_6379_TCP_PORT_START=6379
				DOCKER_PORT_6379_TCP_END=tcp://127.77.0.2:6381
				DOCKER_PORT_6379_TCP_PORT_END=6381
				DOCKER_NAME=/web/docker
				DOCKER_ENV_PASSWORD=gordon`,
		},
		{
			name: "range across protocols before 28", major: 27, alias: "db",
			ports: "5000/tcp 5001/udp 5002/udp",
			want: `
				DB_PORT=tcp://127.77.0.2:5000
				DB_PORT_5000_TCP_START=tcp://127.77.0.2:5000
				DB_PORT_5000_TCP_PORT_START=5000
				DB_PORT_5000_UDP_END=udp://127.77.0.2:5002
				DB_PORT_5000_UDP_PORT_END=5002
				DB_PORT_5000_TCP=tcp://127.77.0.2:5000
				DB_PORT_5000_TCP_ADDR=127.77.0.2
				DB_PORT_5000_TCP_PORT=5000
				DB_PORT_5000_TCP_PROTO=tcp
				DB_PORT_5001_UDP=udp://127.77.0.2:5001
				DB_PORT_5001_UDP_ADDR=127.77.0.2
				DB_PORT_5001_UDP_PORT=5001
				DB_PORT_5001_UDP_PROTO=udp
				DB_PORT_5002_UDP=udp://127.77.0.2:5002
				DB_PORT_5002_UDP_ADDR=127.77.0.2
				DB_PORT_5002_UDP_PORT=5002
				DB_PORT_5002_UDP_PROTO=udp
				DB_NAME=/web/db`,
		},
		{
			name: "no ports", major: 28, alias: "db",
			want: `DB_NAME=/web/db`,
		},
		{
			name: "odd environment", major: 28, alias: "my.db",
			env: []string{"PATH=/bin", "HOME=/", "Case=x", "URL=a=b=c", "EMPTY=", "UNSET", "=x", "PATHS=y"},
			want: `
				MY.DB_NAME=/web/my.db
				MY.DB_ENV_Case=x
				MY.DB_ENV_URL=a=b=c
				MY.DB_ENV_EMPTY=
				MY.DB_ENV_=x
				MY.DB_ENV_PATHS=y`,
		},
		{
			name: "digit first, climbing alias", major: 28, alias: "../1st",
			want: `1ST_NAME=/1st`,
		},
		{
			name: "nested alias", major: 28, alias: "/a/b-c",
			want: `B_C_NAME=/web/a/b-c`,
		},
		{
			name: "mode ports", major: 28, alias: "db", ports: "1/sctp", env: []string{"A=1"}, mode: ModePorts,
			want: `
				DB_PORT=sctp://127.77.0.2:1
				DB_PORT_1_SCTP=sctp://127.77.0.2:1
				DB_PORT_1_SCTP_ADDR=127.77.0.2
				DB_PORT_1_SCTP_PORT=1
				DB_PORT_1_SCTP_PROTO=sctp
				DB_NAME=/web/db`,
		},
		{
			name: "mode none", major: 28, alias: "db", ports: "1/tcp", env: []string{"A=1"}, mode: ModeNone,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := Source{Name: "source", Env: tt.env, Ports: ports(t, tt.ports), Addr: addr}
			got := Variables(tt.major, src, "web", tt.alias, tt.mode)
			want := strings.ReplaceAll(strings.TrimSpace(tt.want), "\t", "")
			if strings.Join(got, "\n") != want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
			}
		})
	}
}

func TestVariablesKeepNewlines(t *testing.T) {
	src := Source{Env: []string{"KEY=-----BEGIN\nabc=\n-----END\n"}}
	got := Variables(28, src, "web", "db", ModeAll)
	want := []string{"DB_NAME=/web/db", "DB_ENV_KEY=-----BEGIN\nabc=\n-----END\n"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The default port and the ranges, where the two algorithms differ.
func TestVariablesByVersion(t *testing.T) {
	for _, tt := range []struct {
		ports                 string
		oldDefault, oldRanges string
		newDefault, newRanges string
	}{
		{ports: "6379/tcp 6380/tcp", oldDefault: "tcp:6379", newDefault: "tcp:6379", newRanges: "6379-6380"},
		{ports: "6379/tcp 6380/tcp 6381/tcp", oldDefault: "tcp:6379", oldRanges: "6379-6381", newDefault: "tcp:6379", newRanges: "6379-6381"},
		{ports: "53/udp 80/tcp", oldDefault: "udp:53", newDefault: "tcp:80"},
		{ports: "53/udp 53/tcp", oldDefault: "tcp:53", newDefault: "tcp:53"},
		{ports: "5000/tcp 5001/udp 5002/tcp", oldDefault: "tcp:5000", oldRanges: "5000-5002", newDefault: "tcp:5000"},
		{ports: "1/tcp 2/tcp 4/tcp 5/tcp 6/tcp", oldDefault: "tcp:1", oldRanges: "4-6", newDefault: "tcp:1", newRanges: "1-2 4-6"},
		{ports: "80/tcp 80/udp 82/tcp", oldDefault: "tcp:80", oldRanges: "80-82", newDefault: "tcp:80"},
		{ports: "9/udp 8/sctp", oldDefault: "sctp:8", newDefault: "sctp:8"},
		{ports: "7/udp 8/sctp", oldDefault: "udp:7", newDefault: "sctp:8"},
		{ports: "65534/tcp 65535/tcp", oldDefault: "tcp:65534", newDefault: "tcp:65534", newRanges: "65534-65535"},
	} {
		for _, major := range []int{20, 27, 28, 29, 30} {
			wantDefault, wantRanges := tt.oldDefault, tt.oldRanges
			if major >= 28 {
				wantDefault, wantRanges = tt.newDefault, tt.newRanges
			}
			src := Source{Ports: ports(t, tt.ports), Addr: addr}
			gotDefault, gotRanges := summarize(Variables(major, src, "web", "db", ModePorts))
			if gotDefault != wantDefault || gotRanges != wantRanges {
				t.Errorf("engine %d, ports %s: default %q, ranges %q; want %q, %q",
					major, tt.ports, gotDefault, gotRanges, wantDefault, wantRanges)
			}
		}
	}
}

// summarize reads the default port and the ranges back from variables.
func summarize(vars []string) (defaultPort, ranges string) {
	var all []string
	start := ""
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		switch {
		case name == "DB_PORT":
			proto, port, _ := strings.Cut(value, "://127.77.0.2:")
			defaultPort = proto + ":" + port
		case strings.HasSuffix(name, "_PORT_START"):
			start = value
		case strings.HasSuffix(name, "_PORT_END"):
			all = append(all, start+"-"+value)
		}
	}
	return defaultPort, strings.Join(all, " ")
}

func drawPorts() *rapid.Generator[[]Port] {
	return rapid.SliceOfDistinct(rapid.Custom(func(t *rapid.T) Port {
		return Port{
			Number: rapid.OneOf(rapid.Uint16Range(1, 12), rapid.Uint16Range(65530, 65535)).Draw(t, "number"),
			Proto:  rapid.SampledFrom([]Proto{TCP, UDP, SCTP}).Draw(t, "proto"),
		}
	}), func(p Port) Port { return p })
}

// Whatever the ports, each one has its four variables, the default is the
// least, and the ranges of Engine 28 are exactly the maximal runs.
func TestVariablesProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := Source{Ports: drawPorts().Draw(t, "ports"), Addr: addr}
		major := rapid.SampledFrom([]int{20, 27, 28, 30}).Draw(t, "engine")
		vars := make(map[string]string)
		for _, v := range Variables(major, src, "web", "db", ModeAll) {
			name, value, _ := strings.Cut(v, "=")
			if old, known := vars[name]; known && old != value {
				t.Fatalf("%s is both %q and %q", name, old, value)
			}
			if !IsVariable("DB", name) {
				t.Fatalf("%s is not recognized as a link's variable", name)
			}
			vars[name] = value
		}
		expect := func(name, value string) {
			if got, found := vars[name]; !found || got != value {
				t.Fatalf("%s is %q, want %q", name, got, value)
			}
			delete(vars, name)
		}
		expect("DB_NAME", "/web/db")
		url := func(p Port) string { return fmt.Sprintf("%s://127.77.0.2:%d", p.Proto, p.Number) }
		for _, p := range src.Ports {
			key := fmt.Sprintf("DB_PORT_%d_%s", p.Number, strings.ToUpper(string(p.Proto)))
			expect(key, url(p))
			expect(key+"_ADDR", "127.77.0.2")
			expect(key+"_PORT", fmt.Sprint(p.Number))
			expect(key+"_PROTO", string(p.Proto))
		}
		if len(src.Ports) > 0 {
			least := slices.MinFunc(src.Ports, func(p, q Port) int {
				if major < 28 && p.Number != q.Number {
					return int(p.Number) - int(q.Number)
				}
				return p.Compare(q)
			})
			expect("DB_PORT", url(least))
		}
		if major < 28 {
			return // its ranges are covered by the table
		}
		has := func(n int, proto Proto) bool {
			return n > 0 && n < 1<<16 && slices.Contains(src.Ports, Port{Number: uint16(n), Proto: proto})
		}
		for _, p := range src.Ports {
			n := int(p.Number)
			if has(n-1, p.Proto) || !has(n+1, p.Proto) {
				continue
			}
			end := n
			for has(end+1, p.Proto) {
				end++
			}
			key := fmt.Sprintf("DB_PORT_%d_%s", n, strings.ToUpper(string(p.Proto)))
			expect(key+"_START", url(p))
			expect(key+"_PORT_START", fmt.Sprint(n))
			expect(key+"_END", url(Port{Number: uint16(end), Proto: p.Proto}))
			expect(key+"_PORT_END", fmt.Sprint(end))
		}
		if len(vars) > 0 {
			t.Fatalf("unexpected variables: %v", vars)
		}
	})
}

func TestIsVariable(t *testing.T) {
	for name, want := range map[string]bool{
		"HTTP_PORT":             true,
		"HTTP_NAME":             true,
		"HTTP_ENV_X":            true,
		"HTTP_ENV_":             true,
		"HTTP_PORT_80_TCP":      true,
		"HTTP_PORT_80_TCP_ADDR": true,
		"HTTP_PROXY":            false,
		"HTTP_PORTAL":           false,
		"HTTP_PORT_":            false,
		"HTTP_PORT_NAME":        false,
		"HTTP_ENVIRON":          false,
		"HTTP_":                 false,
		"HTTP":                  false,
		"HTTPS_PORT":            false,
		"":                      false,
	} {
		if got := IsVariable("HTTP", name); got != want {
			t.Errorf("IsVariable(HTTP, %q) = %v", name, got)
		}
	}
}

func TestParseMode(t *testing.T) {
	for _, m := range []Mode{ModeAll, ModePorts, ModeNone} {
		if got, err := ParseMode(string(m)); got != m || err != nil {
			t.Errorf("ParseMode(%q) = %q, %v", m, got, err)
		}
	}
	for _, s := range []string{"", "ALL", "some"} {
		if _, err := ParseMode(s); err == nil || err.Error() != "it has to be all, ports or none" {
			t.Errorf("ParseMode(%q) gives error %v", s, err)
		}
	}
}
