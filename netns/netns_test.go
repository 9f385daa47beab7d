//go:build linux

package netns_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// here returns the inode of the calling thread's namespace.
func here(t testing.TB) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

// entries counts what is in a directory of /proc/self.
func entries(t testing.TB, name string) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestOpenTellsWhatIsNoNamespace(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for _, test := range []struct {
		path, text string
		is         error
	}{
		// What a process in a foreign mount namespace sees at an engine's SandboxKey.
		{empty, `opening namespace "` + empty + `": not a network namespace (is the engine's mount namespace another one?)`, netns.ErrNotNamespace},
		{fifo, `opening namespace "` + fifo + `": not a network namespace (is the engine's mount namespace another one?)`, netns.ErrNotNamespace},
		{"/proc/self/ns/uts", `opening namespace "/proc/self/ns/uts": not a network namespace but one of another kind`, netns.ErrNotNamespace},
		{missing, `opening namespace "` + missing + `": no such file or directory`, fs.ErrNotExist},
	} {
		fds := entries(t, "fd")
		n, err := netns.Open(test.path)
		if n != nil || !errors.Is(err, test.is) || err.Error() != test.text {
			t.Errorf("Open(%q) = %v, %v\nwant error %s", test.path, n, err, test.text)
		}
		if now := entries(t, "fd"); now != fds {
			t.Errorf("Open(%q) left %d descriptors open", test.path, now-fds)
		}
	}
}

func TestIDTellsNamespacesApart(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	var again *netns.Namespace
	netnstest.Do(t, a, func() (err error) {
		again, err = netns.Open("/proc/thread-self/ns/net")
		return err
	})
	defer again.Close()
	type id struct{ dev, ino uint64 }
	ids := make([]id, 3)
	for i, n := range []*netns.Namespace{a, b, again} {
		ids[i].dev, ids[i].ino = n.ID()
	}
	if ids[0] != ids[2] {
		t.Errorf("the same namespace has the identities %v and %v", ids[0], ids[2])
	}
	if ids[0] == ids[1] {
		t.Errorf("two namespaces have the identity %v", ids[0])
	}
}

func TestDoEntersAndLeaves(t *testing.T) {
	n := netnstest.New(t)
	_, ino := n.ID()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := here(t)
	netnstest.Do(t, n, func() error {
		if got := here(t); got != ino {
			t.Errorf("fn ran in namespace %d, not in %d", got, ino)
		}
		return nil
	})
	if got := here(t); got != home {
		t.Errorf("the caller is in namespace %d after Do, it was in %d", got, home)
	}
}

func TestDoReturnsTheError(t *testing.T) {
	n := netnstest.New(t)
	want := errors.New("it went wrong")
	if err := n.Do(func() error { return want }); err != want {
		t.Errorf("Do = %v, want fn's error as it is", err)
	}
}

func TestDoPropagatesPanics(t *testing.T) {
	n := netnstest.New(t)
	func() {
		defer func() {
			err, _ := recover().(error)
			var p *netns.PanicError
			if !errors.As(err, &p) || !errors.Is(err, fs.ErrExist) {
				t.Errorf("the caller's panic is %v, want a PanicError that wraps fn's", err)
			} else if !strings.Contains(string(p.Stack), "TestDoPropagatesPanics") {
				t.Errorf("the stack does not name the function that panicked:\n%s", p.Stack)
			}
		}()
		n.Do(func() error { panic(fs.ErrExist) })
		t.Error("Do returned after a panic")
	}()

	exited := true
	var wait sync.WaitGroup
	wait.Go(func() {
		n.Do(func() error { runtime.Goexit(); return nil })
		exited = false
	})
	wait.Wait()
	if !exited {
		t.Error("Do returned after fn ended the goroutine")
	}
}

