// Package packaging_test holds what users install to what it says: the unit,
// the installer, and the agent's image.
package packaging_test

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
)

var suite enginetest.Suite

func TestMain(m *testing.M) { suite.Main(m) }

// TestImage builds the Dockerfile with every docker client of the machine:
// Debian's is older than the one that users install from Docker's archive.
func TestImage(t *testing.T) {
	enginetest.Require(t, enginetest.Root, enginetest.Dockerd)
	dir := tree(t, "Dockerfile", ".dockerignore")
	write(t, filepath.Join(dir, "secret"), "not for the image")
	if err := os.Mkdir(filepath.Join(dir, "bin", "link"), 0o755); err != nil { // as `make image` does
		t.Fatal(err)
	}
	for _, client := range clients() {
		t.Run(client, func(t *testing.T) {
			e := enginetest.Start(t, enginetest.Options{CLI: client})
			id := e.MustDocker(t, "build", "--quiet", dir)

			if user := e.MustDocker(t, "image", "inspect", "-f", "{{.Config.User}}", id); user != "65534:65534" {
				t.Errorf("it runs as %q, want nobody", user)
			}
			if out := e.MustDocker(t, "run", "--rm", id, "version"); !strings.HasPrefix(out, "ambassador ") {
				t.Errorf("`version` printed %q", out)
			}
			if _, err := e.Docker("run", "--rm", id, "serve"); err == nil || !strings.Contains(err.Error(), "needs root") {
				t.Errorf("`serve` as nobody: %v, want that it needs root", err)
			}
			if _, err := e.Docker("run", "--rm", id); err == nil || !strings.Contains(err.Error(), "there is no variable of a link") {
				t.Errorf("without a command: %v, want what `env` says without a link", err)
			}
			if _, err := e.Docker("run", "--rm", "--entrypoint=/bin/sh", id); err == nil || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("a shell: %v, want that there is none", err)
			}
			if got, want := files(t, e, id), []string{"ambassador", "linkrun", "run/", "run/link/"}; !slices.Equal(got, want) {
				t.Errorf("it consists of %q, want %q", got, want)
			}
		})
	}
}

