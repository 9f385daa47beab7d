package relay

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The wheel finds what is due, no more and no less, whatever is added,
// removed and waited for.
func TestWheel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s slab
		var h wheel
		start := rapid.Uint32().Draw(t, "start") // ticks wrap
		now := start
		h.at = now
		due := map[int32]uint32{}
		conns := map[int32]*conn{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				c := s.take()
				c.state = established
				in := rapid.OneOf(rapid.Uint32Range(0, 3), rapid.Uint32Range(0, 200), rapid.Uint32Range(0, 5*wheelSlots)).Draw(t, "in")
				h.add(&s, c, now+in)
				due[c.slot], conns[c.slot] = now+max(in, 1), c
			},
			"remove": func(t *rapid.T) {
				if len(conns) == 0 {
					t.Skip("nothing to remove")
				}
				slots := make([]int32, 0, len(conns))
				for slot := range conns {
					slots = append(slots, slot)
				}
				slices.Sort(slots)
				slot := rapid.SampledFrom(slots).Draw(t, "slot")
				h.remove(&s, conns[slot])
				h.remove(&s, conns[slot]) // nothing more to do
				s.give(conns[slot])
				delete(due, slot)
				delete(conns, slot)
			},
			"wait": func(t *rapid.T) {
				now += rapid.OneOf(rapid.Uint32Range(0, 5), rapid.Uint32Range(0, 300), rapid.Uint32Range(0, 3*wheelSlots)).Draw(t, "ticks")
				h.expire(&s, now, func(c *conn) {
					if at, ok := due[c.slot]; !ok || int32(at-now) > 0 {
						t.Fatalf("slot %d expired at %d, due at %d", c.slot, now-start, at-start)
					}
					delete(due, c.slot)
					delete(conns, c.slot)
					s.give(c)
				})
				for slot, at := range due {
					if int32(at-now) <= 0 {
						t.Fatalf("slot %d due at %d not expired at %d", slot, at-start, now-start)
					}
				}
			},
			"": func(t *rapid.T) {
				sleep, any := h.sleep()
				if any != (len(due) > 0) || h.count != len(due) {
					t.Fatalf("asleep for ever with %d to come, or awake with none", len(due))
				}
				for slot, at := range due {
					if at-now < sleep {
						t.Fatalf("asleep for %d ticks, slot %d is due in %d", sleep, slot, at-now)
					}
				}
			},
		})
	})
}

func TestTicks(t *testing.T) {
	for _, test := range []struct {
		d    time.Duration
		want uint32
	}{
		{-1, 0}, {0, 0}, {1, 1}, {1 << tickShift, 1}, {1<<tickShift + 1, 2},
		{time.Hour, 214577}, {1 << 62, 1 << 30},
	} {
		if got := ticks(test.d); got != test.want {
			t.Errorf("%v is %d ticks, want %d", test.d, got, test.want)
		}
	}
}
