package enginetest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// Need is something a test cannot do without. Its error says what is missing
// here, and what helps.
type Need func() error

// Require skips the test, saying why, where a need is not met. Under CI=true
// that is a failure: there, everything is meant to run.
func Require(t testing.TB, needs ...Need) {
	t.Helper()
	for _, need := range needs {
		err := need()
		switch {
		case err == nil:
		case os.Getenv("CI") == "true":
			t.Fatalf("CI=true, and this cannot be tested here: %v", err)
		default:
			t.Skipf("CANNOT BE TESTED HERE: %v", err)
		}
	}
}

// Root is the need for root with the capabilities that the agent has, which a
// root inside a container may not be.
func Root() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("%s is not Linux", runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return errors.New("this needs root: run the tests with sudo")
	}
	const netAdmin, sysAdmin = 1 << 12, 1 << 21 // linux/capability.h
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(status), "\nCapEff:")
	mask, _, _ := strings.Cut(rest, "\n")
	caps, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	if err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	if caps&netAdmin == 0 || caps&sysAdmin == 0 {
		return errors.New("this root may not make network namespaces: it lacks CAP_NET_ADMIN or CAP_SYS_ADMIN")
	}
	return nil
}

// Dockerd is the need for the programs of a Docker Engine.
func Dockerd() error {
	return Programs("dockerd", "containerd", "runc", "docker", "iptables", "ip", "nsenter", "umount")()
}

// Programs is the need for programs.
func Programs(names ...string) Need {
	return func() error {
		for _, name := range names {
			if _, err := lookPath(name); err != nil {
				return fmt.Errorf("%w: `make test` as root installs it on Debian", err)
			}
		}
		return nil
	}
}
