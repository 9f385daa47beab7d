package link

import (
	"path"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSpec(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, tt := range []struct {
		in            string
		source, alias string
		host          string
		err           string
	}{
		{in: "", err: "empty string specified for links"},
		{in: "too:much:of:it", err: "bad format for links: too:much:of:it"},
		{in: "link:alias:wrong", err: "bad format for links: link:alias:wrong"},
		{in: "::", err: "bad format for links: ::"},
		{in: "name", source: "name", alias: "name"},
		{in: "name:alias", source: "name", alias: "alias"},
		{in: "angry_torvalds:linus", source: "angry_torvalds", alias: "linus"},
		{in: "dcdfbe62ecd0:alias", source: "dcdfbe62ecd0", alias: "alias"},
		{in: id, source: id, alias: id},
		{in: "/foo:/c1/bar", source: "foo", alias: "bar"},
		{in: "/foo:bar", source: "foo", alias: "bar"},
		{in: "/foo:/c1/", source: "foo", alias: ""},
		{in: "/foo", source: "/foo", alias: "/foo"},
		{in: "foo:", source: "foo", alias: ""},
		{in: ":alias", source: "", alias: "alias"},
		{in: ":", source: "", alias: ""},
		{in: "db:my.db", source: "db", alias: "my.db"},
		{in: "db:a b", source: "db", alias: "a b"},
		{in: "db:../x", source: "db", alias: "../x"},
		{in: "db:/mysql", source: "db", alias: "/mysql"},
		{in: "db@hostb", source: "db", host: "hostb", alias: "db"},
		{in: "db@hostb:webdb", source: "db", host: "hostb", alias: "webdb"},
		{in: "/db@host-b.example:/web/webdb", source: "db", host: "host-b.example", alias: "webdb"},
		{in: "db@hostb:", source: "db", host: "hostb", alias: ""},
		{in: "db:x@hostb", source: "db", alias: "x@hostb"},
		// No container has such a name, which is for the engine to say.
		{in: "db@:x", source: "db@", alias: "x"},
		{in: "@hostb:x", source: "@hostb", alias: "x"},
		{in: "db@..", source: "db@..", alias: "db@.."},
		{in: "a@b@c", source: "a@b@c", alias: "a@b@c"},
		{in: "/db@hostb", source: "/db@hostb", alias: "/db@hostb"},
	} {
		got, err := ParseSpec(tt.in)
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("ParseSpec(%q) gives error %v, want %q", tt.in, err, tt.err)
			}
			continue
		}
		if want := (Spec{Source: tt.source, Host: tt.host, Alias: tt.alias}); err != nil || got != want {
			t.Errorf("ParseSpec(%q) = %+v, %v, want %+v", tt.in, got, err, want)
		}
	}
}

func TestSpecRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Spec{
			Source: rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_.-]*`).Draw(t, "source"),
			Host:   rapid.StringMatching(`([a-zA-Z0-9_-][a-zA-Z0-9_.-]*)?`).Draw(t, "host"),
			Alias:  rapid.StringMatching(`[^:]*`).Draw(t, "alias"),
		}
		got, err := ParseSpec(want.String())
		if err != nil || got != want {
			t.Fatalf("ParseSpec(%q) = %+v, %v", want.String(), got, err)
		}
	})
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"", "db", "db:webdb", "/db:/web/db", "/db", "db:", ":x", "a:b:c", "db:../x", "/:/", "db@hostb", "db@hostb:x", "@:", "db@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		spec, err := ParseSpec(in)
		if colons := strings.Count(in, ":"); (in == "" || colons > 1) != (err != nil) {
			t.Fatalf("ParseSpec(%q) gives error %v", in, err)
		}
		if strings.Contains(spec.Source+spec.Host+spec.Alias, ":") {
			t.Fatalf("ParseSpec(%q) = %+v", in, spec)
		}
		if spec.Host != "" && (!isName(spec.Source) || !isHost(spec.Host)) {
			t.Fatalf("ParseSpec(%q) = %+v", in, spec)
		}
	})
}

func TestCleanAlias(t *testing.T) {
	for alias, want := range map[string]string{
		"db":       "db",
		"/db":      "db",
		"./db/":    "db",
		"a/b":      "a/b",
		"a//b":     "a/b",
		"a/../b":   "b",
		"../x":     "../x",
		"../../x":  "../x",
		"../x/y":   "../x/y",
		"a b":      "a b",
		"...":      "...",
		"":         "",
		".":        "",
		"/":        "",
		"..":       "",
		"a/..":     "",
		"../\x00":  "",
		"/\x00/db": "\x00/db",
	} {
		if got := CleanAlias(alias); got != want {
			t.Errorf("CleanAlias(%q) = %q, want %q", alias, got, want)
		}
	}
}

// What CleanAlias drops must not change the name Docker would file the link
// under, for any recipient.
func TestCleanAliasKeepsFullName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		recipient := rapid.StringMatching(`[a-c][a-c_.-]+`).Draw(t, "recipient")
		alias := rapid.StringMatching(`([a-c/]|\.\.|\.){0,8}`).Draw(t, "alias")
		clean := CleanAlias(alias)
		if got, want := FullName(recipient, clean), path.Join("/"+recipient, alias); clean != "" && got != want {
			t.Fatalf("CleanAlias(%q) = %q, which is %q and not %q", alias, clean, got, want)
		}
		if again := CleanAlias(clean); again != clean {
			t.Fatalf("CleanAlias(%q) = %q", clean, again)
		}
	})
}
