package classic

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
)

// forwards is what Parse returns, as text.
func forwards(t testing.TB, environ ...string) (found, ignored []string) {
	t.Helper()
	fs, is, err := Parse(environ)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		found = append(found, fmt.Sprintf("%v %v %s", f.Port, f.To, f.Variable))
	}
	for _, i := range is {
		ignored = append(ignored, i.Variable+": "+i.Why)
	}
	return found, ignored
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct{ environ, want, ignored []string }{
		"a link": {
			environ: []string{
				"PATH=/bin", "HOSTNAME=e5c34b", "REDIS_NAME=/redis_ambassador/redis",
				"REDIS_PORT=tcp://172.17.0.136:6379",
				"REDIS_PORT_6379_TCP=tcp://172.17.0.136:6379",
				"REDIS_PORT_6379_TCP_ADDR=172.17.0.136", "REDIS_PORT_6379_TCP_PORT=6379", "REDIS_PORT_6379_TCP_PROTO=tcp",
			},
			want: []string{"6379/tcp 172.17.0.136:6379 REDIS_PORT_6379_TCP"},
		},
		"by hand": {
			environ: []string{"REDIS_PORT_6379_TCP=tcp://192.168.1.52:16379"},
			want:    []string{"6379/tcp 192.168.1.52:16379 REDIS_PORT_6379_TCP"},
		},
		"only the first port": {
			environ: []string{"MY_DB_PORT=tcp://172.17.0.2:5432"},
			want:    []string{"5432/tcp 172.17.0.2:5432 MY_DB_PORT"},
		},
		"several links, in order": {
			environ: []string{
				"B_PORT_53_UDP=udp://172.17.0.3:53", "B_PORT_53_TCP=tcp://172.17.0.3:53",
				"A_PORT_80_TCP=tcp://[2001:db8::1]:80",
			},
			want: []string{
				"53/tcp 172.17.0.3:53 B_PORT_53_TCP", "80/tcp [2001:db8::1]:80 A_PORT_80_TCP", "53/udp 172.17.0.3:53 B_PORT_53_UDP",
			},
		},
		"two aliases of one source": {
			environ: []string{"DB_PORT_1_TCP=tcp://172.17.0.2:1", "DATA_PORT_1_TCP=tcp://172.17.0.2:1"},
			want:    []string{"1/tcp 172.17.0.2:1 DATA_PORT_1_TCP"},
		},
		"a range": {
			environ: []string{
				"A_PORT_1_TCP=tcp://172.17.0.2:1", "A_PORT_1_TCP_START=tcp://172.17.0.2:1", "A_PORT_1_TCP_PORT_START=1",
				"A_PORT_1_TCP_END=tcp://172.17.0.2:2", "A_PORT_1_TCP_PORT_END=2", "A_PORT_2_TCP=tcp://172.17.0.2:2",
			},
			want: []string{"1/tcp 172.17.0.2:1 A_PORT_1_TCP", "2/tcp 172.17.0.2:2 A_PORT_2_TCP"},
		},
		"what the source has of its own": {
			environ: []string{
				"WEB_NAME=/amb/web", "WEB_PORT_80_TCP=tcp://172.17.0.3:80",
				"WEB_ENV_DB_PORT=tcp://127.77.0.2:5432", "WEB_ENV_DB_PORT_5432_TCP=tcp://127.77.0.2:5432",
			},
			want: []string{"80/tcp 172.17.0.3:80 WEB_PORT_80_TCP"},
		},
		"an alias with ENV in it": {
			environ: []string{"MY_ENV_DB_NAME=/amb/my_env_db", "MY_ENV_DB_PORT_1_TCP=tcp://172.17.0.2:1"},
			want:    []string{"1/tcp 172.17.0.2:1 MY_ENV_DB_PORT_1_TCP"},
		},
		"nothing of a link": {
			environ: []string{"", "=", "PORT=8080", "_PORT=tcp://1.2.3.4:1", "HTTP_PORT=8080", "A_PORT=http://1.2.3.4:80", "A_PORT=tcp://db:1",
				"A_PORT_0_TCP=tcp://1.2.3.4:1", "A_PORT_65536_TCP=x", "A_PORT_X_TCP=x", "PORT_80_TCP=x", "_PORT_80_TCP=x", "A_PORT_80_SCTP=sctp://1.2.3.4:80",
				"a_port_80_tcp=tcp://1.2.3.4:80", "A_PORT_80_TCP_ADDR=1.2.3.4"},
		},
		"mistakes": {
			environ: []string{"A_PORT_1_TCP=udp://1.2.3.4:1", "A_PORT_2_TCP=tcp://db:2", "A_PORT_3_UDP=udp://1.2.3.4:0", "A_PORT_4_TCP",
				"A_PORT_5_TCP=tcp://127.0.0.1:5", "A_PORT_6_TCP=tcp://0.0.0.0:7", "A_PORT_7_TCP=tcp://127.0.0.1:5"},
			want: []string{"7/tcp 127.0.0.1:5 A_PORT_7_TCP"},
			ignored: []string{
				"A_PORT_1_TCP: it does not begin with tcp://",
				"A_PORT_2_TCP: it is not tcp://ADDRESS:PORT, with a number for the address",
				"A_PORT_3_UDP: it is not udp://ADDRESS:PORT, with a number for the address",
				"A_PORT_4_TCP: it does not begin with tcp://",
				"A_PORT_5_TCP: it leads back to this port",
				"A_PORT_6_TCP: it leads back to this port",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, ignored := forwards(t, c.environ...)
			if !slices.Equal(got, c.want) {
				t.Errorf("found %q\nwant  %q", got, c.want)
			}
			if !slices.Equal(ignored, c.ignored) {
				t.Errorf("ignored %q\nwant    %q", ignored, c.ignored)
			}
		})
	}
}

