package gate

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
)

func TestApply(t *testing.T) {
	w := Word{
		Env:      []string{"DB_PORT=new", "DB_ENV_A=x=y\nz", "DB_ENV_B=new", "DB_ENV_C=new"},
		Prefixes: []string{"DB", "HTTP"},
		Kept:     []string{"DB_ENV_B", "DB_ENV_C", "DB_NAME"},
	}
	got := w.Apply([]string{
		"PATH=/bin", "DB_PORT=old", "DB_PORT_80_TCP=old", "DB_NAME=mine", "DB_ENV_B=mine", "DB_HOST=mine",
		"HTTP_PROXY=http://p", "HTTP_PORT=old", "NOVALUE",
	})
	want := []string{
		"PATH=/bin", "DB_NAME=mine", "DB_ENV_B=mine", "DB_HOST=mine", "HTTP_PROXY=http://p", "NOVALUE",
		"DB_PORT=new", "DB_ENV_A=x=y\nz", // not DB_ENV_C: it is kept, and the user removed it
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{``, `reading the word: unexpected end of JSON input`},
		{`{"env":["DB_PORT=x"],"prefi`, `reading the word: unexpected end of JSON input`},
		{`{"env":["LD_PRELOAD=/x.so"],"prefixes":["LD"]}`, `reading the word: the variable "LD_PRELOAD" is not one of a link`},
		{`{"env":["LD_PRELOAD=/x.so:_PORT=x"],"prefixes":["LD_PRELOAD=/x.so:"]}`,
			`reading the word: the variable "LD_PRELOAD" is not one of a link`},
		{`{"env":["DB_PORT=x"]}`, `reading the word: the variable "DB_PORT" is not one of a link`},
		{`{"env":["DB_PORT"],"prefixes":["DB"]}`, `reading the word: the variable "DB_PORT" is not one of a link`},
		{`{"env":["DB_PORT=a\u0000b"],"prefixes":["DB"]}`, `reading the word: the variable "DB_PORT" is not one of a link`},
		{strings.Repeat(" ", maxWord+1), `reading the word: it does not end`},
	} {
		if _, err := parse([]byte(tt.in)); err == nil || err.Error() != tt.want {
			t.Errorf("parse(%.50q) gives error %v, want %s", tt.in, err, tt.want)
		}
	}
}

func TestEncodeTooLong(t *testing.T) {
	b, err := Word{Env: []string{"DB_ENV_X=" + strings.Repeat("x", maxWord)}}.encode()
	if err != nil {
		t.Fatal(err)
	}
	w, err := parse(b)
	const want = "the variables of the links take 8388629 bytes, more than a program can be given"
	if err != nil || w.Error != want || w.Hint == "" || len(w.Env) > 0 {
		t.Errorf("got %+v, %v, want %s", w, err, want)
	}
}

func drawWord(t *rapid.T) Word {
	name := rapid.SampledFrom([]string{"A_PORT", "A_PORT_1_TCP", "A_NAME", "A_ENV_X", "B_NAME", "B_ENV_PATH"})
	w := Word{Prefixes: []string{"A", "B"}, Kept: rapid.SliceOfDistinct(name, rapid.ID).Draw(t, "kept")}
	for _, n := range rapid.SliceOfDistinct(name, rapid.ID).Draw(t, "env") {
		w.Env = append(w.Env, n+"="+rapid.StringMatching(`[^\x00]*`).Draw(t, "value"))
	}
	return w
}

// Every word the ambassador writes is one the init accepts, and applying it
// touches nothing but the variables of links.
func TestWordProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWord(t)
		b, err := w.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(b)
		if err != nil || !slices.Equal(got.Env, w.Env) || !slices.Equal(got.Kept, w.Kept) {
			t.Fatalf("%+v became %+v, %v", w, got, err)
		}
		old := rapid.SliceOf(rapid.StringMatching(`(A|B|C)_(PORT|NAME|ENV_X|HOST)=[a-z]*`)).Draw(t, "old")
		once := w.Apply(slices.Clone(old))
		if twice := w.Apply(once); !slices.Equal(once, twice) {
			t.Fatalf("%q, applied again %q", once, twice)
		}
		foreign := func(v string) bool {
			name, _, _ := strings.Cut(v, "=")
			return slices.Contains(w.Kept, name) ||
				!link.IsVariable("A", name) && !link.IsVariable("B", name)
		}
		filter := func(vars []string) []string {
			return slices.DeleteFunc(slices.Clone(vars), func(v string) bool { return !foreign(v) })
		}
		if before, after := filter(old), filter(once); !slices.Equal(before, after) {
			t.Fatalf("what is not of a link was %q, is %q", before, after)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"error":"what","hint":"do"}`))
	f.Add([]byte(`{"env":["DB_PORT=tcp://127.77.0.2:80"],"prefixes":["DB"],"kept":["DB_NAME"]}`))
	f.Add([]byte(`{"env":["LD_PRELOAD=/x"],"prefixes":["LD"]}`))
	f.Add([]byte(`{"env":["=_PORT=x"],"prefixes":["="]}`))
	f.Add([]byte(`[1]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := parse(b)
		if err != nil {
			return
		}
		for _, v := range w.Apply([]string{"LD_PRELOAD=safe", "PATH=safe"}) {
			name, value, _ := strings.Cut(v, "=")
			if (name == "LD_PRELOAD" || name == "PATH") && value != "safe" {
				t.Fatalf("the word %s sets %q", b, v)
			}
		}
		if _, err := json.Marshal(w); err != nil {
			t.Fatal(err)
		}
	})
}
