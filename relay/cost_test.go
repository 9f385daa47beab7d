package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// farBed is an engine with one listener that leads to an address elsewhere.
func farBed(t testing.TB, e *Engine, to string) (l *Link, front string) {
	t.Helper()
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	l = &Link{Source: &testSource{to: netip.MustParseAddrPort(to)}}
	fd, addr := listenFD(t)
	if _, err := e.Serve(fd, func(netip.AddrPort) *Link { return l }); err != nil {
		t.Fatal(err)
	}
	return l, addr.String()
}

// counted has the engine read and write with the calls that /proc/self/io
// counts; it does not count recv and send.
func counted(w *worker, c *calls) {
	c.recv = func(fd int32, p []byte) (int, syscall.Errno) {
		n, err := unix.Read(int(fd), p)
		return max(n, 0), errnoOf(err)
	}
	c.send = func(fd int32, p []byte, _ uint32) (int, syscall.Errno) {
		n, err := unix.Write(int(fd), p)
		return max(n, 0), errnoOf(err)
	}
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

// throughUserSpace are the bytes that this process has read and written.
func throughUserSpace(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, line := range strings.Split(string(text), "\n") {
		name, value, _ := strings.Cut(line, ": ")
		if name == "rchar" || name == "wchar" {
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// Bulk does not pass through user space, either way.
func TestZeroCopy(t *testing.T) {
	const total = 64 << 20
	for _, test := range []struct {
		name   string
		source []string
		client []string // the relay's address comes second
	}{
		{"to the source", []string{"sink"}, []string{"send", strconv.Itoa(total), strconv.Itoa(1 << 20)}},
		{"to the recipient", []string{"pour", strconv.Itoa(total)}, []string{"drain"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &Engine{oneByOne: true, seam: counted}
			l, front := farBed(t, e, startPeer(t, test.source[0], test.source[1:]...))
			before := throughUserSpace(t)
			startPeer(t, test.client[0], append([]string{front}, test.client[1:]...)...)
			eventually(t, "bytes counted", func() bool { s := e.Stats(); return s.Copied+s.Spliced == total })
			moved := throughUserSpace(t) - before
			if s := l.Stats(); s.ToSource+s.ToRecipient != total {
				t.Errorf("stats %+v, want %d bytes relayed", s, total)
			}
			// What is read is written, so each byte that is copied counts twice.
			if moved/2 >= 64<<10 {
				t.Errorf("%d bytes went through user space for %d relayed", moved/2, total)
			}
			if n := e.Stats().Copied; n >= 64<<10 {
				t.Errorf("copied %d bytes of %d", n, total)
			}
		})
	}
}

// Small messages are copied, by the same measure, and so are all others when
// there is no pipe.
func TestCopyPath(t *testing.T) {
	for _, test := range []struct {
		name        string
		pipes       int
		times, size int
	}{
		{"small messages", 0, 2000, 100},
		{"without pipes", -1, 20, 200_000},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &Engine{oneByOne: true, seam: counted, Pipes: test.pipes}
			_, front := farBed(t, e, startPeer(t, "echo"))
			before := throughUserSpace(t)
			startPeer(t, "ping", front, strconv.Itoa(test.times), strconv.Itoa(test.size))
			total := 2 * test.times * test.size
			if moved := throughUserSpace(t) - before; moved < 2*total {
				t.Errorf("%d bytes read and written for %d relayed", moved, total)
			}
			eventually(t, "bytes counted", func() bool { s := e.Stats(); return s.Copied+s.Spliced == uint64(total) })
			if s := e.Stats(); s.Spliced != 0 || s.Pipes != 0 {
				t.Errorf("%v, want all of %d bytes copied and no pipe", s, total)
			}
		})
	}
}

// A direction that was bulk and is small again is copied again, and its pipe
// is somebody else's.
func TestBackToCopy(t *testing.T) {
	b := newBed(t, &Engine{Workers: 1}, &Link{})
	recipient, source := b.dial()
	pass := func(n int) {
		t.Helper()
		p := random(n)
		sent := make(chan error, 1)
		go func() { sent <- send(recipient, p, false) }()
		expect(t, source, p)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	pass(1 << 20)
	for range smallAfter {
		pass(10)
	}
	eventually(t, "bytes counted", func() bool {
		s := b.engine.Stats()
		return s.Copied+s.Spliced == 1<<20+10*smallAfter
	})
	before := b.engine.Stats()
	if before.Spliced == 0 {
		t.Fatal("a megabyte was not spliced")
	}
	for range 10 {
		pass(10)
	}
	eventually(t, "bytes counted", func() bool { return b.engine.Stats().Copied == before.Copied+100 })
	if after := b.engine.Stats(); after.Spliced != before.Spliced {
		t.Errorf("%d bytes of small messages spliced", after.Spliced-before.Spliced)
	}
	b.engine.everyWorker(func(w *worker) {
		w.slab.each(func(c *conn) {
			if c.ends[0].pipe != nil || c.ends[1].pipe != nil {
				t.Error("an idle connection holds a pipe")
			}
		})
	})
}

// An idle connection costs two descriptors and less than a kilobyte: no pipe,
// no goroutine, no buffer.
func TestIdleCost(t *testing.T) {
	limit, err := RaiseFileLimit()
	if err != nil {
		t.Fatal(err)
	}
	n := min(10_000, (int(limit)-500)/2)
	if testing.Short() {
		n = min(n, 1000)
	}
	if n < 10_000 {
		t.Logf("%d connections instead of 10,000: the limit of open files is %d", n, limit)
	}
	e := &Engine{}
	l, front := farBed(t, e, startPeer(t, "sink"))
	startPeer(t, "hold", front, "1") // whatever is there once for all of them
	heap, fds, goroutines := heapInUse(), openDescriptors(t), runtime.NumGoroutine()
	startPeer(t, "hold", front, strconv.Itoa(n))
	eventually(t, "every connection established", func() bool {
		s := l.Stats()
		return s.Open == int64(n)+1
	})
	memory := heapInUse() - heap
	// Two descriptors of the second peer's own are this process's, too.
	if got := openDescriptors(t) - fds; got > 2*n+4 {
		t.Errorf("%d descriptors for %d connections", got, n)
	}
	if got := runtime.NumGoroutine() - goroutines; got > 2 {
		t.Errorf("%d goroutines for %d connections", got, n)
	}
	if pipes := e.Stats().Pipes; pipes != 0 {
		t.Errorf("%d pipes for %d idle connections", pipes, n)
	}
	if memory >= 1000*n {
		t.Errorf("%d bytes for each of %d connections", memory/n, n)
	}
	t.Logf("%d bytes for each of %d connections", memory/n, n)
}

// heapInUse is the memory of this program, after a collection: spans in use
// and stacks.
func heapInUse() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

// A message allocates nothing.
func TestNoAllocation(t *testing.T) {
	for _, size := range []int{100, 200_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			e := &Engine{}
			_, front := farBed(t, e, startPeer(t, "echo"))
			// Once for what is made at the first message.
			startPeer(t, "ping", front, "100", strconv.Itoa(size))
			mallocs := func() uint64 {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.Mallocs
			}
			base := mallocs()
			startPeer(t, "ping", front, "1", strconv.Itoa(size))
			one := mallocs() - base
			base = mallocs()
			const times = 2000
			startPeer(t, "ping", front, strconv.Itoa(times), strconv.Itoa(size))
			// To start a peer allocates, more or less the same each time.
			if many := mallocs() - base; many > one+times/4 {
				t.Errorf("%d allocations for %d messages and %d for one", many, times, one)
			}
		})
	}
}