func TestConflict(t *testing.T) {
	_, _, err := Parse([]string{"DB_PORT_5432_TCP=tcp://172.17.0.2:5432", "OLD_PORT_5432_TCP=tcp://172.17.0.3:5432"})
	var conflict *ConflictError
	const want = "port 5432/tcp is to lead to 172.17.0.2:5432 (DB_PORT_5432_TCP) and to 172.17.0.3:5432 (OLD_PORT_5432_TCP)"
	if !errors.As(err, &conflict) || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	if _, _, err := Parse([]string{"DB_PORT_53_TCP=tcp://172.17.0.2:53", "OLD_PORT_53_UDP=udp://172.17.0.3:53"}); err != nil {
		t.Error(err)
	}
}

// What linkrun makes of a source is found again, all of it and nothing else,
// whatever the source has in its own environment.
func TestParseOfLinks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ports := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) link.Port {
			return link.Port{
				Number: rapid.Uint16Range(1, 100).Draw(t, "number"),
				Proto:  rapid.SampledFrom([]link.Proto{link.TCP, link.UDP}).Draw(t, "proto"),
			}
		}), 1, 10, rapid.ID).Draw(t, "ports")
		alias := rapid.SampledFrom([]string{"db", "my-db", "x_env_y", "port", "a_PORT_1_TCP", "_"}).Draw(t, "alias")
		env := []string{"OTHER_PORT_9_TCP=tcp://172.17.0.9:9", "OTHER_NAME=/db/other", "PORT_80_TCP=tcp://172.17.0.9:80"}
		addr := netip.MustParseAddr("172.17.0.2")
		src := link.Source{Name: "db", Addr: addr, Ports: ports, Env: env}
		major := rapid.SampledFrom([]int{20, 29}).Draw(t, "engine")
		variables := link.Variables(major, src, "web", alias, link.ModeAll)
		got, ignored, err := Parse(variables)
		if err != nil || len(ignored) > 0 {
			t.Fatalf("%v, ignored %v\n%s", err, ignored, strings.Join(variables, "\n"))
		}
		want := make(map[link.Port]netip.AddrPort)
		for _, p := range ports {
			want[p] = netip.AddrPortFrom(addr, p.Number)
		}
		found := make(map[link.Port]netip.AddrPort)
		for _, f := range got {
			found[f.Port] = f.To
		}
		if !maps.Equal(found, want) {
			t.Fatalf("found %v\nwant  %v\n%s", found, want, strings.Join(variables, "\n"))
		}
	})
}

// Whatever is in the environment, what is found can be listened on and leads
// somewhere, and every port is there once.
func FuzzParse(f *testing.F) {
	f.Add("A_PORT_80_TCP=tcp://1.2.3.4:80\nA_PORT=tcp://1.2.3.4:80\nA_NAME=/b/a")
	f.Add("A_ENV_B_PORT_80_TCP=tcp://1.2.3.4:80\nA_ENV_=\n_ENV_")
	f.Add("A_PORT_53_UDP=udp://[::1]:53\n=\nB_PORT_53_UDP=udp://[::]:0")
	f.Fuzz(func(t *testing.T, text string) {
		environ := strings.Split(text, "\n")
		got, _, err := Parse(environ)
		seen := make(map[link.Port]bool)
		for _, f := range got {
			if f.Port.Number == 0 || f.To.Port() == 0 || !f.To.Addr().IsValid() || f.To.Addr().IsUnspecified() || seen[f.Port] {
				t.Errorf("%q makes %+v", text, f)
			}
			seen[f.Port] = true
		}
		slices.Reverse(environ)
		again, _, errAgain := Parse(environ)
		if !slices.Equal(got, again) || (err == nil) != (errAgain == nil) {
			t.Errorf("%q makes %v, %v; the other way round %v, %v", text, got, err, again, errAgain)
		}
	})
}
