package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/linkrun/linkrun/link"
)

func noneUnknown() ([]flag, error) { return nil, errors.New("docker was asked") }

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		words string
		flags string
		image string
		args  string
	}{
		{"image", "", "image", ""},
		{"image -d --rm", "", "image", "-d --rm"},
		{"-itd image", "--interactive=true --tty=true --detach=true", "image", ""},
		{"-itp80:80 image", "--interactive=true --tty=true --publish=80:80", "image", ""},
		{"-itp 80:80 image", "--interactive=true --tty=true --publish=80:80", "image", ""},
		{"-eFOO=1 -e=FOO=1 -e FOO=1 image", "--env=FOO=1 --env=FOO=1 --env=FOO=1", "image", ""},
		{"-e=A== --rm image", "--env=A== --rm=true", "image", ""},
		{"--name -d image", "--name=-d", "image", ""},
		{"--name=-d image x", "--name=-d", "image", "x"},
		{"-h host image", "--hostname=host", "image", ""},
		{"--net host --network a image", "--net=host --network=a", "image", ""},
		{"--rm=false --rm image", "--rm=false --rm=true", "image", ""},
		{"--sig-proxy=0 --disable-content-trust image", "--sig-proxy=0 --disable-content-trust=true", "image", ""},
		{"-- image --", "", "image", "--"},
		{"-d -- -x", "--detach=true", "-x", ""},
		{"- x", "", "-", "x"},
		{"--entrypoint= image", "--entrypoint=", "image", ""},
		{"", "", "", ""},
	} {
		inv, err := parse(strings.Fields(tt.words), noneUnknown)
		if err != nil {
			t.Errorf("parsing %q: %v", tt.words, err)
			continue
		}
		var flags []string
		for _, f := range inv.flags {
			flags = append(flags, f.word())
		}
		if got := strings.Join(flags, " "); got != tt.flags || inv.image != tt.image || strings.Join(inv.args, " ") != tt.args {
			t.Errorf("parsing %q: flags %q, image %q, arguments %q", tt.words, got, inv.image, inv.args)
		}
	}
}

func TestParseOwn(t *testing.T) {
	inv, err := parse(strings.Fields("--link a:b -d --link-env ports --link c --link-timeout 90s image --link x"), noneUnknown)
	if err != nil {
		t.Fatal(err)
	}
	if want := []link.Spec{{Source: "a", Alias: "b"}, {Source: "c", Alias: "c"}}; !slices.Equal(inv.links, want) {
		t.Errorf("links are %v, want %v", inv.links, want)
	}
	if inv.env != link.ModePorts || inv.timeout.String() != "1m30s" || !inv.own || len(inv.flags) != 1 {
		t.Errorf("got %+v", inv)
	}
}

// docker run 29 has 107 flags, and linkrun four of its own.
func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, f := range knownFlags() {
		for _, name := range []string{f.name, f.shorthand} {
			if name != "" && seen[name] {
				t.Errorf("%q is twice in the table", name)
			}
			seen[name] = true
		}
	}
	if n := len(knownFlags()); n != 107+4 {
		t.Errorf("the table has %d flags", n)
	}
}

// command is a docker run, in words and understood.
type command struct {
	words []string
	flags []given
	image string
	args  []string
}

