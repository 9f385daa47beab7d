package enginetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var suite Suite

func TestMain(m *testing.M) { suite.Main(m) }

// clients are the docker clients of this machine: the first in PATH, and
// Debian's, which is of the engine's own version.
func clients() []string {
	clients := []string{"docker"}
	if first, err := exec.LookPath("docker"); err == nil && first != "/usr/bin/docker" {
		if _, err := os.Stat("/usr/bin/docker"); err == nil {
			clients = append(clients, "/usr/bin/docker")
		}
	}
	return clients
}

func TestEngineIsItsOwn(t *testing.T) {
	for _, cli := range clients() {
		t.Run(cli, func(t *testing.T) {
			e := Start(t, Options{CLI: cli})
			info := e.MustDocker(t, "info", "--format", "{{.DockerRootDir}} {{.CgroupDriver}} {{.Containers}}")
			if want := e.path("data") + " cgroupfs 0"; info != want {
				t.Errorf("docker info says %q, want %q", info, want)
			}
			icc := e.MustDocker(t, "network", "inspect", "--format", `{{index .Options "com.docker.network.bridge.enable_icc"}}`, "bridge")
			if icc != "false" {
				t.Errorf("enable_icc of the default bridge is %q, want false", icc)
			}
			out, err := e.Command(t.Context(), "ip", "-brief", "link", "show", "docker0").CombinedOutput()
			if err != nil {
				t.Errorf("the bridge is not in %s: %v: %s", e.NetNS(), err, out)
			}
		})
	}
}

func TestDockerSaysWhatFailed(t *testing.T) {
	e := suite.Engine(t)
	_, err := e.Docker("run", "--rm", e.Image(t, "busybox"), "sh", "-c", "echo why >&2; exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasSuffix(err.Error(), "exit status 3: why") {
		t.Errorf("docker run failed with %v, want an *exec.ExitError of status 3 that ends with what it said", err)
	}
}

// TestImages runs what each image is for, between two containers.
func TestImages(t *testing.T) {
	e := Start(t, Options{ICC: true})
	for _, c := range []struct {
		image  string
		run    []string // options of the server
		client []string
		want   string
	}{
		{"redis", nil, []string{"redis-cli", "-h", "ADDR", "ping"}, "PONG"},
		{"redis", nil, []string{"redis-benchmark", "-h", "ADDR", "-n", "100", "-q", "-t", "get"}, "GET:"},
		{"postgres", []string{"-e", "POSTGRES_PASSWORD=secret"},
			[]string{"psql", "-Atc", "select count(*) from pg_stat_activity where client_addr is not null", "postgresql://postgres:secret@ADDR"}, "1"},
		{"postgres", []string{"-e", "POSTGRES_PASSWORD=secret"},
			[]string{"pgbench", "-i", "-q", "postgresql://postgres:secret@ADDR"}, ""},
		{"nginx", nil, []string{"wget", "-qO-", "http://ADDR/"}, "hello from nginx"},
		{"dns", nil, []string{"dig", "@ADDR", "a.test", "+short"}, "192.0.2.1"},
		{"dns", nil, []string{"dig", "@ADDR", "big.test", "TXT", "+short", "+noedns"}, strings.Repeat("4", 200)},
		{"iperf3", nil, []string{"iperf3", "-c", "ADDR", "-n", "1M"}, "iperf Done."},
	} {
		t.Run(c.image+"/"+c.client[0], func(t *testing.T) {
			ref := e.Image(t, c.image)
			id := e.MustDocker(t, append(append([]string{"run", "-d"}, c.run...), ref)...)
			defer e.MustDocker(t, "rm", "-f", id)
			addr := e.MustDocker(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", id)
			args := []string{"run", "--rm", ref}
			for _, arg := range c.client {
				args = append(args, strings.ReplaceAll(arg, "ADDR", addr))
			}
			Poll(t, 20*time.Second, func() error {
				out, err := e.Docker(args...)
				if err == nil && !strings.Contains(out, c.want) {
					err = fmt.Errorf("the client printed %q, want %q in it", out, c.want)
				}
				return err
			})
		})
	}
}

// TestPostgresTrustsNeighboursNot is what the links' tests rely on: from
// another address, the password is asked for, and the address is logged.
func TestPostgresTrustsNeighboursNot(t *testing.T) {
	e := Start(t, Options{ICC: true})
	ref := e.Image(t, "postgres")
	e.MustDocker(t, "run", "-d", "--name", "db", "-e", "POSTGRES_PASSWORD=secret", ref)
	addr := e.MustDocker(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db")
	Poll(t, 20*time.Second, func() error {
		_, err := e.Docker("exec", "db", "psql", "-h", addr, "-c", "select") // samehost
		return err
	})
	e.MustDocker(t, "exec", "db", "psql", "-h", "127.0.0.1", "-c", "select")
	_, err := e.Docker("run", "--rm", "--name", "other", ref, "psql", "-w", "-h", addr, "-U", "postgres")
	if err == nil || !strings.Contains(err.Error(), "no password supplied") {
		t.Errorf("psql from another container without a password: %v, want it refused", err)
	}
	out, err := e.Command(t.Context(), "sh", "-c", "docker logs db 2>&1").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		addr + " LOG:  connection authorized",
		"172.17.0.3 LOG:  connection received: host=172.17.0.3",
	} {
		if !strings.Contains(string(out), line) {
			t.Errorf("the server's log lacks %q:\n%s", line, out)
		}
	}
}

func TestRestart(t *testing.T) {
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprintf("live-restore=%t", live), func(t *testing.T) {
			e := Start(t, Options{LiveRestore: live})
			id := e.MustDocker(t, "run", "-d", "--init", e.Image(t, "busybox"), "sleep", "1000")
			for what, restart := range map[string]func() error{
				"restart": e.Restart,
				"kill":    func() error { return errors.Join(e.Kill(), e.Launch()) },
			} {
				if err := restart(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if running := e.MustDocker(t, "inspect", "-f", "{{.State.Running}}", id); running != fmt.Sprint(live) {
					t.Errorf("after %s the container's .State.Running is %s, want %t", what, running, live)
				}
			}
		})
	}
}

