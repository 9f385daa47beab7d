package relay

import (
	"testing"
	"time"
)

// Short waits have a worker spin, long ones soon end that, and it comes back.
func TestSpinFollowsTraffic(t *testing.T) {
	w := &worker{engine: &Engine{}}
	w.engine.active.Store(1)
	if d := w.spinFor(); d != 0 {
		t.Errorf("it would spin for %v before there was anything", d)
	}
	waits := func(times, events int, d time.Duration) {
		for range times {
			w.waited(events, d)
		}
	}
	for range 2 {
		waits(50, 1, 20*time.Microsecond)
		if d := w.spinFor(); d != spinMost {
			t.Errorf("it would spin for %v while one connection ping-pongs", d)
		}
		waits(1, 5, 20*time.Microsecond)
		if d := w.spinFor(); d != spinMany {
			t.Errorf("it would spin for %v while some are busy", d)
		}
		w.engine.active.Store(2)
		if d := w.spinFor(); d != 0 {
			t.Errorf("it would spin for %v while workers share the load", d)
		}
		w.engine.active.Store(1)
		waits(1, 0, time.Second)
		if d := w.spinFor(); d != 0 {
			t.Errorf("it would spin for %v after a wait that brought nothing", d)
		}
		waits(4, 1, time.Second)
		if d := w.spinFor(); d != 0 {
			t.Errorf("it would spin for %v where pauses are long", d)
		}
	}
}

// While one worker spins no other does, and spinning ends.
func TestSpinIsForOne(t *testing.T) {
	w, err := newWorker(&Engine{}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer w.closeDescriptors()
	w.found = 1
	w.engine.spinning.Store(true)
	// With since at the far end of time it would never end by itself.
	if n, errno := w.spin(1 << 60); n != 0 || errno != 0 {
		t.Errorf("%d events, %v", n, errno)
	}
	w.engine.spinning.Store(false)
	if n, errno := w.spin(time.Since(w.start)); n != 0 || errno != 0 {
		t.Errorf("%d events, %v", n, errno)
	}
	if w.engine.spinning.Load() {
		t.Error("it says that it still spins")
	}
}
