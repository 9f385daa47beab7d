package enginetest

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Docker runs the docker client and returns what it printed, without the last
// newline. The error wraps an *exec.ExitError, and says what the client said.
func (e *Engine) Docker(args ...string) (string, error) {
	cmd := exec.Command(cmp.Or(e.opts.CLI, "docker"), args...)
	cmd.Env = e.Env()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), err
}

// MustDocker is Docker for what must not fail.
func (e *Engine) MustDocker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := e.Docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Image gives the engine the image of that name of images/build.sh, if it
// does not have it yet, and returns its reference.
func (e *Engine) Image(t testing.TB, name string) string {
	t.Helper()
	e.images.Lock()
	defer e.images.Unlock()
	if ref, ok := e.images.refs[name]; ok {
		return ref
	}
	Require(t, Programs("apt-get", "dpkg-deb"))
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(root, "images", "build.sh"), name)
	cmd.Env = append(e.Env(), "DOCKER="+cmp.Or(e.opts.CLI, "docker"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("making the image %s: %v: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	ref := strings.TrimSpace(string(out))
	if e.images.refs == nil {
		e.images.refs = map[string]string{}
	}
	e.images.refs[name] = ref
	return ref
}

// moduleRoot is the folder of go.mod, at or above the test's own.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod at or above the working folder")
		}
		dir = up
	}
}
