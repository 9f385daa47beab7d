package link

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func set(t *testing.T, links ...Link) Set {
	t.Helper()
	var s Set
	for _, l := range links {
		if added, err := s.Add(l); !added || err != nil {
			t.Fatalf("adding %+v: %v, %v", l, added, err)
		}
	}
	return s
}

func TestAddresses(t *testing.T) {
	s := set(t, Link{Alias: "b", Source: "x"}, Link{Alias: "/a", Source: "y"}, Link{Alias: "B", Source: "z"})
	var got []string
	for _, l := range s.Links {
		got = append(got, l.Alias+" "+l.Addr.String())
	}
	if want := "B 127.77.0.2, a 127.77.0.3, b 127.77.0.4"; strings.Join(got, ", ") != want {
		t.Errorf("addresses are %q, want %q", got, want)
	}
	if l, found := s.Link("./a"); !found || l.Source != "y" {
		t.Errorf("Link(./a) = %+v, %v", l, found)
	}
	if l, found := s.Link("c"); found {
		t.Errorf("Link(c) = %+v", l)
	}
}

func TestAddRefuses(t *testing.T) {
	s := set(t, Link{Alias: "db", Source: "first"})
	if added, err := s.Add(Link{Alias: "/db", Source: "second"}); added || err != nil {
		t.Errorf("adding a second db: %v, %v", added, err)
	}
	if l, _ := s.Link("db"); l.Source != "first" {
		t.Errorf("db is now %+v", l)
	}
	_, err := s.Add(Link{Alias: "x/..", Source: "db"})
	if want := `linking to "db": the alias is empty`; err == nil || err.Error() != want {
		t.Errorf("an empty alias gives %v, want %s", err, want)
	}
}

// Every alias has an address of its own, inside 127.77.0.0/16 and not the
// ambassador's, up to the last one.
func TestAddressesStayInside(t *testing.T) {
	labels := make(map[string]string)
	for i := range maxLinks {
		labels[fmt.Sprint(LabelLink, i)] = "db"
	}
	s, err := ParseLabels(labels)
	if err != nil {
		t.Fatal(err)
	}
	network := netip.MustParsePrefix("127.77.0.0/16")
	last := LocalAddr
	for _, l := range s.Links {
		if !network.Contains(l.Addr) || !last.Less(l.Addr) {
			t.Fatalf("%s follows %s", l.Addr, last)
		}
		last = l.Addr
	}
	if want := netip.MustParseAddr("127.77.255.254"); last != want {
		t.Errorf("the last address is %s, want %s", last, want)
	}
	const full = "a container has at most 65533 links"
	if _, err := s.Add(Link{Alias: "x", Source: "db"}); err == nil || err.Error() != `linking to "db": `+full {
		t.Errorf("one more gives %v", err)
	}
	labels[LabelLink+"x"] = "db"
	if _, err := ParseLabels(labels); err == nil || err.Error() != "parsing labels: "+full {
		t.Errorf("one more label gives %v", err)
	}
}

func TestSetVariables(t *testing.T) {
	s := set(t, Link{Alias: "db", Source: "a"}, Link{Alias: "db-env", Source: "b"}, Link{Alias: "=", Source: "a"})
	s.Kept = []string{"DB_PORT", "DB_ENV_B"}
	got := s.Variables(28, "web", func(l Link) Source {
		if l.Source == "b" {
			return Source{}
		}
		// DB_ENV_NAME is also what the alias db-env sets.
		return Source{Ports: []Port{{80, TCP}}, Env: []string{"A=1", "B=2", "NAME=x", "A=3"}}
	})
	want := []string{
		// Nothing of "=": the name of "=_PORT" ends before it begins.
		"DB_PORT_80_TCP=tcp://127.77.0.3:80", "DB_PORT_80_TCP_ADDR=127.77.0.3",
		"DB_PORT_80_TCP_PORT=80", "DB_PORT_80_TCP_PROTO=tcp",
		"DB_NAME=/web/db", "DB_ENV_A=3", "DB_ENV_NAME=/web/db-env",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := s.Prefixes(); !slices.Equal(got, []string{"=", "DB", "DB_ENV"}) {
		t.Errorf("prefixes are %q", got)
	}
	s.Env = ModeNone
	if got := s.Variables(28, "web", func(Link) Source { return Source{} }); len(got) > 0 {
		t.Errorf("mode none gives %q", got)
	}
}

func TestHosts(t *testing.T) {
	s := set(t,
		Link{Alias: "db", Source: "pg"},
		Link{Alias: "cache/old", Source: "db"},
		Link{Alias: "a b", Source: "pg"},
		Link{Alias: "x=y", Source: "pg"},
	)
	sources := map[string]Source{
		"pg": {Name: "pg", Hostname: "6e5cdeb2d300"},
		"db": {Name: "db", Hostname: "old"},
	}
	var got []string
	for _, h := range s.Hosts(func(l Link) Source { return sources[l.Source] }) {
		got = append(got, h.Name+":"+h.Addr.String())
	}
	want := []string{
		"a b:127.77.0.2", "old:127.77.0.3", "db:127.77.0.4", // the aliases
		"6e5cdeb2d300:127.77.0.2", "pg:127.77.0.2", // where several links have a name, the first one
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		alias string
		src   Source
		want  []string
	}{
		{"webdb", Source{Name: "db", Hostname: "6e5cdeb2d300"}, []string{"webdb", "6e5cdeb2d300", "db"}},
		{"db", Source{Name: "db", Hostname: "db"}, []string{"db"}},
		{"../db", Source{Name: "pg"}, []string{"db", "pg"}},
		{"a=b", Source{Name: "pg"}, []string{"pg"}},
		{"a\n1.2.3.4 b", Source{Name: "pg"}, []string{"pg"}},
		{" ", Source{Name: "pg"}, []string{"pg"}},
		{"a#b", Source{Name: "pg"}, []string{"pg"}},
	} {
		if got := Names(tt.src, tt.alias); !slices.Equal(got, tt.want) {
			t.Errorf("Names(%+v, %q) = %q, want %q", tt.src, tt.alias, got, tt.want)
		}
	}
}

// The order in which links are added changes nothing.
func TestSetOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		aliases := rapid.SliceOfDistinct(rapid.StringMatching(`[a-cA-C.\-]{0,2}[a-c]`), CleanAlias).Draw(t, "aliases")
		shuffled := rapid.Permutation(aliases).Draw(t, "shuffled")
		var a, b Set
		for i := range aliases {
			a.Add(Link{Alias: aliases[i], Source: aliases[i]})
			b.Add(Link{Alias: shuffled[i], Source: shuffled[i]})
		}
		if !slices.Equal(a.Links, b.Links) {
			t.Fatalf("%v\n%v", a.Links, b.Links)
		}
	})
}
