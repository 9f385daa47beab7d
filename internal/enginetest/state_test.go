package enginetest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// recorder is a test that notes what it is told instead of ending.
type recorder struct {
	testing.TB
	verdict  string
	cleanups []func()
}

func (r *recorder) Helper()           {}
func (r *recorder) Cleanup(fn func()) { r.cleanups = append(r.cleanups, fn) }
func (r *recorder) Error(args ...any) { r.verdict = "failed: " + fmt.Sprint(args...) }
func (r *recorder) Fatal(args ...any) { r.Error(args...) }
func (r *recorder) Fatalf(format string, args ...any) {
	r.verdict = "failed: " + fmt.Sprintf(format, args...)
}
func (r *recorder) Skipf(format string, args ...any) {
	r.verdict = "skipped: " + fmt.Sprintf(format, args...)
}

func TestRequire(t *testing.T) {
	missing := func() error { return errors.New("no engine: install one") }
	met := func() error { return nil }
	for _, c := range []struct {
		ci, want string
		needs    []Need
	}{
		{"", "", []Need{met}},
		{"true", "", []Need{met, met}},
		{"", "skipped: CANNOT BE TESTED HERE: no engine: install one", []Need{met, missing}},
		{"true", "failed: CI=true, and this cannot be tested here: no engine: install one", []Need{missing}},
	} {
		t.Setenv("CI", c.ci)
		r := &recorder{TB: t}
		Require(r, c.needs...)
		if r.verdict != c.want {
			t.Errorf("CI=%q: %q, want %q", c.ci, r.verdict, c.want)
		}
	}
	err := Programs("sh", "no-such-program")()
	if err == nil || !strings.Contains(err.Error(), `"no-such-program"`) || !strings.Contains(err.Error(), "make test") {
		t.Errorf("the need for a missing program says %v, want its name and what helps", err)
	}
}

func TestLeavesNothing(t *testing.T) {
	e := suite.Engine(t)
	ref := e.Image(t, "busybox")
	for what, c := range map[string]struct{ leave, tidy []string }{
		"container": {[]string{"docker", "create", "--name=left", ref}, []string{"docker", "rm", "left"}},
		"network":   {[]string{"docker", "network", "create", "left"}, []string{"docker", "network", "rm", "left"}},
		"volume":    {[]string{"docker", "volume", "create", "left"}, []string{"docker", "volume", "rm", "left"}},
		"iptables":  {[]string{"iptables", "-N", "left"}, []string{"iptables", "-X", "left"}},
		"link":      {[]string{"ip", "link", "add", "left", "type", "veth", "peer", "name", "left2"}, []string{"ip", "link", "del", "left"}},
		"rule":      {[]string{"ip", "rule", "add", "fwmark", "7", "lookup", "7"}, []string{"ip", "rule", "del", "fwmark", "7"}},
	} {
		t.Run(what, func(t *testing.T) {
			do := func(args []string) {
				t.Helper()
				if out, err := e.Command(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v: %s", args, err, out)
				}
			}
			before, err := e.State()
			if err != nil {
				t.Fatal(err)
			}
			do(c.leave)
			after, err := e.State()
			if err != nil {
				t.Fatal(err)
			}
			if got := diff(before, after); !strings.Contains("\n"+got, "\n+ "+what+" ") {
				t.Errorf("the state differs by %q, want the %s that was left", got, what)
			}
			do(c.tidy)

			r := &recorder{TB: t}
			e.LeavesNothing(r)
			e.MustDocker(t, "run", "--rm", ref, "true")
			for _, fn := range r.cleanups {
				fn()
			}
			if len(r.cleanups) != 1 || r.verdict != "" {
				t.Errorf("after a test that left nothing: %q", r.verdict)
			}
		})
	}
}

func TestFactsIgnoreCountersAndComments(t *testing.T) {
	const text = "# Generated on Monday\n*filter\n:INPUT ACCEPT [12:3456]\n\n-A INPUT -j DROP\n"
	if got, want := fmt.Sprintf("%q", facts(text)), `["*filter" ":INPUT ACCEPT" "-A INPUT -j DROP"]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPoll(t *testing.T) {
	calls := 0
	Poll(t, time.Minute, func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	r := &recorder{TB: t}
	Poll(r, 0, func() error { return errors.New("never") })
	if want := "failed: still after 0s: never"; r.verdict != want {
		t.Errorf("got %q, want %q", r.verdict, want)
	}
	err := errors.New("for good")
	if got := until(time.Minute, func() error { return permanent(err) }); got != err {
		t.Errorf("got %v, want the permanent error itself", got)
	}
}

func TestFDs(t *testing.T) {
	before, err := FDs(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	during, _ := FDs(os.Getpid())
	f.Close()
	after, _ := FDs(os.Getpid())
	if got := diff(strings.Join(before, "\n"), strings.Join(during, "\n")); got != "+ /etc/passwd" {
		t.Errorf("an open file changes the descriptors by %q", got)
	}
	if got := diff(strings.Join(before, "\n"), strings.Join(after, "\n")); got != "" {
		t.Errorf("a closed file changes the descriptors by %q", got)
	}
}
