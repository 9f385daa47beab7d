package agent

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/docker"
)

// The engine's number of a process may be anybody's.
func TestNamespaceOfAStranger(t *testing.T) {
	ctr := docker.Container{Name: "db", ID: id("1"), PID: os.Getpid()}
	ns, err := openNamespace(ctr)
	if err == nil {
		ns.Close()
		t.Fatal("a link would be made in the namespace of this test")
	}
	if !strings.Contains(err.Error(), `container "db"`) || !strings.Contains(err.Error(), "on this host") {
		t.Errorf("it says %q", err)
	}
	ctr.PID = 1 << 30 // nobody's
	if _, err := openNamespace(ctr); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a process: %v", err)
	}
}
