//go:build linux

package netns_test

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

func newUDP() (int, error) {
	return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

func newPool(t testing.TB, make func() (int, error)) *netns.Pool {
	t.Helper()
	p := netnstest.New(t).NewPool(make)
	t.Cleanup(func() { p.Close() })
	return p
}

func TestPoolSocketsAreOfTheNamespace(t *testing.T) {
	n := netnstest.New(t)
	_, ino := n.ID()
	p := n.NewPool(func() (int, error) {
		if here(t) != ino {
			t.Error("a socket is made elsewhere")
		}
		return newUDP()
	})
	defer p.Close()
	fd, err := p.Get()
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

func TestPoolGetAtOnce(t *testing.T) {
	p := newPool(t, newUDP)
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
		seen = make(map[int]bool)
	)
	for range 32 {
		wait.Go(func() {
			for range 50 {
				fd, err := p.Get()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[fd] {
					t.Errorf("descriptor %d was given to two callers", fd)
				}
				seen[fd] = true
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	for fd := range seen {
		unix.Close(fd)
	}
	if len(seen) != 32*50 {
		t.Errorf("got %d sockets, want %d", len(seen), 32*50)
	}
	if idle := p.Idle(); idle > netns.PoolMost {
		t.Errorf("%d sockets are idle, the bound is %d", idle, netns.PoolMost)
	}
}

func TestPoolFollowsDemand(t *testing.T) {
	fds := entries(t, "fd")
	p := newPool(t, newUDP)
	if now := entries(t, "fd"); now != fds+1 { // the namespace
		t.Errorf("a new pool has %d descriptors", now-fds-1)
	}

	// Demand that is faster than the owner, until there is a full stock.
	netnstest.Until(t, "a full stock", func() bool {
		for p.Idle() > 0 {
			fd, err := p.Get()
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
		}
		fd, err := p.Get()
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		return p.Idle() > netns.PoolMost/2
	})

	// Without demand, nothing: neither sockets nor descriptors. (A batch asked
	// for above may still come.)
	netnstest.Until(t, "the stock to be gone", func() bool {
		return !p.Rest() && p.Idle() == 0 && entries(t, "fd") == fds+1
	})

	// With little demand, little.
	fd, err := p.Get()
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if !p.Rest() {
		t.Error("there is nothing left to look after, right after a Get")
	}
	if idle := p.Idle(); idle > 8 {
		t.Errorf("%d sockets are in stock after a single Get", idle)
	}
}

func TestPoolErrors(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	p := newPool(t, func() (int, error) {
		if broken.Load() {
			return -1, unix.EMFILE
		}
		return newUDP()
	})
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if fd, err := p.Get(); fd != -1 || !errors.Is(err, unix.EMFILE) {
				t.Errorf("Get = %d, %v; want EMFILE", fd, err)
			}
		})
	}
	wait.Wait()
	broken.Store(false)
	fd, err := p.Get()
	if err != nil {
		t.Fatalf("Get when it works again: %v", err)
	}
	unix.Close(fd)
}

func TestPoolClose(t *testing.T) {
	goroutines, fds := runtime.NumGoroutine(), entries(t, "fd")
	n := netnstest.New(t)
	entered, goOn := make(chan bool, 1), make(chan bool)
	p := n.NewPool(func() (int, error) {
		select {
		case entered <- true:
			<-goOn
		default:
		}
		return newUDP()
	})
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			if fd, err := p.Get(); fd != -1 || !errors.Is(err, os.ErrClosed) {
				t.Errorf("Get during Close = %d, %v; want os.ErrClosed", fd, err)
			}
		})
	}
	<-entered // a batch is being made, and everybody is going to be told
	wait.Go(func() { p.Close() })
	netnstest.Until(t, "Close to take effect", func() bool {
		fd, err := p.Get()
		if err == nil {
			unix.Close(fd)
		}
		return errors.Is(err, os.ErrClosed)
	})
	close(goOn)
	wait.Wait()
	if idle := p.Idle(); idle != 0 {
		t.Errorf("the batch left %d sockets behind", idle)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	n.Close()
	if now := entries(t, "fd"); now != fds {
		t.Errorf("%d descriptors are open, %d were before", now, fds)
	}
	netnstest.Until(t, "the owner to end", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestSourceSocketsAtOnce(t *testing.T) {
	n, _ := pair(t)
	serveAddrs(t, n, "0.0.0.0:80")
	s := source(t, prepare(t, n), recipientAddr, sourceAddr)
	var wait sync.WaitGroup
	for range 32 {
		wait.Go(func() {
			for range 20 {
				fd, to, err := s.Socket(80)
				if err != nil {
					t.Error(err)
					return
				}
				checkFlags(t, fd)
				c, err := connect(t, fd, to)
				if err != nil {
					t.Error(err)
					return
				}
				c.Close()
			}
		})
	}
	wait.Wait()
}

func BenchmarkPoolGet(b *testing.B) {
	for _, bench := range []struct {
		name string
		get  func(*netns.Source) (int, netip.AddrPort, error)
	}{
		{"tcp", func(s *netns.Source) (int, netip.AddrPort, error) { return s.Socket(80) }},
		{"udp", func(s *netns.Source) (int, netip.AddrPort, error) { return s.PacketSocket(80) }},
	} {
		n, _ := pair(b)
		s := source(b, prepare(b, n), recipientAddr, sourceAddr)
		take := func(b *testing.B) {
			fd, _, err := bench.get(s)
			if err != nil {
				b.Fatal(err)
			}
			unix.Close(fd)
		}
		b.Run(bench.name, func(b *testing.B) {
			for b.Loop() {
				take(b)
			}
		})
		b.Run(bench.name+"/32", func(b *testing.B) {
			b.SetParallelism(32 / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					take(b)
				}
			})
		})
	}
}
