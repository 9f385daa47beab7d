package traffic

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPercentiles compares with the exact ones.
func TestPercentiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, int64(time.Hour)), 1, 200).Draw(t, "nanoseconds")
		p := rapid.Float64Range(0, 1).Draw(t, "part")
		var h histogram
		for _, v := range values {
			h.add(time.Duration(v))
		}
		slices.Sort(values)
		exact := float64(values[int(p*float64(len(values)-1))]) / 1000
		if got := h.percentile(p); got < exact*0.99 || got > exact*1.01 {
			t.Fatalf("the part %v is below %v µs, want %v", p, got, exact)
		}
	})
	var none histogram
	if got := none.latency(); got != (Latency{}) {
		t.Errorf("the latency of nothing is %+v", got)
	}
}
