// Package enginetest gives tests a private Docker Engine in its own network
// namespace, images for it, and the project's binaries. It is for tests only
// and knows nothing of links.
package enginetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Options say how an engine differs from the default: no communication
// between containers (icc=false), and containers that stop with the engine.
type Options struct {
	ICC         bool     // containers on the default bridge may reach each other
	LiveRestore bool     // containers outlive the engine
	Args        []string // further arguments of dockerd
	CLI         string   // the docker client; empty: the first in PATH
}

// Engine is a running dockerd with its own containerd, data, socket and
// network namespace. It shares nothing with an engine of the host.
type Engine struct {
	opts Options
	name string // of the network namespace, the folder and the control group

	containerd *process
	dockerd    *process

	images struct {
		sync.Mutex
		refs map[string]string
	}
}

// Start starts an engine that stops with the test. It skips the test where an
// engine cannot be had; see Require.
func Start(t testing.TB, opts Options) *Engine {
	t.Helper()
	Require(t, Root, Dockerd)
	e, err := start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.stop(); err != nil {
			t.Error(err)
		}
	})
	e.logOnFailure(t)
	return e
}

// start starts an engine; on an error nothing of it is left. The caller calls
// stop.
func start(opts Options) (*Engine, error) {
	if err := sweepAll(); err != nil {
		return nil, fmt.Errorf("sweeping up after an earlier run: %w", err)
	}
	e := &Engine{opts: opts, name: newName()}
	if err := e.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting a private engine: %w", err), e.stop())
	}
	return e, nil
}

// setUp makes the folder and the network namespace, and launches the engine.
func (e *Engine) setUp() error {
	for _, dir := range []string{"", "config"} {
		if err := os.Mkdir(filepath.Join(e.Dir(), dir), 0o711); err != nil {
			return err
		}
	}
	files := map[string]string{
		"daemon.json":        "{}", // not the host's
		"config/config.json": "{}",
		"containerd.toml": fmt.Sprintf("version = 2\nroot = %q\nstate = %q\n"+
			"disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
			e.path("containerd"), e.path("run", "containerd"), e.path("containerd.sock")),
	}
	for name, text := range files {
		if err := os.WriteFile(e.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := run("ip", "netns", "add", e.name); err != nil {
		return err
	}
	if err := run("nsenter", "--net="+e.NetNS(), "ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	return e.Launch()
}

// Launch starts an engine that was stopped with Kill or Shutdown.
func (e *Engine) Launch() error {
	// dockerd would use the host's containerd if there is one, and the two
	// engines would meet in it.
	if e.containerd == nil {
		p, err := e.spawn("containerd", "--config", e.path("containerd.toml"))
		if err != nil {
			return err
		}
		e.containerd = p
	}
	args := []string{
		"--config-file", e.path("daemon.json"),
		"--data-root", e.path("data"),
		"--exec-root", e.path("run"),
		"--pidfile", e.path("pid"),
		"--containerd", e.path("containerd.sock"),
		"--host", e.Host(),
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/" + e.name,
		"--log-level", "warn",
		fmt.Sprintf("--icc=%t", e.opts.ICC),
		fmt.Sprintf("--live-restore=%t", e.opts.LiveRestore),
	}
	// Left by one that was killed; dockerd would not start if another process
	// has the number by now.
	os.Remove(e.path("pid"))
	p, err := e.spawn("dockerd", append(args, e.opts.Args...)...)
	if err != nil {
		return err
	}
	e.dockerd = p
	return e.ready()
}

// ready waits until the engine answers.
func (e *Engine) ready() error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.path("docker.sock"))
		},
	}}
	return until(time.Minute, func() error {
		for _, p := range []*process{e.containerd, e.dockerd} {
			if p.exited() {
				return permanent(fmt.Errorf("%s ended: %v\n%s", p.name, p.err, tail(e.path(p.name+".log"), 0)))
			}
		}
		res, err := client.Get("http://engine/_ping")
		if err != nil {
			return fmt.Errorf("asking dockerd: %w", err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("asking dockerd: %s", res.Status)
		}
		return nil
	})
}

// Restart stops the engine as its service manager would, and starts it again.
func (e *Engine) Restart() error {
	if err := e.Shutdown(); err != nil {
		return err
	}
	return e.Launch()
}

// Shutdown stops dockerd as its service manager would; Launch starts it again.
func (e *Engine) Shutdown() error { return e.dockerd.end(syscall.SIGTERM, 30*time.Second) }

// Kill kills dockerd, and leaves what it started; Launch starts it again.
func (e *Engine) Kill() error { return e.dockerd.end(syscall.SIGKILL, 10*time.Second) }

// stop stops the engine and removes everything that was its own.
func (e *Engine) stop() error {
	killMembers(e.name, true) // the containers first: dockerd would wait for each
	var errs []error
	for _, p := range []*process{e.dockerd, e.containerd} {
		if p != nil && p.end(syscall.SIGTERM, 10*time.Second) != nil {
			errs = append(errs, p.end(syscall.SIGKILL, 10*time.Second))
		}
	}
	return errors.Join(append(errs, sweep(e.name))...)
}

// Dir is the engine's folder; it goes with the engine.
func (e *Engine) Dir() string { return folder(e.name) }

func (e *Engine) path(elem ...string) string {
	return filepath.Join(append([]string{e.Dir()}, elem...)...)
}

// Host is the engine's address, for DOCKER_HOST.
func (e *Engine) Host() string { return "unix://" + e.path("docker.sock") }

// NetNS is the path of the network namespace that is the engine's host: its
// bridges and its firewall are there. A program that acts on them, as an agent
// does, is started with Command.
func (e *Engine) NetNS() string { return filepath.Join(netnsDir, e.name) }

// Command is a program that runs in the engine's network namespace, and whose
// docker, if it uses one, talks to the engine.
func (e *Engine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + e.NetNS(), "--", name}, args...)...)
	cmd.Env = e.Env()
	return cmd
}

// Env is the test's environment, with the engine as the one that docker finds.
func (e *Engine) Env() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "DOCKER_") {
			env = append(env, kv)
		}
	}
	return append(env, "DOCKER_HOST="+e.Host(), "DOCKER_CONFIG="+e.path("config"))
}

// logOnFailure shows, if the test fails, what the engine logged meanwhile.
func (e *Engine) logOnFailure(t testing.TB) {
	log := e.path("dockerd.log")
	var from int64
	if fi, err := os.Stat(log); err == nil {
		from = fi.Size()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the engine's log:\n%s", tail(log, from))
		}
	})
}

// tail is what was written to a log from an offset on, at most its last 8 KiB.
func tail(path string, from int64) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	from = min(from, int64(len(text)))
	if from = max(from, int64(len(text))-8<<10); from < 0 {
		from = 0
	}
	return string(text[from:])
}
