package relay

import (
	"net"
	"testing"
	"time"
)

// When a worker has no time left, another takes half of what is busy and
// accepts as well; when that is over it gives everything back.
func TestSpread(t *testing.T) {
	e := &Engine{Workers: 3}
	b := newBed(t, e, &Link{})
	var ends [][2]*net.TCPConn
	for range 8 {
		recipient, source := b.dial()
		ends = append(ends, [2]*net.TCPConn{recipient, source})
	}
	use := func() {
		t.Helper()
		for _, c := range ends {
			if err := send(c[0], []byte("there"), false); err != nil {
				t.Fatal(err)
			}
			expect(t, c[1], []byte("there"))
			if err := send(c[1], []byte("back"), false); err != nil {
				t.Fatal(err)
			}
			expect(t, c[0], []byte("back"))
		}
	}
	loads := func() (n []int64) {
		for _, w := range e.workers {
			n = append(n, w.load.Load())
		}
		return n
	}
	use()
	if n := loads(); n[0] != 8 || n[1] != 0 {
		t.Fatalf("connections spread %v without need", n)
	}
	b.fill(ends[0][0]) // one that holds bytes in a pipe
	first := e.workers[0]
	first.call(func(w *worker) {
		w.slab.each(func(c *conn) { c.active = w.now })
		for range hotLooks {
			w.pace.idle = -time.Hour // the machine has been idle since
			w.heat(time.Millisecond)
		}
	})
	eventually(t, "half handed over", func() bool { n := loads(); return n[0] == 4 && n[1] == 4 })
	ends = ends[1:]
	use()
	e.workers[1].call(func(w *worker) {
		if len(w.listeners) != 1 {
			t.Errorf("the second worker listens %d times", len(w.listeners))
		}
	})
	first.call(func(w *worker) { w.cool(calmTicks) })
	eventually(t, "all given back", func() bool { n := loads(); return n[0] == 8 && n[1] == 0 })
	use()
	if n := e.active.Load(); n != 1 {
		t.Errorf("%d workers in use, want 1", n)
	}
	b.dial()
	if n := b.link.Cut(); n != 9 {
		t.Errorf("cut %d, want 9", n)
	}
}

// A worker that waits for a processor is not helped by another one, and one
// busy connection cannot be shared.
func TestNoSpreadWithoutNeed(t *testing.T) {
	for _, test := range []struct {
		name  string
		conns int
		idle  time.Duration // of the machine, more than there is to come
	}{
		{"no processor free", 8, 1 << 60},
		{"one connection", 1, -time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &Engine{Workers: 2}
			b := newBed(t, e, &Link{})
			for range test.conns {
				b.dial()
			}
			e.workers[0].call(func(w *worker) {
				w.slab.each(func(c *conn) { c.active = w.now })
				for range 5 * hotLooks {
					w.pace.idle = test.idle
					w.heat(time.Millisecond)
				}
			})
			if n := e.active.Load(); n != 1 {
				t.Errorf("%d workers in use, want 1", n)
			}
		})
	}
}

func TestIdleTime(t *testing.T) {
	before, ok := idleTime()
	if !ok {
		t.Fatal("/proc/stat could not be read")
	}
	if after, _ := idleTime(); after < before || before <= 0 {
		t.Errorf("idle for %v and then %v", before, after)
	}
}
