package relay

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Tests of what the relay costs have their peers in other processes, so that
// whatever is counted in this one is the relay's.

func TestMain(m *testing.M) {
	if role := os.Getenv("RELAY_TEST_PEER"); role != "" {
		if err := peer(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "peer:", err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	// Seven engines play each schedule; a run of its own may ask for more.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "rapid.checks" })
	if !chosen {
		flag.Set("rapid.checks", "20")
	}
	os.Exit(m.Run())
}

// startPeer runs this program again in a role. What it prints first is
// returned; it ends when its input does.
func startPeer(t testing.TB, role string, args ...string) (said string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "RELAY_TEST_PEER="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("peer %s: %v", role, err)
		}
	})
	said, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("peer %s: %v", role, err)
	}
	return strings.TrimSpace(said)
}

// peer is what startPeer starts.
func peer(role string, args []string) error {
	RaiseFileLimit()
	// The end of the input is the end of the peer.
	defer io.Copy(io.Discard, os.Stdin)
	switch role {
	case "sink": // accepts, reads everything, closes
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					io.Copy(io.Discard, struct{ io.Reader }{c})
					c.Close()
				}()
			}
		}()
	case "send": // address, bytes, size of a write: sends, half-closes, waits for the end
		c, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		total, _ := strconv.Atoi(args[1])
		size, _ := strconv.Atoi(args[2])
		for p := make([]byte, size); total > 0; total -= len(p) {
			if _, err := c.Write(p[:min(size, total)]); err != nil {
				return err
			}
		}
		c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil {
			return err
		}
		fmt.Println("done")
	case "ping": // address, times, size: sends and waits for the echo
		c, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		times, _ := strconv.Atoi(args[1])
		size, _ := strconv.Atoi(args[2])
		p := make([]byte, size)
		for range times {
			if _, err := c.Write(p); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, p); err != nil {
				return err
			}
		}
		c.Close()
		fmt.Println("done")
	case "echo":
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
	case "hold": // address, number: holds connections open
		n, _ := strconv.Atoi(args[1])
		held := make([]net.Conn, n)
		for i := range held {
			var err error
			if held[i], err = net.Dial("tcp4", args[0]); err != nil {
				return err
			}
		}
		fmt.Println("done")
		io.Copy(io.Discard, os.Stdin)
		runtime.KeepAlive(held) // a collected connection is closed
	}
	return nil
}

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
	c.send = func(fd int32, p []byte) (int, syscall.Errno) {
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

// Bulk does not pass through user space.
func TestZeroCopy(t *testing.T) {
	const total = 64 << 20
	e := &Engine{oneByOne: true, seam: counted}
	l, front := farBed(t, e, startPeer(t, "sink"))
	before := throughUserSpace(t)
	startPeer(t, "send", front, strconv.Itoa(total), strconv.Itoa(1<<20))
	moved := throughUserSpace(t) - before
	if n := l.Stats().ToSource; n != total {
		t.Fatalf("%d bytes relayed, want %d", n, total)
	}
	// What is read is written, so each byte that is copied counts twice.
	if moved/2 >= 64<<10 {
		t.Errorf("%d bytes went through user space for %d relayed", moved/2, total)
	}
	eventually(t, "bytes counted", func() bool { s := e.Stats(); return s.Copied+s.Spliced == total })
	if n := e.Stats().Copied; n >= 64<<10 {
		t.Errorf("copied %d bytes of %d", n, total)
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

// An engine whose connections have nothing to do does nothing, whatever state
// they are in.
func TestNoSpin(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{IdleTimeout: time.Hour, MaxLifetime: time.Hour})
		b.dial()
		for i := range 2 { // half-closed, each way
			recipient, source := b.dial()
			ends := [2]*net.TCPConn{recipient, source}
			ends[i].CloseWrite()
			expectEOF(t, ends[1-i])
		}
		for i := range 2 { // backpressured, each way, and half-closed behind that
			recipient, source := b.dial()
			ends := [2]*net.TCPConn{recipient, source}
			b.fill(ends[i])
			if i == 0 {
				ends[i].CloseWrite()
			}
		}
		for i := range 2 { // reset, each way
			recipient, source := b.dial()
			ends := [2]*net.TCPConn{recipient, source}
			reset(t, ends[i])
			expectReset(t, ends[1-i])
		}
		eventually(t, "only what is to stay", func() bool { return b.link.Stats().Open == 5 })
		// Past the time when those that stay are settled, one wake-up each.
		eventually(t, "all settled", func() bool {
			unsettled := 0
			e.everyWorker(func(w *worker) {
				w.slab.each(func(c *conn) {
					if !c.settled {
						unsettled++
					}
				})
			})
			return unsettled == 0
		})
		before := e.Stats().Wakeups
		// To see that nothing happens takes a while in which it could.
		time.Sleep(300 * time.Millisecond)
		if n := e.Stats().Wakeups - before; n > 20 {
			t.Errorf("%d wake-ups with nothing to do", n)
		}
	})
}

// An accept that fails for want of descriptors is tried again after a pause,
// and the clients in the backlog are served then.
func TestAcceptBackOff(t *testing.T) {
	b := newBed(t, &Engine{Workers: 1}, &Link{})
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	// Descriptors below fd may be free: take them.
	var taken []int
	for {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, n)
		if n > fd {
			break
		}
	}
	lower := unix.Rlimit{Cur: uint64(taken[len(taken)-1]) + 1, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lower); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }
	defer restore()
	to := &unix.SockaddrInet4{Port: int(b.front.Port()), Addr: b.front.Addr().As4()}
	if err := unix.Connect(fd, to); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three pauses", func() bool { return b.engine.Stats().BackedOff >= 3 })
	restore()
	for _, n := range taken {
		unix.Close(n)
	}
	if _, err := unix.Write(fd, []byte("late")); err != nil {
		t.Fatal(err)
	}
	b.source.SetDeadline(time.Now().Add(patience))
	source, err := b.source.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	b.watch(source)
	expect(t, source, []byte("late"))
	// Each pause is longer than the one before it, up to a second.
	if n, w := b.engine.Stats().BackedOff, b.engine.Stats().Wakeups; w > 20*n+200 {
		t.Errorf("%d wake-ups and %d pauses", w, n)
	}
}

func TestRaiseFileLimit(t *testing.T) {
	got, err := RaiseFileLimit()
	if err != nil {
		t.Fatal(err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if got != lim.Cur || lim.Cur != lim.Max {
		t.Errorf("limit %d is said to hold, %d does, and %d could", got, lim.Cur, lim.Max)
	}
}
