package doctor

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
)

// newSpace makes a network namespace that nobody else knows. It is gone, with
// the interfaces in it, when it is closed, or when this process ends in
// whatever way.
//
// It is the namespace of a thread that leaves the others for it and ends at
// once. To enter it afterwards is for package netns.
func newSpace() (*netns.Namespace, error) {
	type result struct {
		ns  *netns.Namespace
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread cannot end. While this goroutine has
			// it, another one gets another.
			defer runtime.UnlockOSThread()
			ns, err := newSpace()
			done <- result{ns, err}
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("making a network namespace: %w", err)}
			return
		}
		ns, err := netns.Open("/proc/thread-self/ns/net")
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
}
