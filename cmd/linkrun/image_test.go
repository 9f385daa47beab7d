package main

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/docker"
)

// The rules of moby's merge of image and container (daemon/commit.go).
func TestProgramOf(t *testing.T) {
	for _, tt := range []struct {
		entrypoint, cmd []string
		flag            *string
		args            []string
		want            []string
	}{
		{[]string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		{[]string{"e"}, []string{"c"}, nil, []string{"a"}, []string{"e", "a"}},
		{nil, []string{"c"}, nil, nil, []string{"c"}},
		{nil, []string{"c"}, nil, []string{"a", "b"}, []string{"a", "b"}},
		{[]string{"e"}, nil, nil, nil, []string{"e"}},
		{[]string{"e"}, []string{"c"}, new("f"), nil, []string{"f"}},
		{[]string{"e"}, []string{"c"}, new("f"), []string{"a"}, []string{"f", "a"}},
		{[]string{"e"}, []string{"c"}, new(""), []string{"a"}, []string{"a"}},
		{[]string{"e"}, []string{"c"}, new(""), nil, nil},
		{nil, nil, nil, nil, nil},
	} {
		inv := &invocation{args: tt.args}
		if tt.flag != nil {
			inv.flags = []given{{"entrypoint", "an earlier one"}, {"entrypoint", *tt.flag}}
		}
		p, err := programOf(docker.Image{Entrypoint: tt.entrypoint, Cmd: tt.cmd}, inv)
		if (err != nil) != (tt.want == nil) || !slices.Equal(p.argv(), tt.want) {
			t.Errorf("%+v gives %q, %v", tt, p, err)
		}
	}
}

// What wrap makes of a program, unwrap gives back, and so does the init.
func TestWrap(t *testing.T) {
	word := rapid.SampledFrom([]string{"sh", "--", "-c", "", "--entrypoint=7", "a b"})
	rapid.Check(t, func(t *rapid.T) {
		want := program{
			entrypoint: rapid.SliceOfN(word, 0, 3).Draw(t, "entrypoint"),
			args:       rapid.SliceOfN(word, 0, 3).Draw(t, "args"),
		}
		if len(want.argv()) == 0 {
			return
		}
		wrapped := wrap(want, &invocation{timeout: defaultTimeout})
		got := unwrap(wrapped)
		if !slices.Equal(got.entrypoint, want.entrypoint) || !slices.Equal(got.args, want.args) {
			t.Fatalf("%q became %q", want, got)
		}
		timeout, argv, err := parseInit(wrapped.argv()[1:])
		if err != nil || timeout != defaultTimeout || !slices.Equal(argv, want.argv()) {
			t.Fatalf("the init understands %v %q, %v", timeout, argv, err)
		}
	})
}

func TestUnwrapOddities(t *testing.T) {
	for _, tt := range []struct{ in, want program }{
		{program{nil, []string{"c"}}, program{nil, []string{"c"}}},
		{program{[]string{"e"}, nil}, program{[]string{"e"}, nil}},
		{program{[]string{initPath}, nil}, program{}},
		{program{[]string{initPath}, []string{"--entrypoint=9", "--", "a"}}, program{[]string{"a"}, nil}},
		{program{[]string{initPath}, []string{"--entrypoint=-1", "--", "a"}}, program{nil, []string{"a"}}},
		{program{[]string{initPath}, []string{"--entrypoint=x", "--", "a"}}, program{nil, []string{"a"}}},
		{program{[]string{initPath, "--", "a"}, []string{"b"}}, program{nil, []string{"a", "b"}}},
		// An image made of a container that was made of such an image.
		{program{[]string{initPath}, []string{"--entrypoint=1", "--", initPath, "--entrypoint=1", "--", "a", "b"}},
			program{[]string{"a"}, []string{"b"}}},
	} {
		got := unwrap(tt.in)
		if !slices.Equal(got.entrypoint, tt.want.entrypoint) || !slices.Equal(got.args, tt.want.args) {
			t.Errorf("unwrap(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestFamiliar(t *testing.T) {
	for image, want := range map[string]string{
		"busybox":                   "busybox:latest",
		"busybox:1":                 "busybox:1",
		"docker.io/library/busybox": "busybox:latest",
		"localhost:5000/a/b":        "localhost:5000/a/b:latest",
		"Not A Name":                "Not A Name",
	} {
		if got := familiar(image); got != want {
			t.Errorf("familiar(%q) = %q, want %q", image, got, want)
		}
	}
}
