package link

import (
	"maps"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestLabels(t *testing.T) {
	id := strings.Repeat("ab", 32)
	s := set(t, Link{Alias: "webdb", Source: "db", ID: id}, Link{Alias: "a/b c%", Source: "other"},
		Link{Alias: "far", Source: "db", Host: "host-b.example"})
	s.Env = ModePorts
	s.Kept = []string{"WEBDB_PORT", "WEBDB_ENV_A,B"}
	want := map[string]string{
		"ambassador.link.webdb":        "db",
		"ambassador.id.webdb":          id,
		"ambassador.link.a%2Fb%20c%25": "other",
		"ambassador.link.far":          "db@host-b.example",
		"ambassador.env":               "ports",
		"ambassador.env.kept":          "WEBDB_PORT,WEBDB_ENV_A%2CB",
	}
	if got := s.Labels(); !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var none Set
	if got := none.Labels(); len(got) > 0 {
		t.Errorf("no links give %q", got)
	}
}

// Labels that people write by hand.
func TestParseLabels(t *testing.T) {
	id := strings.Repeat("ab", 32)
	got, err := ParseLabels(map[string]string{
		"com.docker.compose.project": "x",
		"ambassador.something.new":   "%",
		"ambassador.link.db":         "/postgres",
		"ambassador.link./b/":        "x",
		"ambassador.link.far":        "/db@hostb",
		"ambassador.link.gone":       "",
		"ambassador.id.gone":         id,
		"ambassador.id.b":            id,
		"ambassador.env":             "all",
	})
	want := set(t, Link{Alias: "db", Source: "postgres"}, Link{Alias: "b", Source: "x", ID: id},
		Link{Alias: "far", Source: "db", Host: "hostb"})
	want.Env = ModeAll
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestParseLabelsErrors(t *testing.T) {
	for _, tt := range []struct {
		labels map[string]string
		err    string
	}{
		{map[string]string{"ambassador.link.": "db"},
			`parsing label "ambassador.link." with value "db": the alias is empty`},
		{map[string]string{"ambassador.link.a%zz": "db"},
			`parsing label "ambassador.link.a%zz" with value "db": "a%zz" is not percent-encoded`},
		{map[string]string{"ambassador.link.db": "d b"},
			`parsing label "ambassador.link.db" with value "d b": the value is not a container's name, nor NAME@HOST`},
		{map[string]string{"ambassador.link.db": "-db"},
			`parsing label "ambassador.link.db" with value "-db": the value is not a container's name, nor NAME@HOST`},
		{map[string]string{"ambassador.link.db": "db@"},
			`parsing label "ambassador.link.db" with value "db@": the value is not a container's name, nor NAME@HOST`},
		{map[string]string{"ambassador.link.db": "db@host/b"},
			`parsing label "ambassador.link.db" with value "db@host/b": the value is not a container's name, nor NAME@HOST`},
		{map[string]string{"ambassador.link.db": "a@b@c"},
			`parsing label "ambassador.link.db" with value "a@b@c": the value is not a container's name, nor NAME@HOST`},
		{map[string]string{"ambassador.id.db": strings.Repeat("xy", 32)},
			`parsing label "ambassador.id.db" with value "` + strings.Repeat("xy", 32) + `": the value is not a container's id, 64 hexadecimal digits`},
		{map[string]string{"ambassador.link.db": "/"},
			`parsing label "ambassador.link.db" with value "/": the value is not a container's name, nor NAME@HOST`},
		{map[string]string{"ambassador.link.a%2Fb": "x", "ambassador.link.a/b": "y"},
			`parsing label "ambassador.link.a%2Fb" with value "y": another label has the alias "a/b" too`},
		{map[string]string{"ambassador.id.db": "abc"},
			`parsing label "ambassador.id.db" with value "abc": the value is not a container's id, 64 hexadecimal digits`},
		{map[string]string{"ambassador.id.%": strings.Repeat("ab", 32)},
			`parsing label "ambassador.id.%" with value "` + strings.Repeat("ab", 32) + `": "%" is not percent-encoded`},
		{map[string]string{"ambassador.env": "some"},
			`parsing label "ambassador.env" with value "some": it has to be all, ports or none`},
		{map[string]string{"ambassador.env.kept": "A,%2"},
			`parsing label "ambassador.env.kept" with value "A,%2": "%2" is not percent-encoded`},
	} {
		tt.labels["ambassador.link.good"] = "good"
		got, err := ParseLabels(tt.labels)
		if err == nil || err.Error() != tt.err {
			t.Errorf("ParseLabels(%q) gives error %v, want %s", tt.labels, err, tt.err)
		}
		if len(got.Links) > 0 {
			t.Errorf("ParseLabels(%q) gives links with its error: %+v", tt.labels, got.Links)
		}
	}
}

func TestLabelsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want Set
		for range rapid.IntRange(0, 5).Draw(t, "links") {
			l := Link{
				Alias:  rapid.String().Draw(t, "alias"),
				Source: rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_.-]*`).Draw(t, "source"),
				Host:   rapid.StringMatching(`([a-zA-Z0-9_-][a-zA-Z0-9_.-]*)?`).Draw(t, "host"),
				ID:     rapid.StringMatching(`([0-9a-f]{64})?`).Draw(t, "id"),
			}
			want.Add(l)
		}
		want.Env = rapid.SampledFrom([]Mode{"", ModeAll, ModePorts, ModeNone}).Draw(t, "env")
		if kept := rapid.SliceOf(rapid.StringN(1, -1, -1)).Draw(t, "kept"); len(kept) > 0 {
			want.Kept = kept
		}
		got, err := ParseLabels(want.Labels())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	})
}

func FuzzParseLabels(f *testing.F) {
	f.Add("db", "postgres", "all", "DB_PORT,DB_NAME")
	f.Add("a%2Fb", "/db", "ports", "A%2CB")
	f.Add("%", "", "none", "")
	f.Add("db", "/db@hostb", "", "")
	f.Add("db", "db@..", "", "")
	f.Add("../x", "x y", "", ",")
	f.Fuzz(func(t *testing.T, alias, source, env, kept string) {
		s, err := ParseLabels(map[string]string{
			LabelLink + alias: source, LabelEnv: env, LabelKept: kept,
		})
		if err != nil {
			return
		}
		again, err := ParseLabels(s.Labels())
		if err != nil || !reflect.DeepEqual(again.Links, s.Links) || !reflect.DeepEqual(again.Kept, s.Kept) {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

func TestIsLabel(t *testing.T) {
	for key, want := range map[string]bool{
		"ambassador.link.db": true, "ambassador.id.db": true, "ambassador.env": true, "ambassador.env.kept": true,
		"ambassador.environment": false, "ambassador.links.db": false, "com.example": false, "": false,
	} {
		if got := IsLabel(key); got != want {
			t.Errorf("IsLabel(%q) = %v", key, got)
		}
	}
}

func TestNoLinkIsInherited(t *testing.T) {
	image := map[string]string{LabelLink + "aaa": "prod-db", LabelID + "db": strings.Repeat("a", 64), LabelEnv: "none", "other": "x"}
	ours := (&Set{Links: []Link{{Alias: "db", Source: "db"}}}).Labels()
	container := maps.Clone(image)
	maps.Copy(container, ours)
	s, err := ParseLabels(WithoutInherited(container, image))
	if err != nil || len(s.Links) != 1 || s.Links[0].Alias != "db" || s.Links[0].ID != "" || s.Env != ModeNone {
		t.Errorf("links %+v, %v", s, err)
	}
	for own, want := range map[string]string{"": "", "x": "", "y": "y"} {
		if got := Own("other", map[string]string{"other": own}, image); got != want {
			t.Errorf("of label %q, %q is the container's own, want %q", own, got, want)
		}
	}
	if HasLabels(WithoutInherited(image, image)) {
		t.Error("an image makes its container a recipient")
	}

	// Asked for by the user as well, in the very same words.
	container = maps.Clone(image)
	key := LabelLink + "aaa"
	container[key] = Distinguish(key, "prod-db", image)
	s, err = ParseLabels(WithoutInherited(container, image))
	if err != nil || len(s.Links) != 1 || s.Links[0].Source != "prod-db" {
		t.Errorf("links %+v, %v", s, err)
	}
}
