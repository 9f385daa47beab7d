package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// realDockers are the docker commands of this machine, without the fake one.
func realDockers(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, dir := range filepath.SplitList(realPath) {
		path, err := filepath.EvalSymlinks(filepath.Join(dir, "docker"))
		if err == nil && isExecutable(path) && !slices.Contains(found, path) {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("docker is not installed")
		}
		t.Skip("SKIPPED: docker is not installed")
	}
	return found
}

// ask lets a docker command ask a fake engine for a container, and returns
// all that can be told of it.
func (e *fakeEngine) ask(t *testing.T, docker, host string, words []string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), docker, words...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CONFIG="+t.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil {
		t.Fatalf("%s %q succeeds", docker, words)
	}
	c, asked := e.last()
	if !asked {
		return stderr.String()
	}
	b, err := json.MarshalIndent([]any{c.query, c.body}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Values that docker run accepts, so that most commands reach the engine.
func plausible(t *rapid.T, f flag) string {
	values, found := map[string][]string{
		"add-host": {"h:1.2.3.4"}, "cap-add": {"NET_ADMIN", "ALL"}, "cidfile": {"/nonexistent/x"}, "cpu-shares": {"5"},
		"cpus": {"0.5"}, "cpuset-cpus": {"0"}, "device": {"/dev/null"}, "dns": {"1.1.1.1"}, "dns-opt": {"ndots:2"}, "dns-option": {"ndots:3"},
		"entrypoint": {"sh", "", "a b"}, "env": {"A=1", "A==", "B=a b\nc", "HOME", "UNSET_1"}, "expose": {"80", "1-3/udp"},
		"health-cmd": {"true"}, "health-interval": {"3s"}, "hostname": {"h"}, "label": {"a=b", "c", "a=-d"}, "log-opt": {"a=b"},
		"memory": {"64m"}, "mount": {"type=tmpfs,target=/x"}, "name": {"n", "-d"}, "net": {"mine", "none"}, "network": {"host", "other"},
		"oom-score-adj": {"5", "-5"}, "publish": {"80:80", "127.0.0.1::53/udp"}, "restart": {"no", "always"}, "security-opt": {"no-new-privileges"},
		"shm-size": {"64m"}, "stop-timeout": {"5"}, "sysctl": {"a=b"}, "tmpfs": {"/t:size=1m"}, "ulimit": {"nofile=1:2"}, "user": {"1:1"},
		"volume": {"/a:/b:ro", "v:/c"}, "workdir": {"/w"}, "pull": {"missing", "never"}, "attach": {"stdout"}, "platform": {"linux/amd64"},
	}[f.name]
	if !found {
		return rapid.SampledFrom([]string{"x", "1"}).Draw(t, "value")
	}
	return rapid.SampledFrom(values).Draw(t, "value")
}

// Docker's own parser is the judge of two things: which word is the image,
// and whether our way of repeating the flags asks for the same container.
func TestDockerAgrees(t *testing.T) {
	const commands = 30
	flags := slices.DeleteFunc(dockerFlags(), func(f flag) bool { return strings.HasPrefix(f.name, "detach") || f.name == "cidfile" })
	generate := drawCommand(plausible, flags)
	for _, docker := range realDockers(t) {
		engine := &fakeEngine{}
		host := startEngine(t, engine)
		reached := 0
		for seed := range commands {
			c := generate.Example(seed)
			want := engine.ask(t, docker, host, append([]string{"run"}, c.words...))
			got := engine.ask(t, docker, host, runWords(c.flags, nil, c.image, c.args))
			if got != want {
				t.Errorf("%s: %q asks for\n%s\n%q asks for\n%s", docker, c.words, want, runWords(c.flags, nil, c.image, c.args), got)
			}
			body, asked := asks(want)
			if !asked {
				continue // an error
			}
			reached++
			if cmd := list(body["Cmd"]); body["Image"] != c.image || !slices.Equal(cmd, c.args) {
				t.Errorf("%s: of %q, docker takes %v %q, linkrun %q %q", docker, c.words, body["Image"], cmd, c.image, c.args)
			}
		}
		if reached < commands/3 {
			t.Errorf("%s: only %d of %d commands were understood", docker, reached, commands)
		}
		t.Logf("%s: %d of %d commands reached the engine", docker, reached, commands)
	}
}

// What each installed docker prints in its help is in the table.
func TestTableKnowsDocker(t *testing.T) {
	known := knownFlags()
	for _, docker := range realDockers(t) {
		out, err := exec.CommandContext(t.Context(), docker, "run", "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		flags := flagsFromHelp(string(out))
		if len(flags) < 90 {
			t.Errorf("%s lists %d flags", docker, len(flags))
		}
		for _, f := range flags {
			if !slices.Contains(known, f) {
				t.Errorf("%s has %+v", docker, f)
			}
		}
	}
}

// Which variables an --env-file sets is docker's to say.
func TestDockerReadsFiles(t *testing.T) {
	t.Setenv("SET_IN_TEST", "set")
	path := filepath.Join(t.TempDir(), "file")
	for _, docker := range realDockers(t) {
		engine := &fakeEngine{}
		host := startEngine(t, engine)
		for _, text := range envFiles {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, gotErr := parseEnvFile(path, strings.NewReader(text), lookupTest)
			body, asked := asks(engine.ask(t, docker, host, []string{"run", "--env-file", path, "image"}))
			want := list(body["Env"])
			if asked != (gotErr == nil) || asked && !slices.Equal(got, want) {
				t.Errorf("%s: %.40q gives %q, and here %q, %v", docker, text, want, got, gotErr)
			}
		}
	}
}

func TestDockerReadsNetworks(t *testing.T) {
	for _, docker := range realDockers(t) {
		engine := &fakeEngine{}
		host := startEngine(t, engine)
		for value := range networkValues {
			body, asked := asks(engine.ask(t, docker, host, []string{"run", "--network", value, "image"}))
			if !asked {
				continue // this docker refuses it
			}
			hostConfig, _ := body["HostConfig"].(map[string]any)
			if want := hostConfig["NetworkMode"]; want != networkName(value) && !(value == "" && want == "default") {
				t.Errorf("%s: --network %q is %q, and here %q", docker, value, want, networkName(value))
			}
		}
	}
}

// asks takes what ask returns apart.
func asks(text string) (body map[string]any, asked bool) {
	var c []any
	if json.Unmarshal([]byte(text), &c) != nil {
		return nil, false
	}
	return c[1].(map[string]any), true
}

func list(v any) (words []string) {
	all, _ := v.([]any)
	for _, w := range all {
		words = append(words, w.(string))
	}
	return words
}
