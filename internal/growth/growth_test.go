package growth

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// TestTrends looks at series of every length that counts: steady ones with the
// noise that samples have, and such with a leak.
func TestTrends(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	for name, c := range map[string]struct {
		leak Sample // in each sample
		want []string
	}{
		"steady":         {Sample{}, nil},
		"shrinking":      {Sample{-1, -1, -10_000, -1 << 20}, nil},
		"a descriptor":   {Sample{Descriptors: 1}, []string{"descriptors"}},
		"a goroutine":    {Sample{Goroutines: 1}, []string{"goroutines"}},
		"heap":           {Sample{Heap: 40_000}, []string{"heap"}},
		"resident":       {Sample{Resident: 1 << 20}, []string{"resident"}},
		"a bit of a bit": {Sample{Heap: 100}, nil},
		"everything":     {Sample{1, 1, 40_000, 1 << 20}, []string{"descriptors", "goroutines", "heap", "resident"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{12, 13, 20, 50} {
				var s Series
				for i := range n {
					s = append(s, Sample{
						Descriptors: 10 + i*c.leak.Descriptors,
						Goroutines:  20 + i*c.leak.Goroutines + chance.IntN(2),
						Heap:        3<<20 + i*c.leak.Heap + chance.IntN(60_000),
						Resident:    30<<20 + i*c.leak.Resident + chance.IntN(2<<20),
					})
				}
				got := s.Growing()
				var names []string
				for _, trend := range got {
					names = append(names, trend.Name)
				}
				want := slices.DeleteFunc(slices.Clone(c.want), func(name string) bool { return raceDetector && name == "resident" })
				if !slices.Equal(names, want) {
					t.Errorf("%d samples: %v grows, want %q\n%v", n, got, c.want, s)
				}
			}
		})
	}
}

// TestStep has something made once that stays: that is no leak.
func TestStep(t *testing.T) {
	s := make(Series, 20)
	for i := range s {
		s[i] = Sample{Descriptors: 10, Goroutines: 10}
		if i > 2 {
			s[i].Descriptors, s[i].Goroutines = 14, 12
		}
	}
	if got := s.Growing(); len(got) > 0 {
		t.Errorf("%v grows", got)
	}
}

// TestTake loses one of each, and sees it.
func TestTake(t *testing.T) {
	before, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan struct{})
	go func() { <-stuck }()
	some := make([]byte, 16<<20)
	for i := range some {
		some[i] = 1
	}
	after, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	if after.Descriptors != before.Descriptors+1 {
		t.Errorf("%d descriptors after %d", after.Descriptors, before.Descriptors)
	}
	if after.Goroutines != before.Goroutines+1 {
		t.Errorf("%d goroutines after %d", after.Goroutines, before.Goroutines)
	}
	if d := after.Heap - before.Heap; d < len(some) || d > len(some)+1<<20 {
		t.Errorf("%d bytes of heap more", d)
	}
	if d := after.Resident - before.Resident; d < len(some)/2 {
		t.Errorf("%d bytes resident more", d)
	}
	f.Close()
	close(stuck)
	_ = some[0]
}
