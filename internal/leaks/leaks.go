// Package leaks has tests fail that leave goroutines or descriptors behind. It
// counts them, and does not say whose they are.
package leaks

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience bounds the wait for what has yet to end.
const patience = 20 * time.Second

// Check fails the test if, when it is over, there are more goroutines or
// descriptors than now.
func Check(t testing.TB) {
	t.Helper()
	before, fds := runtime.NumGoroutine(), Descriptors(t)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		until(t, "goroutines", before, runtime.NumGoroutine)
		until(t, "descriptors", fds, func() int { return Descriptors(t) })
	})
}

func until(t testing.TB, what string, most int, now func() int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		n := now()
		if n <= most {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d %s, and only %d before the test", n, what, most)
		}
	}
}

// Descriptors counts the open ones, but for those that Go's poller keeps for
// itself, which come and go with its first use.
func Descriptors(t testing.TB) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "anon_inode:") {
			n++
		}
	}
	return n
}