// drawCommand makes commands out of flags with the given values, written in
// all the ways that pflag reads.
func drawCommand(values func(t *rapid.T, f flag) string, flags []flag) *rapid.Generator[command] {
	return rapid.Custom(func(t *rapid.T) command {
		var c command
		cluster := "" // shorthands of switches that wait for company
		flush := func() {
			if cluster != "" {
				c.words = append(c.words, "-"+cluster)
				cluster = ""
			}
		}
		for range rapid.IntRange(0, 6).Draw(t, "flags") {
			f := rapid.SampledFrom(flags).Draw(t, "flag")
			forms := []string{"--name value", "--name=value"}
			if f.shorthand != "" {
				forms = append(forms, "-n value", "-nvalue", "-n=value")
			}
			form := rapid.SampledFrom(forms).Draw(t, "form")
			if f.isSwitch {
				value := rapid.SampledFrom([]string{"true", "false", "1", "0", "T"}).Draw(t, "value")
				switch {
				case form == "-nvalue":
					value = "true"
					cluster += f.shorthand
				case form == "--name value":
					value = "true"
					flush()
					c.words = append(c.words, "--"+f.name)
				default:
					flush()
					c.words = append(c.words, "--"+f.name+"="+value)
				}
				c.flags = append(c.flags, given{f.name, value})
				continue
			}
			value := values(t, f)
			if value == "" || form == "-nvalue" && value[0] == '=' {
				form = "--name=value" // the others mean something else
			}
			switch form {
			case "--name value":
				flush()
				c.words = append(c.words, "--"+f.name, value)
			case "--name=value":
				flush()
				c.words = append(c.words, "--"+f.name+"="+value)
			case "-n value":
				c.words = append(c.words, "-"+cluster+f.shorthand, value)
			case "-nvalue":
				c.words = append(c.words, "-"+cluster+f.shorthand+value)
			case "-n=value":
				c.words = append(c.words, "-"+cluster+f.shorthand+"="+value)
			}
			if form[1] != '-' {
				cluster = ""
			}
			c.flags = append(c.flags, given{f.name, value})
		}
		flush()
		c.image = rapid.StringMatching(`[a-z]{1,8}`).Draw(t, "image")
		if rapid.Bool().Draw(t, "dashes") {
			c.words = append(c.words, "--")
		}
		c.args = rapid.SliceOfN(rapid.SampledFrom([]string{"sh", "-c", "--rm", "--", "-", "a b", ""}), 0, 4).Draw(t, "arguments")
		c.words = append(append(c.words, c.image), c.args...)
		return c
	})
}

// dockerFlags are those that are only docker's, and say nothing to linkrun.
func dockerFlags() []flag {
	return slices.DeleteFunc(knownFlags(), func(f flag) bool {
		switch f.name {
		case "link", "link-env", "link-socks", "link-timeout", "help", "version":
			return true
		}
		return false
	})
}

// However a command is written, its flags are found, in order, and writing
// them the plain way changes nothing.
func TestParseAnything(t *testing.T) {
	values := func(t *rapid.T, f flag) string {
		if f.name == "env" {
			return rapid.StringMatching(`[^=].*`).Draw(t, "value")
		}
		return rapid.String().Draw(t, "value")
	}
	rapid.Check(t, func(t *rapid.T) {
		want := drawCommand(values, dockerFlags()).Draw(t, "command")
		for _, words := range [][]string{want.words, runWords(want.flags, nil, want.image, want.args)[1:]} {
			got, err := parse(words, noneUnknown)
			if err != nil {
				t.Fatalf("parsing %q: %v", words, err)
			}
			if !slices.Equal(got.flags, want.flags) || got.image != want.image || !slices.Equal(got.args, want.args) {
				t.Fatalf("parsing %q\ngives %q %q %q\nand not %q %q %q", words,
					got.flags, got.image, got.args, want.flags, want.image, want.args)
			}
		}
	})
}

func TestFlagsFromHelp(t *testing.T) {
	const help = `Usage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]

Options:
      --add-host list                    Add a custom host-to-IP mapping
                                         (host:ip)
  -d, --detach                           Run container in background and
                                         --not-a-flag x
      --health-start-interval duration   Time between running the check
      --init                             Run an init
      --last
  -q, --quiet

      --wide string`
	want := []flag{
		{"add-host", "", false}, {"detach", "d", true}, {"health-start-interval", "", false},
		{"init", "", true}, {"last", "", true}, {"quiet", "q", true}, {"wide", "", false},
	}
	if got := flagsFromHelp(help); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"-itd\nimage", "--link\na:b\nimage\nsh", "-e=A=1\n--\nimage", "--name", "-Z", "-=", "--=", "-e", "--link-env=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words := strings.Split(text, "\n")
		inv, err := parse(words, func() ([]flag, error) { return nil, nil })
		if err != nil {
			return
		}
		again, err := parse(runWords(inv.flags, nil, inv.image, inv.args)[1:], noneUnknown)
		if inv.image == "" {
			return // nothing to run
		}
		if err != nil || fmt.Sprint(again.flags, again.image, again.args) != fmt.Sprint(inv.flags, inv.image, inv.args) {
			t.Fatalf("%q became %+v, %v", words, again, err)
		}
	})
}
