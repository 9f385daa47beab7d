package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/gate"
)

// scenario is one start of the init, in a network namespace of its own: the
// word is given at the same address in all of them.
type scenario struct {
	Argv []string // the init is the first of them that is not a shell
	Env  []string
	Word *gate.Word // nil: nobody gives one
	Term bool       // it is told to stop instead
}

const scenarioVariable = "LINKRUN_TEST_SCENARIO"

// run starts the scenario in another process and returns what the init, or
// the program it became, wrote, and its exit code.
func (s scenario) run(t *testing.T) (stdout, stderr string, code int) {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{scenarioVariable + "=1", "GORACE=" + noExitDelay}
	cmd.Stdin = bytes.NewReader(b)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		if os.Getuid() == 0 || os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: making a network namespace needs root, or user namespaces:", err)
	}
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// scenarioMain is the other process.
func scenarioMain() int {
	var s scenario
	if err := json.NewDecoder(os.Stdin).Decode(&s); err != nil {
		panic(err)
	}
	cmd := exec.Command(s.Argv[0], s.Argv[1:]...)
	cmd.Env = s.Env
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var ln net.Listener
	if s.Word != nil || s.Term {
		var err error
		if ln, err = net.Listen("unix", gate.Address); err != nil {
			panic(err)
		}
		defer ln.Close()
	}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	switch {
	case s.Term:
		if _, err := ln.Accept(); err != nil { // it waits, and its handlers are set
			panic(err)
		}
		cmd.Process.Signal(syscall.SIGTERM)
	case s.Word != nil:
		g := gate.Gate{Word: func() gate.Word { return *s.Word }, Verify: func(pid, _ int) bool { return pid == cmd.Process.Pid }}
		go g.Serve(ctx, ln)
	}
	cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

func theInit(t *testing.T) string { return filepath.Join(builtDir(t), initName) }

func TestInitBecomesTheProgram(t *testing.T) {
	word := &gate.Word{
		Env:      []string{"DB_PORT=new", "DB_ENV_KEY=a=b\nc"},
		Prefixes: []string{"DB"},
		Kept:     []string{"DB_NAME"},
	}
	stdout, stderr, code := scenario{
		Argv: []string{theInit(t), "--timeout=20s", "--entrypoint=1", "--a-later-version=x", "--", "sh", "-c", `
			echo "$0|$1|$DB_PORT|$DB_PORT_80_TCP|$DB_NAME|$DB_ENV_KEY|$HTTP_PROXY"; exit 7`, "zero", "--", "-x"},
		Env:  []string{"PATH=" + realPath, "DB_PORT=old", "DB_PORT_80_TCP=old", "DB_NAME=mine", "HTTP_PROXY=p"},
		Word: word,
	}.run(t)
	if want := "zero|--|new||mine|a=b\nc|p\n"; stdout != want || stderr != "" || code != 7 {
		t.Errorf("stdout %q, stderr %q, exit code %d; want stdout %q, exit code 7", stdout, stderr, code, want)
	}
}

// The program finds everything as it would without the init.
func TestInitLeavesNoTrace(t *testing.T) {
	const show = `grep -E '^(Sig|Shd|Cap|NoNewPrivs|Groups)' /proc/self/status | grep -v SigQ
		ulimit -Sn; ulimit -Hn; ls /proc/self/fd; pwd; umask; cat /proc/$$/environ | tr '\0' '\n' | sort`
	// A signal that is ignored, limits, a folder and a mask of its own.
	const shell = `trap '' HUP; ulimit -Sn 123; ulimit -Hn 300; umask 027; cd /usr; exec "$@"`
	env := []string{"PATH=" + realPath, "HOME=/x", "EMPTY=", "ODD=a=b\n\xff"}
	argv := []string{"/bin/sh", "-c", show}

	with, stderr, code := scenario{
		Argv: slices.Concat([]string{"/bin/sh", "-c", shell, "-", theInit(t), "--timeout=20s", "--"}, argv),
		Env:  env, Word: &gate.Word{},
	}.run(t)
	if stderr != "" || code != 0 {
		t.Fatalf("exit code %d, stderr %q", code, stderr)
	}
	without, _, _ := scenario{Argv: slices.Concat([]string{"/bin/sh", "-c", shell, "-"}, argv), Env: env}.run(t)
	if with != without || !strings.Contains(with, "123\n300\n") || !strings.Contains(with, "HOME=/x") {
		t.Errorf("with the init\n%q\nwithout\n%q", with, without)
	}
}

func TestInitFindsPrograms(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	script("good", "#!/bin/sh\necho good $0 $1\n", 0o755)
	script("plain", "text", 0o644)
	script("no-interpreter", "#!/nowhere/sh\n", 0o755)
	script("garbage", "\x7fELF", 0o755)

	const hint = "\nlinkrun: hint: see the image's entrypoint and the command after the image\n"
	for _, tt := range []struct {
		path, program string
		stdout        string
		stderr        string
		code          int
	}{
		{"/nowhere:" + dir, "good", "good " + dir + "/good arg\n", "", 0},
		{"", dir + "/good", "good " + dir + "/good arg\n", "", 0},
		{".", "good", "good good arg\n", "", 0}, // the shell that runs the script is told this name
		{"", "./good", "good ./good arg\n", "", 0},
		{dir, "nosuch", "", `linkrun: exec: "nosuch": executable file not found in $PATH` + hint, 127},
		{dir, "plain", "", `linkrun: exec: "plain": executable file not found in $PATH` + hint, 127},
		{"", "./nosuch", "", `linkrun: exec: "./nosuch": stat ./nosuch: no such file or directory` + hint, 127},
		{"", "./good/x", "", `linkrun: exec: "./good/x": stat ./good/x: not a directory` + hint, 127},
		{"", "./no-interpreter", "", `linkrun: exec "./no-interpreter": no such file or directory` + hint, 127},
		{"", "./plain", "", `linkrun: exec: "./plain": permission denied` + hint, 126},
		{"", "/etc", "", `linkrun: exec: "/etc": is a directory` + hint, 126},
		{"", "./garbage", "", `linkrun: exec "./garbage": exec format error` + hint, 126},
	} {
		stdout, stderr, code := scenario{
			Argv: []string{"/bin/sh", "-c", `cd "$1" && shift && exec "$@"`, "-", dir, theInit(t), "--timeout=20s", "--", tt.program, "arg"},
			Env:  []string{"PATH=" + tt.path},
			Word: &gate.Word{},
		}.run(t)
		if stdout != tt.stdout || stderr != tt.stderr || code != tt.code {
			t.Errorf("PATH=%s, %s: stdout %q, stderr %q, exit code %d; want %q, %q, %d",
				tt.path, tt.program, stdout, stderr, code, tt.stdout, tt.stderr, tt.code)
		}
	}
}

func TestInitRefuses(t *testing.T) {
	tooMuch := make([]string, 200)
	for i := range tooMuch {
		tooMuch[i] = fmt.Sprintf("DB_ENV_%d=%s", i, strings.Repeat("x", 100_000))
	}
	for _, tt := range []struct {
		name   string
		words  []string
		word   *gate.Word
		term   bool
		stderr string
		code   int
	}{
		{name: "error", words: []string{"--", "true"}, word: &gate.Word{Error: "no\nway", Hint: "do\nthis"},
			stderr: "linkrun: no way\nlinkrun: hint: do this\n", code: 125},
		{name: "silence", words: []string{"--timeout=20ms", "--", "true"},
			stderr: "linkrun: the links do not stand after 20ms: no word from the ambassador: dial unix @ambassador.gate: connect: connection refused\n" +
				"linkrun: hint: see that `ambassador serve` runs on the host, and what `ambassador links` says; --link-timeout waits longer\n", code: 125},
		{name: "stopped", words: []string{"--", "true"}, term: true,
			stderr: "linkrun: waiting for the links: ended by signal: terminated\n", code: 143},
		{name: "too much", words: []string{"--", "true"}, word: &gate.Word{Env: tooMuch[:60], Prefixes: []string{"DB"}},
			stderr: "linkrun: exec \"true\": argument list too long\n" +
				"linkrun: hint: create the container anew with --link-env ports or --link-env none\n", code: 126},
		{name: "far too much", words: []string{"--", "true"}, word: &gate.Word{Env: tooMuch, Prefixes: []string{"DB"}},
			stderr: "linkrun: the variables of the links take 20002717 bytes, more than a program can be given\n" +
				"linkrun: hint: start the container with --link-env ports or --link-env none\n", code: 125},
		{name: "no program", words: []string{"--timeout=1s", "--"},
			stderr: "linkrun: no program to start\nlinkrun: hint: it is started in containers that linkrun makes, and not by hand\n", code: 125},
		{name: "no words",
			stderr: "linkrun: no program to start\nlinkrun: hint: it is started in containers that linkrun makes, and not by hand\n", code: 125},
		{name: "bad timeout", words: []string{"--timeout=soon", "--", "true"},
			stderr: "linkrun: reading \"--timeout=soon\": time: invalid duration \"soon\"\nlinkrun: hint: it is started in containers that linkrun makes, and not by hand\n", code: 125},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, code := scenario{
				Argv: append([]string{theInit(t)}, tt.words...),
				Env:  []string{"PATH=" + realPath},
				Word: tt.word,
				Term: tt.term,
			}.run(t)
			if stdout != "" || stderr != tt.stderr || code != tt.code {
				t.Errorf("stdout %q, stderr %q, exit code %d; want stderr %q, exit code %d", stdout, stderr, code, tt.stderr, tt.code)
			}
		})
	}
}

// What every container can run.
func TestCheckInit(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	text := write("text", strings.Repeat("text", 20), 0o755)
	private := write("private", "", 0o750)
	missing := filepath.Join(dir, "missing")
	for path, want := range map[string]string{
		"/bin/sh": "needs shared libraries",
		text:      "it is no Linux program: bad magic number '[116 101 120 116]' in record at byte 0x0",
		private:   "not every user may execute it (-rwxr-x---)",
		missing:   "no such file or directory",
	} {
		if err := checkInit(path); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("checkInit(%q) gives %v, want …%s", path, err, want)
		}
	}
}
