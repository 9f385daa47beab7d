package relay

import (
	"math/bits"
	"time"
)

// A worker's time is counted in ticks of 2^24 ns, about 17 ms: fine enough for
// the timeouts of connections, and a deadline is four bytes. Ticks wrap after
// two years; they are only ever compared by their difference.
const tickShift = 24

// ticks rounds d up to whole ticks; 0 stands for no limit.
func ticks(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	const longest = 1 << 30 // half a wrap, so that differences keep their sign
	t := (uint64(d) + 1<<tickShift - 1) >> tickShift
	return uint32(min(max(t, 1), longest))
}

func ticksToDuration(t uint32) time.Duration { return time.Duration(t) << tickShift }

// wheelSlots is a power of two; with the tick above one turn is 69 s. What is
// due later than that stays in its slot for another turn.
const wheelSlots = 4096

// wheel finds the connections whose deadline has come. A connection is in it
// at most once, linked through its own fields, and is not moved while bytes
// flow: the deadline it was filed under is only the time to look at it again.
// So activity costs one store, and an engine without deadlines never wakes.
type wheel struct {
	slots [wheelSlots]int32 // slot of the first connection + 1
	used  [wheelSlots / 64]uint64
	at    uint32 // every deadline up to here has been looked at
	count int
}

// add files c under due. It must not be filed already.
func (h *wheel) add(s *slab, c *conn, due uint32) {
	if int32(due-h.at) <= 0 {
		due = h.at + 1
	}
	i := due % wheelSlots
	c.due, c.filed = due, true
	c.prev, c.next = 0, h.slots[i]
	if c.next != 0 {
		s.at(c.next - 1).prev = c.slot + 1
	}
	h.slots[i] = c.slot + 1
	h.used[i/64] |= 1 << (i % 64)
	h.count++
}

func (h *wheel) remove(s *slab, c *conn) {
	if !c.filed {
		return
	}
	c.filed = false
	h.count--
	if c.next != 0 {
		s.at(c.next - 1).prev = c.prev
	}
	if c.prev != 0 {
		s.at(c.prev - 1).next = c.next
		return
	}
	i := c.due % wheelSlots
	if h.slots[i] = c.next; c.next == 0 {
		h.used[i/64] &^= 1 << (i % 64)
	}
}

// expire calls fn for what is due by now. fn finds the connection out of the
// wheel and may add it again, later than now.
func (h *wheel) expire(s *slab, now uint32, fn func(*conn)) {
	if h.count == 0 {
		h.at = now
		return
	}
	// More than a turn late: one full turn looks at everything.
	if now-h.at > wheelSlots {
		h.at = now - wheelSlots
	}
	for h.at != now {
		h.at++
		i := h.at % wheelSlots
		if h.used[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		for at := h.slots[i]; at != 0; {
			c := s.at(at - 1)
			at = c.next
			if int32(c.due-now) > 0 {
				continue // a later turn's
			}
			h.remove(s, c)
			fn(c)
		}
	}
}

// sleep is how many ticks may pass before the wheel has to be looked at; it
// is false when nothing is filed.
func (h *wheel) sleep() (uint32, bool) {
	if h.count == 0 {
		return 0, false
	}
	from := (h.at + 1) % wheelSlots
	word, bit := from/64, from%64
	if m := h.used[word] >> bit; m != 0 {
		return uint32(bits.TrailingZeros64(m)) + 1, true
	}
	skipped := 64 - bit
	for i := uint32(1); i <= wheelSlots/64; i++ {
		if m := h.used[(word+i)%(wheelSlots/64)]; m != 0 {
			return skipped + uint32(bits.TrailingZeros64(m)) + 1, true
		}
		skipped += 64
	}
	return wheelSlots, true
}
