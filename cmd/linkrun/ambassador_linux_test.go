package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
)

// needRoot skips a test loudly, and fails it in CI.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("SKIPPED: needs root")
}

// shortDir is a folder for sockets, whose names must not be long. Others may
// enter it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "linkrun")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// notes is what the fakes left; at the test's end the ambassadors among them
// are ended.
func notes(t *testing.T, work string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(work, "notes"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func TestUnit(t *testing.T) {
	needRoot(t)
	engine := docker.Engine{ID: engineID}
	for _, tt := range []struct {
		unit  string
		notes string // how they begin
		err   string
	}{
		{"", "systemctl cat ambassador.service\nsystemctl start ambassador.service\nambassador ", ""},
		{"none", "systemctl cat ambassador.service\nambassador ", ""},
		{"fails", "systemctl cat ambassador.service\nsystemctl start ambassador.service\n",
			"starting ambassador.service: exit status 1: Job for ambassador.service failed."},
	} {
		t.Run("unit "+tt.unit, func(t *testing.T) {
			dir := shortDir(t)
			t.Setenv("WORK", dir)
			t.Setenv("FAKE_UNIT", tt.unit)
			t.Setenv("AMBASSADOR_DIR", filepath.Join(dir, "ambassador"))
			t.Cleanup(func() { killNoted(dir) })
			a := &ambassador{dir: filepath.Join(dir, "ambassador"), host: docker.DefaultHost, beside: dir, unit: true}
			err := a.ensure(t.Context(), engine)
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
			if got := notes(t, dir); !strings.HasPrefix(got, tt.notes) {
				t.Errorf("got notes %q, want %q", got, tt.notes)
			}
		})
	}
}

// The program beside linkrun goes before the one on the PATH.
func TestProgramBeside(t *testing.T) {
	dir := t.TempDir()
	a := &ambassador{beside: dir}
	onPath, err := a.program()
	if err != nil || filepath.Dir(onPath) == dir {
		t.Errorf("without one beside: %q, %v", onPath, err)
	}
	beside := filepath.Join(dir, "ambassador")
	if err := os.Mkdir(beside, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, _ := a.program(); got != onPath {
		t.Errorf("a folder is taken for a program: %q", got)
	}
	os.Remove(beside)
	if err := os.WriteFile(beside, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := a.program(); got != beside || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, beside)
	}
}

// An ambassador that hangs is not waited for without end, and none is started
// beside it.
func TestHangingAmbassador(t *testing.T) {
	dir := shortDir(t)
	ln, err := net.Listen("unix", control.SocketPath(dir)) // and accepts nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // instead of ten seconds
	defer cancel()
	err = (&ambassador{dir: dir, beside: dir}).ensure(ctx, docker.Engine{ID: engineID})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
}

// What a user sees who is neither root nor in the group docker.
func TestWithoutRights(t *testing.T) {
	needRoot(t)
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte("#!/bin/sh\n"), 0o755); err != nil { // to be found
		t.Fatal(err)
	}
	_, stop, err := (&fakeEngine{}).serve(filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	agentDir := filepath.Join(dir, "agent")
	server, err := control.Listen(agentDir, fakeAgent{engineID: engineID}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	for _, tt := range []struct {
		name string
		mode os.FileMode // of the engine's socket
		dir  string      // of the ambassador
		want string
	}{
		{"engine", 0o600, agentDir,
			"linkrun: the Docker Engine does not answer at \"unix://DIR/docker.sock\": permission denied\n" +
				"linkrun: hint: run linkrun as root, or join the group docker\n"},
		{"ambassador", 0o666, agentDir,
			"linkrun: asking the ambassador: connecting to \"DIR/agent/ambassador.sock\": permission denied\n" +
				"linkrun: hint: run linkrun as root, or join the group docker\n"},
		{"no ambassador", 0o666, filepath.Join(dir, "nobody"),
			"linkrun: connecting to \"DIR/nobody/ambassador.sock\": no ambassador serves here\n" +
				"linkrun: hint: start one as root: sudo ambassador serve --dir DIR/nobody --host unix://DIR/docker.sock\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.Chmod(filepath.Join(dir, "docker.sock"), tt.mode); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(builtDir(t), "linkrun"), "--link", "db", "bare")
			cmd.Env = []string{"PATH=" + dir, "DOCKER_HOST=unix://" + dir + "/docker.sock", "AMBASSADOR_DIR=" + tt.dir}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			cmd.Run()
			want := strings.ReplaceAll(tt.want, "DIR", dir)
			if code := cmd.ProcessState.ExitCode(); stderr.String() != want || code != exitRefused {
				t.Errorf("exit code %d, stderr\n%swant\n%s", code, stderr.String(), want)
			}
			if _, err := os.Stat(tt.dir); tt.name == "no ambassador" && !os.IsNotExist(err) {
				t.Errorf("%s was made: %v", tt.dir, err)
			}
		})
	}
}
