package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/linkrun/linkrun/control"
)

// The scripts say what a user sees. Besides the usual commands they have
//
//	engine [version]    a fake engine at $DOCKER_HOST
//	agent [engine id]   a fake ambassador at $AMBASSADOR_DIR, for that engine
//
// and a docker that shows what it was asked for, see fakeDocker. Its output
// has a line for each word.
func TestScripts(t *testing.T) {
	built := builtDir(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// A socket's name must not be long.
			short, err := os.MkdirTemp("", "script")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(short) })
			env.Setenv("DOCKER_HOST", "unix://"+filepath.Join(short, "docker.sock"))
			env.Setenv("AMBASSADOR_DIR", filepath.Join(short, "ambassador"))
			env.Setenv("DOCKER_CONFIG", filepath.Join(env.WorkDir, "config"))
			env.Setenv("LINKRUN", built)
			env.Setenv("PATH", built+string(filepath.ListSeparator)+env.Getenv("PATH"))
			env.Setenv("GORACE", noExitDelay)
			env.Defer(func() { killNoted(env.WorkDir) })
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			if os.Getuid() != 0 && os.Getenv("CI") == "true" {
				return false, errors.New("needs root")
			}
			return os.Getuid() == 0, nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"engine": func(ts *testscript.TestScript, neg bool, args []string) {
				e := &fakeEngine{version: strings.Join(args, ""), pulled: ts.Getenv("WORK")}
				socket, _ := strings.CutPrefix(ts.Getenv("DOCKER_HOST"), "unix://")
				_, stop, err := e.serve(socket)
				ts.Check(err)
				ts.Defer(stop)
			},
			"agent": func(ts *testscript.TestScript, neg bool, args []string) {
				id := engineID
				if len(args) > 0 {
					id = args[0]
				}
				server, err := control.Listen(ts.Getenv("AMBASSADOR_DIR"), fakeAgent{engineID: id, host: "unix:///other.sock"}, slog.New(slog.DiscardHandler))
				ts.Check(err)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() {
					defer close(done)
					server.Serve(ctx)
				}()
				ts.Defer(func() {
					cancel()
					<-done
				})
			},
		},
	})
}

// killNoted ends the ambassadors that linkrun started and left running.
func killNoted(work string) {
	b, err := os.ReadFile(filepath.Join(work, "notes"))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		var pid int
		if n, _ := fmt.Sscanf(line, "ambassador %d", &pid); n == 1 {
			syscall.Kill(pid, syscall.SIGTERM)
		}
	}
}