// TestStopLeavesNothing stops an engine in its worst state: with containers
// that restart, ignore signals, share its network, and publish ports.
func TestStopLeavesNothing(t *testing.T) {
	Require(t, Root, Dockerd)
	e, err := start(Options{})
	if err != nil {
		t.Fatal(err)
	}
	populate(t, e)
	sockets := shimSockets(e.name)
	if err := e.stop(); err != nil {
		t.Error(err)
	}
	assertGone(t, e.name, sockets)
}

// TestSweepAfterKill kills a test that has an engine, and then dockerd and
// containerd too, so that nothing has tidied up.
func TestSweepAfterKill(t *testing.T) {
	const key = "LINKRUN_TEST_TO_BE_KILLED"
	if file := os.Getenv(key); file != "" {
		e, err := start(Options{})
		if err != nil {
			t.Fatal(err)
		}
		populate(t, e)
		if err := os.WriteFile(file, []byte(e.name), 0o600); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	Require(t, Root, Dockerd)
	file := filepath.Join(t.TempDir(), "name")
	cmd := exec.Command(os.Args[0], "-test.run=^TestSweepAfterKill$")
	cmd.Env = append(os.Environ(), key+"="+file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var name []byte
	Poll(t, time.Minute, func() (err error) {
		name, err = os.ReadFile(file)
		if err == nil && len(name) == 0 {
			err = errors.New("no name yet")
		}
		return err
	})
	cmd.Process.Kill()
	cmd.Wait()
	if !strings.HasPrefix(string(name), prefix) || inUse(string(name)) {
		t.Fatalf("the engine %q counts as in use, but its test is dead", name)
	}
	sockets := shimSockets(string(name))
	if err := sweepAll(); err != nil {
		t.Error(err)
	}
	assertGone(t, string(name), sockets)
}

func populate(t *testing.T, e *Engine) {
	t.Helper()
	ref := e.Image(t, "busybox")
	for _, opts := range [][]string{
		{"--restart=always"},
		{"--network=host"},
		{"--publish=8080:80", "--pid=host"},
		{"--network=none", "--tmpfs=/scratch"},
	} {
		e.MustDocker(t, append(append([]string{"run", "-d"}, opts...), ref, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")...)
	}
}

func assertGone(t *testing.T, name string, sockets []string) {
	t.Helper()
	if len(sockets) != 4 {
		t.Errorf("the engine had the shim sockets %q, want one for each of 4 containers", sockets)
	}
	for _, path := range append(sockets, folder(name), filepath.Join(netnsDir, name)) {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	if left := killMembers(name, false); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if left := mountsBelow(folder(name)); len(left) > 0 {
		t.Errorf("mounts %v are left", left)
	}
	if left := controlGroups(name); len(left) > 0 {
		t.Errorf("control groups %v are left", left)
	}
}