// files lists the files of an image.
func files(t *testing.T, e *enginetest.Engine, image string) (names []string) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "image.tar")
	e.MustDocker(t, "save", "-o", archive, image)
	for name, content := range entries(t, archive, nil) {
		if !strings.HasSuffix(name, "layer.tar") && !strings.HasPrefix(name, "blobs/") {
			continue
		}
		for name := range entries(t, "", content) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// entries reads a tar file, or one inside another. What is not a tar file has
// no entries.
func entries(t *testing.T, path string, content []byte) map[string][]byte {
	t.Helper()
	if path != "" {
		var err error
		if content, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	found := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := r.Next()
		if err != nil {
			return found
		}
		if found[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStatic: linkrun is mounted into containers that have no libraries.
func TestStatic(t *testing.T) {
	bin := suite.Binaries(t)
	for _, path := range []string{bin.Linkrun, bin.Ambassador} {
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s wants a dynamic linker", path)
			}
		}
		f.Close()
	}
}

func TestInstall(t *testing.T) {
	dir := tree(t, "packaging/install.sh", "packaging/ambassador.service")
	dest := t.TempDir()
	cmd := exec.Command("bash", filepath.Join(dir, "packaging/install.sh"), "/opt/linkrun")
	cmd.Env = append(os.Environ(), "DESTDIR="+dest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("installing: %v\n%s", err, out)
	}
	var got []string
	err := fs.WalkDir(os.DirFS(dest), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			fi, _ := d.Info()
			got = append(got, fmt.Sprintf("%v %s", fi.Mode(), path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"-rwxr-xr-x opt/linkrun/bin/ambassador",
		"-rwxr-xr-x opt/linkrun/bin/linkrun",
		"Lrwxrwxrwx opt/linkrun/lib/docker/cli-plugins/docker-linkrun",
		"-rw-r--r-- opt/linkrun/lib/systemd/system/ambassador.service",
	}
	if !slices.Equal(got, want) {
		t.Errorf("it installed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if to, err := os.Readlink(filepath.Join(dest, "opt/linkrun/lib/docker/cli-plugins/docker-linkrun")); to != "/opt/linkrun/bin/linkrun" {
		t.Errorf("the plugin points to %q (%v)", to, err)
	}
	unit := read(t, filepath.Join(dest, "opt/linkrun/lib/systemd/system/ambassador.service"))
	if !strings.Contains(unit, "\nExecStart=/opt/linkrun/bin/ambassador serve $AMBASSADOR_FLAGS\n") {
		t.Errorf("the unit starts something else:\n%s", unit)
	}
}

// TestUnitIsValid lets systemd read the unit; it starts nothing.
func TestUnitIsValid(t *testing.T) {
	enginetest.Require(t, enginetest.Programs("systemd-analyze"))
	dir := t.TempDir()
	unit := read(t, "ambassador.service")
	// It checks that the program is there, and knows the units it is ordered by.
	write(t, filepath.Join(dir, "ambassador.service"), strings.ReplaceAll(unit, "/usr/local/bin/ambassador", "/bin/true"))
	write(t, filepath.Join(dir, "docker.service"), "[Service]\nExecStart=/bin/true\n")
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, "ambassador.service"))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// What is kept is where it is looked for without the service.
func TestUnitKeepsPermissions(t *testing.T) {
	run, kept := filepath.Join("/run", setting(t, "RuntimeDirectory")), filepath.Join("/var/lib", setting(t, "StateDirectory"))
	if run != control.DefaultDir || kept != control.StateDir(run) {
		t.Errorf("the unit has %s and %s, want %s and %s", run, kept, control.DefaultDir, control.StateDir(control.DefaultDir))
	}
}

// TestUnitSuffices runs the ambassador with no more capabilities than the unit
// leaves it, as a host that others can call: a link over it to a source that
// has others, and what keeps the bridge closed, with the programs of either
// backend.
func TestUnitSuffices(t *testing.T) {
	e := suite.Engine(t)
	enginetest.Require(t, enginetest.Programs("setpriv"))
	busybox := e.Image(t, "busybox")
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			programs := onlyBackend(t, backend)
			e.LeavesNothing(t)
			dir := filepath.Join(t.TempDir(), "ambassador")
			serveAsUnit(t, e, dir, programs)
			for _, c := range [][]string{
				{"--name=source", "--expose=80", busybox, "nc", "-ll", "-p", "80", "-e", "echo", "reached"},
				{"--name=recipient", "--label=ambassador.link.there=source", busybox, "sleep", "1000"},
			} {
				id := e.MustDocker(t, append([]string{"run", "-d", "--init"}, c...)...)
				t.Cleanup(func() { e.MustDocker(t, "rm", "-f", id) })
			}
			reaches := func(address string) {
				t.Helper()
				enginetest.Poll(t, 10*time.Second, func() error {
					out, err := e.Docker("exec", "recipient", "nc", "-w", "3", address, "80")
					if err == nil && out != "reached" {
						err = fmt.Errorf("%s answered %q", address, out)
					}
					return err
				})
			}
			client := control.Dial(dir)
			reaches("127.77.0.2")
			links, err := client.Links(t.Context())
			if err != nil || len(links) != 1 || links[0].State != control.StateUp {
				t.Errorf("the ambassador's links: %+v (%v), want one that is up", links, err)
			}
			icc, err := client.ICC(t.Context())
			if err != nil || len(icc.Missing) > 0 || len(icc.Bridges) != 1 || icc.Bridges[0].Found != "closed" || icc.Bridges[0].Isolated != 2 {
				t.Errorf("found is %+v (%v), want one closed bridge with two isolated ports", icc, err)
			}
			for _, program := range []string{"iptables", "ip6tables"} {
				out, err := e.Command(t.Context(), program+"-"+backend+"-save").Output()
				if err != nil || !bytes.Contains(out, []byte("-j AMBASSADOR-ICC\n")) {
					t.Errorf("%s of %s lacks the rules (%v):\n%s", program, backend, err, out)
				}
			}
			if backend == "legacy" {
				return // what these rules accept, the engine's, which are nftables, refuse
			}
			if err := client.ICCAllow(t.Context(), control.ICCPermission{Recipient: "recipient", Source: "source", Port: "80"}); err != nil {
				t.Error(err)
			}
			reaches(e.MustDocker(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "source"))
		})
	}
}

// onlyBackend is a PATH in which the programs of one backend are the only
// ones.
func onlyBackend(t *testing.T, backend string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(program + "-" + backend + what)
			if err != nil {
				t.Skipf("CANNOT BE TESTED HERE: %v", err)
			}
			for _, name := range []string{program + what, program + "-" + backend + what} {
				if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, program := range []string{"cat", "ip"} {
		if path, err := exec.LookPath(program); err == nil {
			os.Symlink(path, filepath.Join(dir, program))
		}
	}
	return dir
}

// serveAsUnit starts an ambassador with the unit's capabilities. It stops with
// the test, which takes back what it enforced, and fails if that is nothing.
func serveAsUnit(t *testing.T, e *enginetest.Engine, dir, path string) {
	t.Helper()
	set := "--bounding-set=-all"
	for _, name := range strings.Fields(setting(t, "CapabilityBoundingSet")) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	asUnit := func(args ...string) *exec.Cmd {
		args = append([]string{"--no-new-privs", set, "--", "env", "PATH=" + path, suite.Binaries(t).Ambassador}, args...)
		return e.Command(context.Background(), "setpriv", append(args, "--dir", dir)...)
	}
	identity := filepath.Join(dir, "identity")
	if out, err := e.Command(t.Context(), suite.Binaries(t).Ambassador, "ca", "init", "--identity", identity).CombinedOutput(); err != nil {
		t.Fatalf("ca init: %v\n%s", err, out)
	}
	cmd := asUnit("serve", "--listen", "7443")
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		defer time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() }).Stop()
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("the ambassador ended with %v, and logged\n%s", err, &log)
		}
		// What it enforced stands until somebody takes it back.
		if out, err := asUnit("icc", "off").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("removed chain AMBASSADOR-ICC: ")) {
			t.Errorf("icc off: %v\n%s", err, out)
		}
	})
	enginetest.Poll(t, 10*time.Second, func() error {
		s, err := control.Dial(dir).ICC(t.Context())
		if err == nil && len(s.Missing) > 0 {
			err = fmt.Errorf("missing: %q", s.Missing)
		}
		return err
	})
	peers, err := control.Dial(dir).Peers(t.Context())
	if err != nil || peers.Self.ID == "" || len(peers.Self.Listens) != 1 {
		t.Errorf("to other hosts it is %+v (%v)", peers.Self, err)
	}
}

// setting is the value of a setting of the unit.
func setting(t *testing.T, name string) string {
	t.Helper()
	for line := range strings.Lines(read(t, "ambassador.service")) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("the unit does not set %s", name)
	return ""
}

// tree copies files of the repository into a folder, and the programs into
// its bin/, as `make build` does.
func tree(t *testing.T, paths ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "bin"), os.DirFS(suite.Binaries(t).Dir)); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		write(t, filepath.Join(dir, path), read(t, filepath.Join("..", path)))
	}
	return dir
}

// clients are the docker clients of this machine: the first in PATH, and
// Debian's, if that is another.
func clients() []string {
	clients := []string{"docker"}
	if first, _ := exec.LookPath("docker"); first != "/usr/bin/docker" {
		if _, err := os.Stat("/usr/bin/docker"); !errors.Is(err, fs.ErrNotExist) {
			clients = append(clients, "/usr/bin/docker")
		}
	}
	return clients
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
