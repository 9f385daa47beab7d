package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
)

const (
	unit     = "ambassador.service"
	unitHint = "see `systemctl status ambassador`"

	// startTimeout bounds the wait for an ambassador that was started.
	// lateTimeout bounds what is left of it once that one has ended: then
	// another one, started at the same time, has to answer.
	startTimeout = 10 * time.Second
	lateTimeout  = 2 * time.Second

	// statusTimeout bounds the wait for the answer of one that is there.
	statusTimeout = 10 * time.Second
)

// ambassador is the agent that serves the links of an engine on this machine.
type ambassador struct {
	dir    string // of its socket
	host   string // the engine's address
	beside string // the folder where its program may be
	unit   bool   // systemd runs, and its unit would serve this engine there
}

// findAmbassador is the ambassador for an engine, whether it serves or not.
// self is the path of linkrun.
func findAmbassador(host, self string) *ambassador {
	a := &ambassador{dir: control.Dir(), host: host, beside: filepath.Dir(self)}
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	a.unit = err == nil && a.dir == control.DefaultDir && a.host == docker.DefaultHost
	return a
}

// ensure makes sure that an ambassador serves the engine. Root starts one
// where none does; it is left running.
func (a *ambassador) ensure(ctx context.Context, engine docker.Engine) error {
	err := a.check(ctx, engine)
	if !errors.Is(err, control.ErrNoAgent) {
		return err
	}
	if os.Geteuid() != 0 {
		return fail("start one as root: sudo "+a.serveCommand(), "%w", err)
	}
	if a.unit && exec.CommandContext(ctx, "systemctl", "cat", unit).Run() == nil {
		if out, err := exec.CommandContext(ctx, "systemctl", "start", unit).CombinedOutput(); err != nil {
			return fail(unitHint, "starting %s: %w: %s", unit, err, bytes.TrimSpace(out))
		}
		return a.wait(ctx, engine, nil, unitHint)
	}
	ended, err := a.start()
	if err != nil {
		return err
	}
	return a.wait(ctx, engine, ended, "see "+a.log())
}

func (a *ambassador) serveCommand() string {
	return fmt.Sprintf("ambassador serve --dir %s --host %s", a.dir, a.host)
}

// check asks who serves. The error is control.ErrNoAgent when nobody does.
func (a *ambassador) check(ctx context.Context, engine docker.Engine) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	status, err := control.Dial(a.dir).Status(ctx)
	switch {
	case errors.Is(err, control.ErrNoAgent):
		return err
	case errors.Is(err, fs.ErrPermission):
		return fail("run linkrun as root, or join the group docker", "asking the ambassador: %w", err)
	case err != nil:
		return fail("see the log of the ambassador", "%w", err)
	case status.EngineID != engine.ID:
		return fail("start another one: AMBASSADOR_DIR=/run/ambassador-2 ambassador serve --host "+a.host+", and set AMBASSADOR_DIR for linkrun too",
			"the ambassador at %q serves another engine, %s", a.dir, status.Engine)
	}
	return nil
}

// start runs an ambassador in a session of its own, so that it outlives
// linkrun, its terminal, and docker, which linkrun becomes. ended is closed
// when it ends while linkrun is still there.
func (a *ambassador) start() (ended <-chan struct{}, err error) {
	program, err := a.program()
	if err != nil {
		return nil, fail("install ambassador beside linkrun, or start it: "+a.serveCommand(), "starting an ambassador: %w", err)
	}
	if err := os.MkdirAll(a.dir, 0o755); err != nil {
		return nil, fail("choose another folder with AMBASSADOR_DIR", "starting an ambassador: %w", err)
	}
	log, err := os.OpenFile(a.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fail("choose another folder with AMBASSADOR_DIR", "starting an ambassador: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(program, "serve", "--dir", a.dir, "--host", a.host)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fail("start it: "+a.serveCommand(), "starting an ambassador: %w", err)
	}
	gone := make(chan struct{})
	go func() { // ends with the process, or when linkrun becomes docker
		cmd.Wait()
		close(gone)
	}()
	return gone, nil
}

func (a *ambassador) log() string { return filepath.Join(a.dir, "ambassador.log") }

func (a *ambassador) program() (string, error) {
	const name = "ambassador"
	if beside := filepath.Join(a.beside, name); isExecutable(beside) {
		return beside, nil
	}
	return exec.LookPath(name)
}

func isExecutable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// wait waits until an ambassador answers. It need not be the one started
// here: of two that start at once, the second ends at the first one's lock.
func (a *ambassador) wait(ctx context.Context, engine docker.Engine, ended <-chan struct{}, hint string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := a.check(ctx, engine)
		switch {
		case ctx.Err() != nil:
			return fail(hint, "the ambassador that was started does not answer%s", a.lastWords())
		case !errors.Is(err, control.ErrNoAgent):
			return err
		}
		select {
		case <-ctx.Done():
		case <-ended:
			ended = nil
			ctx, cancel = context.WithTimeout(ctx, lateTimeout)
			defer cancel()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// lastWords is the last line of the log that start made.
func (a *ambassador) lastWords() string {
	b, err := os.ReadFile(a.log())
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return "; it wrote: " + string(lines[len(lines)-1])
}
