package main

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestNewName(t *testing.T) {
	// The names that Docker takes (moby, daemon/names).
	good := regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	seen := make(map[string]bool)
	for range 1000 {
		name := newName()
		if !good.MatchString(name) || seen[name] {
			t.Fatalf("%q is no new name", name)
		}
		seen[name] = true
	}
}

func TestRunWords(t *testing.T) {
	got := runWords([]given{{"env", "A=1"}, {"rm", "true"}}, []string{"--x"}, "-image", []string{"--", "-a"})
	if want := []string{"run", "--env=A=1", "--rm=true", "--x", "--", "-image", "--", "-a"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestInitMount(t *testing.T) {
	for path, want := range map[string]string{
		"/usr/bin/linkrun": "type=bind,source=/usr/bin/linkrun,target=/.linkrun-init,readonly",
		"/a,b/link:run":    `type=bind,"source=/a,b/link:run",target=/.linkrun-init,readonly`,
		`/a"b`:             `type=bind,"source=/a""b",target=/.linkrun-init,readonly`,
	} {
		if got, err := initMount(path); got != want || err != nil {
			t.Errorf("initMount(%q) = %s, %v, want %s", path, got, err, want)
		}
	}
}

// The same values are given to the real docker in TestDockerReadsNetworks.
var networkValues = map[string]string{
	"":                             "",
	"host":                         "host",
	"mine":                         "mine",
	"container:web":                "container:web",
	"name=mine":                    "mine",
	"name=mine,alias=a,alias=b":    "mine",
	"alias=a,name=mine":            "mine",
	"name=host":                    "host",
	"NAME=mine":                    "mine",
	"name= mine ,ip=1.2.3.4":       "mine",
	"name=mine,driver-opt=a=b":     "mine",
	`name=mine,"driver-opt=a=b,c"`: "mine",
}

func TestNetworkName(t *testing.T) {
	for value, want := range networkValues {
		if got := networkName(value); got != want {
			t.Errorf("networkName(%q) = %q, want %q", value, got, want)
		}
	}
}

func TestLocalHost(t *testing.T) {
	for host, want := range map[string]string{
		"unix:///run/docker.sock": "unix:///run/docker.sock",
		"localhost:2375":          "tcp://localhost:2375",
		"tcp://127.0.0.1":         "tcp://127.0.0.1:2375",
		"tcp://[::1]:1":           "tcp://[::1]:1",
		":2375":                   "tcp://127.0.0.1:2375",
		"tcp://":                  "tcp://127.0.0.1:2375",
		"tcp://10.0.0.1:2375":     "",
		"ssh://root@localhost":    "",
		"npipe:////./pipe/docker": "",
		"example.com:1":           "",
	} {
		if got, err := localHost(host); got != want || (err == nil) != (want != "") {
			t.Errorf("localHost(%q) = %q, %v, want %q", host, got, err, want)
		}
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
		code int
	}{
		{nil, "", 0},
		{errors.New("a"), "linkrun: a\n", 125},
		{fail("", "a\nb"), "linkrun: a b\n", 125},
		{fail("do\nthis", "reading %q: %w", "x", errors.New("y\r\n\nz")), "linkrun: reading \"x\": y z\nlinkrun: hint: do this\n", 125},
		{&problem{err: errors.New("a"), code: 127}, "linkrun: a\n", 127},
	} {
		var b strings.Builder
		if code := report(&b, tt.err); code != tt.code || b.String() != tt.want {
			t.Errorf("report(%v) = %d and writes %q, want %d and %q", tt.err, code, b.String(), tt.code, tt.want)
		}
	}
}
