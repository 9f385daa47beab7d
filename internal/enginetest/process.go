package enginetest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// process is a daemon of an engine. Its one goroutine waits for it to end.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended
	err  error         // of Wait; valid after done
}

// spawn starts a daemon in the engine's network namespace; it logs to a file
// in the engine's folder.
func (e *Engine) spawn(name string, args ...string) (*process, error) {
	path, err := lookPath(name)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(e.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Not `ip netns exec`: it would also enter a mount namespace, and what
	// dockerd mounts there, like its containers' network namespaces, would be
	// hidden from everyone else.
	cmd := exec.Command("nsenter", append([]string{"--net=" + e.NetNS(), "--", path}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	// A Ctrl-C is for the test, which then stops the engine.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

func (p *process) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// end sends a signal and waits for the process to end.
func (p *process) end(sig syscall.Signal, within time.Duration) error {
	if p.exited() {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !p.exited() {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(within):
		return fmt.Errorf("stopping %s: it still runs %v after %v", p.name, within, sig)
	}
}

// run runs a command; its error says what the command said.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// lookPath also looks where daemons are, which is not in everyone's PATH.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", err
}
