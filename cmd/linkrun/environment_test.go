package main

import (
	"slices"
	"strings"
	"testing"
)

// The same contents are given to the real docker in TestDockerReadsFiles.
var envFiles = []string{
	"",
	"A=1\nB=2",
	"A=1\r\nB=2\r\n",
	"\xEF\xBB\xBFA=1\n\xEF\xBB\xBFB=2",
	"# comment\n  # indented comment\nA=# no comment\n",
	"  \n\t\n \u00a0 A=after spaces\n",
	"A= spaces kept \nB=\"quotes kept\"\nC='x'\nD=$HOME\nE=\\n",
	"A=\nB==\nC=a=b",
	"A=1\nA=2",
	"SET_IN_TEST\nNOT_SET_IN_TEST\nA=1",
	"export=x\n1=2\n-=3\na.b-c=4",
	"A B=1",
	"A =1",
	"A\t=1",
	"SET_IN_TEST \n",
	"=x",
	"=",
	"A=\xff",
	"\xff",
	"A=1\n\xffB=2",
	"A=" + strings.Repeat("x", 1<<16),
}

func lookupTest(name string) (string, bool) { return "set", name == "SET_IN_TEST" }

func TestParseEnvFile(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []string
		err  string
	}{
		{"\xEF\xBB\xBF# c\n  A= 1 \nB==\nSET_IN_TEST\nNOT_SET_IN_TEST\n", []string{"A= 1 ", "B==", "SET_IN_TEST=set"}, ""},
		{"A=1\nA B=1", nil, "invalid env file (f): variable 'A B' contains whitespaces"},
		{"=x", nil, "invalid env file (f): no variable name on line '=x'"},
		{"A=1\n\xff=1", nil, "invalid env file (f): invalid utf8 bytes at line 2: [255 61 49]"},
		{"A=" + strings.Repeat("x", 1<<16), nil, "invalid env file (f): bufio.Scanner: token too long"},
	} {
		got, err := parseEnvFile("f", strings.NewReader(tt.text), lookupTest)
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("%.40q gives %q, %v, want %q, %s", tt.text, got, err, tt.want, tt.err)
		}
	}
}

func FuzzParseEnvFile(f *testing.F) {
	for _, s := range envFiles {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		vars, err := parseEnvFile("f", strings.NewReader(text), lookupTest)
		if err != nil {
			return
		}
		for _, v := range vars {
			if name, _, found := strings.Cut(v, "="); !found || name == "" || strings.ContainsAny(name, " \t\n") {
				t.Fatalf("%q gives %q", text, v)
			}
		}
	})
}

func TestUnsetenv(t *testing.T) {
	env := []string{"A=1", "AB=2", "B=3", "A=4", "ODD"}
	if got := unsetenv(env, []string{"A=x", "C"}); !slices.Equal(got, []string{"AB=2", "B=3", "ODD"}) {
		t.Errorf("got %q", got)
	}
	if env[0] != "A=1" {
		t.Errorf("the argument changed: %q", env)
	}
}
