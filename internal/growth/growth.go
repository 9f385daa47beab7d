// Package growth tells whether a process holds ever more of something, from
// samples taken when it is at rest. It is for tests only, and does not know
// what the process does.
package growth

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// Sample is what a process holds at a moment.
type Sample struct {
	Descriptors int
	Goroutines  int
	Heap        int // bytes in use, after a collection
	Resident    int // bytes, after what is free was given back
}

// Take takes a sample of this process.
func Take() (Sample, error) {
	debug.FreeOSMemory()
	debug.FreeOSMemory() // what the first run has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s := Sample{Goroutines: runtime.NumGoroutine(), Heap: int(m.HeapAlloc)}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return s, fmt.Errorf("counting descriptors: %w", err)
	}
	s.Descriptors = len(fds) - 1 // without the one of the directory
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return s, fmt.Errorf("reading the resident memory: %w", err)
	}
	var total int
	if _, err := fmt.Sscan(string(statm), &total, &s.Resident); err != nil {
		return s, fmt.Errorf("reading the resident memory: %w", err)
	}
	s.Resident *= os.Getpagesize()
	return s, nil
}

// Series is samples of one process, evenly spaced.
type Series []Sample

// Trend is how one quantity develops.
type Trend struct {
	Name  string
	First float64 // median of the first third of the samples
	Slope float64 // for each sample, by the median of all pairs (Theil and Sen)
	Total float64 // Slope over the whole series
	Sigma float64 // how many standard deviations the order of the samples is from one by chance (Mann and Kendall)
	Grows bool
}

// quantities are what is looked at, and what growth over a series is too
// little to mean anything: less than one of it in each sample, or the noise of
// an allocator.
var quantities = []struct {
	name  string
	of    func(Sample) int
	least float64
}{
	{"descriptors", func(s Sample) int { return s.Descriptors }, 2},
	{"goroutines", func(s Sample) int { return s.Goroutines }, 2},
	{"heap", func(s Sample) int { return s.Heap }, 256 << 10},
	{"resident", func(s Sample) int { return s.Resident }, 8 << 20},
}

// certain is the number of standard deviations from which on growth is not
// held to be chance: one series in 10,000 would be wronged.
const certain = 3.7

// Trends looks at each of the quantities. A quantity grows if the samples go
// up more often than chance would have it, and by an amount that matters.
//
// Twelve samples are what it takes to be certain. With the race detector, which
// keeps a shadow of all memory ever used, what is resident is not judged.
func (s Series) Trends() []Trend {
	var trends []Trend
	for _, q := range quantities {
		values := make([]float64, len(s))
		for i, sample := range s {
			values[i] = float64(q.of(sample))
		}
		t := trendOf(values)
		t.Name = q.name
		t.Grows = t.Total >= q.least && t.Sigma >= certain && !(raceDetector && q.name == "resident")
		trends = append(trends, t)
	}
	return trends
}

// Growing is the trends of what grows.
func (s Series) Growing() []Trend {
	return slices.DeleteFunc(s.Trends(), func(t Trend) bool { return !t.Grows })
}

func trendOf(values []float64) Trend {
	n := len(values)
	if n < 2 {
		return Trend{}
	}
	var slopes []float64
	score := 0.0
	for i := range values {
		for j := i + 1; j < n; j++ {
			slopes = append(slopes, (values[j]-values[i])/float64(j-i))
			score += float64(cmp.Compare(values[j], values[i]))
		}
	}
	t := Trend{First: median(values[:(n+2)/3]), Slope: median(slopes)}
	t.Total = t.Slope * float64(n-1)
	if spread := math.Sqrt(variance(values)); spread > 0 && score != 0 {
		t.Sigma = (score - math.Copysign(1, score)) / spread
	}
	return t
}

// variance is that of the score of samples in random order, of which some may
// be the same.
func variance(values []float64) float64 {
	of := func(n int) float64 { return float64(n*(n-1)*(2*n+5)) / 18 }
	v := of(len(values))
	same := make(map[float64]int)
	for _, x := range values {
		same[x]++
	}
	for _, n := range same {
		v -= of(n)
	}
	return v
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func (t Trend) String() string {
	return fmt.Sprintf("%s %.0f %+.3g a sample (%+.0f in all, %+.1f σ)", t.Name, t.First, t.Slope, t.Total, t.Sigma)
}

// String is one line for each quantity.
func (s Series) String() string {
	var b strings.Builder
	for _, t := range s.Trends() {
		fmt.Fprintf(&b, "%v\n", t)
	}
	return b.String()
}
