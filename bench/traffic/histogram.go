package traffic

import (
	"math/bits"
	"time"
)

// histogram counts durations with an error below one percent: the buckets of
// each power of two are 128, and their width grows with it.
type histogram struct {
	buckets [64 << precision]uint64
	count   uint64
}

const precision = 7

func (h *histogram) add(d time.Duration) {
	h.buckets[bucket(uint64(max(d, 0)))]++
	h.count++
}

func bucket(n uint64) int {
	if n < 1<<precision {
		return int(n)
	}
	power := bits.Len64(n) - 1 - precision
	return power<<precision + int(n>>power)
}

// value is the middle of a bucket.
func value(bucket int) float64 {
	if bucket < 2<<precision {
		return float64(bucket)
	}
	power := bucket>>precision - 1
	first := uint64(bucket-power<<precision) << power
	return float64(first) + float64(uint64(1)<<power-1)/2
}

// percentile is the duration, in microseconds, that a share p of all does not
// exceed; 0 if there is none.
func (h *histogram) percentile(p float64) float64 {
	if h.count == 0 {
		return 0
	}
	rest := uint64(p * float64(h.count-1))
	for i, n := range h.buckets {
		if n > rest {
			return value(i) / 1000
		}
		rest -= n
	}
	return 0
}

func (h *histogram) latency() Latency {
	return Latency{P50: h.percentile(0.5), P99: h.percentile(0.99), P999: h.percentile(0.999)}
}
