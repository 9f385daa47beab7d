//go:build linux

// Package netnstest makes network namespaces for tests: empty ones that nobody
// else knows, and cables between them. It is for tests only, and touches
// nothing outside the namespaces it made.
package netnstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
)

// NeedRoot skips a test that cannot run without root. With CI=true in the
// environment the test fails instead: there, nothing may be skipped.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("NOT RUN: making network namespaces needs root")
	}
	t.Skip("SKIPPED: making network namespaces needs root")
}

// New makes a namespace that has a loopback interface and nothing else. It is
// closed when the test ends, and gone then, unless the test keeps it alive.
func New(t testing.TB) *netns.Namespace {
	t.Helper()
	NeedRoot(t)
	n, err := unshared()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("closing a test's namespace: %v", err)
		}
	})
	Do(t, n, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// unshared opens the fresh namespace of a thread that ends at once.
func unshared() (*netns.Namespace, error) {
	type result struct {
		n   *netns.Namespace
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread cannot end. Sit on it for a moment.
			defer runtime.UnlockOSThread()
			n, err := unshared()
			done <- result{n, err}
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("making a namespace: %w", err)}
			return
		}
		n, err := netns.Open("/proc/thread-self/ns/net")
		done <- result{n, err}
	}()
	r := <-done
	return r.n, r.err
}

// Do calls fn in n and fails the test if fn fails.
func Do(t testing.TB, n *netns.Namespace, fn func() error) {
	t.Helper()
	if err := n.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// Connect lays a cable from namespace a to namespace b. Each end is an
// interface called name with the given address, and up.
func Connect(t testing.TB, name string, a *netns.Namespace, aAddr netip.Prefix, b *netns.Namespace, bAddr netip.Prefix) {
	t.Helper()
	Do(t, a, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: name, TxQLen: -1},
			PeerName:      name,
			PeerNamespace: netlink.NsFd(b.FD()),
		})
	})
	Address(t, a, name, aAddr)
	Address(t, b, name, bAddr)
}

// Address gives an interface of n an address, and sets it up.
func Address(t testing.TB, n *netns.Namespace, name string, addr netip.Prefix) {
	t.Helper()
	Do(t, n, func() error {
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding interface %q: %w", name, err)
		}
		mask := net.CIDRMask(addr.Bits(), addr.Addr().BitLen())
		ip := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: mask}}
		if addr.Addr().Is6() {
			ip.Flags = unix.IFA_F_NODAD // usable at once, not a second later
		}
		if err := netlink.AddrAdd(dev, ip); err != nil {
			return fmt.Errorf("adding address %v to %q: %w", addr, name, err)
		}
		return netlink.LinkSetUp(dev)
	})
}

// Until polls cond until it holds, and fails the test if it does not within
// ten seconds.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
