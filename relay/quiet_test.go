package relay

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An engine whose connections have nothing to do does nothing, whatever state
// they are in.
func TestNoSpin(t *testing.T) {
	everyEngine(t, func(t *testing.T, e *Engine) {
		b := newBed(t, e, &Link{IdleTimeout: time.Hour, MaxLifetime: time.Hour})
		recipient, source := b.dial() // busy a moment ago: looked for without sleeping
		for range 100 {
			if err := send(recipient, []byte("ping"), false); err != nil {
				t.Fatal(err)
			}
			expect(t, source, []byte("ping"))
		}
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
		before, cpu := e.Stats().Wakeups, cpuTime(t)
		// To see that nothing happens takes a while in which it could.
		const while = 300 * time.Millisecond
		time.Sleep(while)
		if d := cpuTime(t) - cpu; d > while/3 {
			t.Errorf("%v of processor time in %v with nothing to do", d, while)
		}
		if n := e.Stats().Wakeups - before; n > 20 {
			t.Errorf("%d wake-ups with nothing to do", n)
		}
	})
}

// cpuTime is what this process has used so far.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
	// Each pause is twice as long as the one before it.
	started := b.now()
	eventually(t, "five pauses", func() bool { return b.engine.Stats().BackedOff >= 5 })
	if passed := b.now() - started; passed < 1+2+4+8 {
		t.Errorf("five pauses within %d ticks", passed)
	}
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
}

// now is the first worker's time.
func (b *bed) now() (tick uint32) {
	b.engine.workers[0].call(func(w *worker) { tick = w.now })
	return tick
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
