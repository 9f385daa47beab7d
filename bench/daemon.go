package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// daemon is a program of a peer that runs until it is stopped. Its one
// goroutine waits for it to end.
type daemon struct {
	cmd  *exec.Cmd
	log  string // a file
	done chan struct{}
	told bool // to stop
}

// start starts a program that stops with the stage, and not before: its
// command has no context.
func (s *stage) start(name string, cmd *exec.Cmd) (*daemon, error) {
	log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// A Ctrl-C is for the bench, which then stops them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	d := &daemon{cmd: cmd, log: log.Name(), done: make(chan struct{})}
	go d.wait()
	s.daemons = append(s.daemons, d)
	s.tb.Cleanup(d.stop)
	return d, nil
}

func (d *daemon) wait() {
	d.cmd.Wait()
	close(d.done)
}

// stop stops the program and all it started, which are in its group.
func (d *daemon) stop() {
	d.told = true
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		syscall.Kill(-d.cmd.Process.Pid, signal)
		select {
		case <-d.done:
			syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
			return
		case <-time.After(5 * time.Second):
		}
	}
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

// ready waits until cond returns nil, or the program ends.
func (d *daemon) ready(ctx context.Context, cond func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := poll(ctx, 30*time.Second, func() error {
		if d.ended() {
			cancel()
		}
		return cond()
	})
	if ended := d.fell(); ended != nil {
		return ended
	}
	return err
}

func (d *daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// fell says that the program ended although nobody stopped it, and the last
// it said.
func (d *daemon) fell() error {
	if d.told || !d.ended() {
		return nil
	}
	text, err := os.ReadFile(d.log)
	if err != nil {
		text = []byte(err.Error())
	}
	return fmt.Errorf("%v ended: %v\n%s", d.cmd.Args, d.cmd.ProcessState, text[max(0, len(text)-8<<10):])
}

// fallen says of every program of the stage that ended by itself.
func (s *stage) fallen() error {
	var errs []error
	for _, d := range s.daemons {
		errs = append(errs, d.fell())
	}
	return errors.Join(errs...)
}