func TestDoAfterClose(t *testing.T) {
	n := netnstest.New(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	never := func() error { t.Error("fn was called"); return nil }
	if err := n.Do(never); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close = %v, want os.ErrClosed", err)
	}
	if err := n.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close = %v, want os.ErrClosed", err)
	}
	if fd := n.FD(); fd != -1 {
		t.Errorf("FD after Close = %d, want -1", fd)
	}

	var zero netns.Namespace
	if err := zero.Do(never); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("Do of the zero Namespace = %v, want os.ErrInvalid", err)
	}
	if err := zero.Close(); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("Close of the zero Namespace = %v, want os.ErrInvalid", err)
	}
}

// A thread that cannot leave a namespace must not serve other goroutines.
func TestDoEndsTheThreadThatCannotReturn(t *testing.T) {
	n := netnstest.New(t)
	tid := 0
	netnstest.Do(t, n, func() error {
		tid = unix.Gettid()
		// Do's descriptor for the way back is the one of this process's own
		// namespace that was opened last.
		var own unix.Stat_t
		if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
			return err
		}
		last := -1
		for fd := range 1024 {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Dev == own.Dev && st.Ino == own.Ino {
				last = fd
			}
		}
		// Something else in its place, for Do to close without harm.
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(null)
		return unix.Dup3(null, last, unix.O_CLOEXEC)
	})
	netnstest.Until(t, "the thread to end", func() bool {
		return errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH)
	})
}

// The namespace of the first thread is what /proc/PID/ns/net shows of a
// process. It never changes.
func TestDoLeavesTheFirstThreadAlone(t *testing.T) {
	n := netnstest.New(t)
	var wait sync.WaitGroup
	for range 64 {
		wait.Go(func() {
			for range 20 {
				n.Do(func() error {
					if unix.Gettid() == unix.Getpid() {
						t.Error("fn runs on the first thread")
					}
					return nil
				})
			}
		})
	}
	wait.Wait()
}

func TestDoLeaksNothing(t *testing.T) {
	n := netnstest.New(t)
	busy := func() {
		var wait sync.WaitGroup
		for range 16 {
			wait.Go(func() {
				for range 250 {
					if err := n.Do(func() error { return nil }); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wait.Wait()
	}
	busy() // the runtime has its threads now
	threads, fds := entries(t, "task"), entries(t, "fd")
	busy()
	if now := entries(t, "fd"); now > fds {
		t.Errorf("%d descriptors after 4,000 calls, %d before", now, fds)
	}
	// The runtime may want some more for its own reasons.
	if now := entries(t, "task"); now > threads+100 {
		t.Errorf("%d threads after 4,000 calls, %d before", now, threads)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	_, ino := n.ID()
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat(task, &st) == nil && st.Ino == ino {
			t.Errorf("%s is still the namespace that was left", task)
		}
	}
}

// A namespace ends when the last thing in it is closed: what shows it to the
// other namespace is that the cable between them is gone.
func TestNamespaceIsGoneAfterClose(t *testing.T) {
	watcher, n := netnstest.New(t), netnstest.New(t)
	netnstest.Connect(t, "cable", watcher, netip.MustParsePrefix("10.77.0.1/24"), n, netip.MustParsePrefix("10.77.0.2/24"))
	cable := func() bool {
		found := false
		netnstest.Do(t, watcher, func() error {
			_, err := os.ReadFile("/proc/thread-self/net/dev_snmp6/cable")
			found = err == nil
			return nil
		})
		return found
	}
	if !cable() {
		t.Fatal("there is no cable to begin with")
	}
	fd, err := n.ListenTCP(netip.MustParseAddrPort("10.77.0.2:80"))
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	if !cable() {
		t.Error("the namespace is gone although a socket is open in it")
	}
	unix.Close(fd)
	netnstest.Until(t, "the namespace to be gone", func() bool { return !cable() })
}

func BenchmarkDo(b *testing.B) {
	n := netnstest.New(b)
	for b.Loop() {
		if err := n.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
