package sidecar

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/link"
)

func TestParseEndpoint(t *testing.T) {
	for s, want := range map[string]Endpoint{
		"unix:/run/link/db.sock": {"unix", "/run/link/db.sock"},
		"unix:db:1.sock":         {"unix", "db:1.sock"},
		"tls:hostb:7443":         {"tls", "hostb:7443"},
		"tls:[::1]:7443":         {"tls", "[::1]:7443"},
		"tls::7443":              {"tls", ":7443"},
	} {
		got, err := ParseEndpoint(s)
		if got != want || err != nil {
			t.Errorf("%q: %v, %v", s, got, err)
		}
		if got.String() != s {
			t.Errorf("%q comes back as %q", s, got)
		}
	}
	for _, s := range []string{"", "unix:", "tls:", "tls:hostb", "tls:hostb:", "tls:hostb:0", "tls:hostb:65536", "tls:hostb:https", "tcp:a:1", "/run/s", "::1:7443"} {
		if got, err := ParseEndpoint(s); err == nil {
			t.Errorf("%q makes %+v", s, got)
		}
	}
}

func TestParseTargets(t *testing.T) {
	got, err := ParseTargets("127.0.0.1:5432,[::1]:53/udp,db:53")
	want := []Target{
		{"127.0.0.1:5432", link.Port{Number: 5432, Proto: link.TCP}},
		{"[::1]:53", link.Port{Number: 53, Proto: link.UDP}},
		{"db:53", link.Port{Number: 53, Proto: link.TCP}},
	}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got[i], want[i])
		}
	}
	for s, want := range map[string]string{
		"":                    `parsing "": want ADDRESS:PORT, or ADDRESS:PORT/udp`,
		"a:1,":                `parsing "": want ADDRESS:PORT, or ADDRESS:PORT/udp`,
		"5432":                `parsing "5432": want ADDRESS:PORT, or ADDRESS:PORT/udp`,
		":5432":               `parsing ":5432": want ADDRESS:PORT, or ADDRESS:PORT/udp`,
		"::1:5432":            `parsing "::1:5432": want ADDRESS:PORT, or ADDRESS:PORT/udp`,
		"a:0":                 `parsing "a:0": parsing port "0": the number has to be 1 to 65535`,
		"a:1/sctp":            `parsing "a:1/sctp": only tcp and udp are carried`,
		"a:1/":                `parsing "a:1/": parsing port "1/": the protocol has to be tcp, udp or sctp`,
		"127.0.0.1:80,web:80": `"127.0.0.1:80" and "web:80" are both port 80/tcp`,
	} {
		if _, err := ParseTargets(s); err == nil || err.Error() != want {
			t.Errorf("%q: %v\nwant %s", s, err, want)
		}
	}
}

func TestParseMappings(t *testing.T) {
	const s = "127.77.0.2:5432,127.77.0.2:15432=5432,127.77.0.2:5353=53/udp,[::1]:53/udp"
	got, err := ParseMappings(s)
	if err != nil {
		t.Fatal(err)
	}
	want := []Mapping{
		{netip.MustParseAddrPort("127.77.0.2:5432"), link.Port{Number: 5432, Proto: link.TCP}},
		{netip.MustParseAddrPort("127.77.0.2:15432"), link.Port{Number: 5432, Proto: link.TCP}},
		{netip.MustParseAddrPort("127.77.0.2:5353"), link.Port{Number: 53, Proto: link.UDP}},
		{netip.MustParseAddrPort("[::1]:53"), link.Port{Number: 53, Proto: link.UDP}},
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got[i], want[i])
		}
	}
	for s, want := range map[string]string{
		"db:5432":                         `parsing "db:5432": the address to listen on has to be a number`,
		"127.0.0.1:1=":                    `parsing "127.0.0.1:1=": parsing port "": the number has to be 1 to 65535`,
		"127.0.0.1:1/udp=2":               `parsing "127.0.0.1:1/udp=2": parsing port "1/udp=2": the protocol has to be tcp, udp or sctp`,
		"127.0.0.1:1=2=3":                 `parsing "127.0.0.1:1=2=3": parsing port "2=3": the number has to be 1 to 65535`,
		"127.0.0.1:1=2,127.0.0.1:1":       `127.0.0.1:1/tcp is there twice`,
		"127.0.0.1:53/udp,127.0.0.1:53=0": `parsing "127.0.0.1:53=0": parsing port "0": the number has to be 1 to 65535`,
	} {
		if _, err := ParseMappings(s); err == nil || err.Error() != want {
			t.Errorf("%q: %v\nwant %s", s, err, want)
		}
	}
}

// What is read as mappings is written as the same mappings.
func FuzzMappings(f *testing.F) {
	for _, s := range []string{"127.77.0.2:5432", "127.77.0.2:15432=5432,[::1]:53/udp", "1.2.3.4:5=6/UDP", "a:1", "=,/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseMappings(s)
		if err != nil {
			return
		}
		var words []string
		for _, m := range got {
			words = append(words, m.String())
		}
		again, err := ParseMappings(strings.Join(words, ","))
		if err != nil {
			t.Fatalf("%q was written as %q: %v", s, words, err)
		}
		for i := range got {
			if got[i] != again[i] {
				t.Errorf("%q: %v comes back as %v", s, got[i], again[i])
			}
		}
	})
}
