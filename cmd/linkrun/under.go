package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// exitStatus ends linkrun like the docker that ran under it. That one has
// written what there was to say.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// runUnder runs docker as a child, because something has to listen on the
// socket: since Docker 25, a docker that is told to stop keeps the signal to
// itself and hangs up on its plugin (docker/cli, cli-plugins/socket). docker
// run passes the signal on to the container.
func (d *dockerCLI) runUnder(plugin net.Conn, argv, env []string) error {
	defer plugin.Close()
	cmd := exec.Command(d.path)
	cmd.Args, cmd.Env = argv, env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr

	// What comes from the terminal reaches docker run as well, and it decides.
	ours := make(chan os.Signal, 1)
	signal.Notify(ours, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(ours)
	if err := cmd.Start(); err != nil {
		return err
	}
	hungUp := make(chan struct{})
	go func() {
		defer close(hungUp)
		io.Copy(io.Discard, plugin)
		cmd.Process.Signal(syscall.SIGTERM) // an error when it has ended is fine
	}()
	err := cmd.Wait()
	plugin.Close()
	<-hungUp
	if cmd.ProcessState == nil {
		return err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitStatus(128 + int(status.Signal()))
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		return exitStatus(code)
	}
	return nil
}
