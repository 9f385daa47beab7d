package main

import (
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var none = math.NaN()

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		values series
		want   spread
	}{
		{series{3, 1, 2}, spread{3, 2, 1, 3}},
		{series{4, 1, 2, 3}, spread{4, 2.5, 1, 4}},
		{series{none, 5, none}, spread{1, 5, 5, 5}},
	} {
		if got := tt.values.spread(); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.values, got, tt.want)
		}
	}
	for _, empty := range []series{nil, {}, {none}} {
		if got := empty.spread(); got.n != 0 || !math.IsNaN(got.median) || got.String() != "–" {
			t.Errorf("%v: %+v", empty, got)
		}
	}
}

// TestMedianDivides holds the median to what it is: no more values are on one
// side of it than on the other.
func TestMedianDivides(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := series(rapid.SliceOfN(rapid.Float64Range(-1e9, 1e9), 1, 50).Draw(t, "values"))
		before := slices.Clone(values)
		s := values.spread()
		below, above := 0, 0
		for _, v := range values {
			if v < s.median {
				below++
			} else if v > s.median {
				above++
			}
		}
		if half := len(values) / 2; below > half || above > half || s.min > s.median || s.median > s.max {
			t.Fatalf("%v: %+v", values, s)
		}
		if !slices.Equal(values, before) {
			t.Fatal("it changed the order of the rounds")
		}
	})
}

func TestRatiosAreByRound(t *testing.T) {
	got := series{10, 20, none, 40, 0}.over(series{5, none, 3, 10, 0})
	if want := (series{2, 4}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// The ratio of the medians would be 1.
	if got := (series{1, 100, 10}).over(series{10, 1, 100}).spread(); got.median != 0.1 {
		t.Errorf("the median ratio is %v", got.median)
	}
}

func TestResultsKeepRounds(t *testing.T) {
	r := newResults(3)
	r.add("w", "p", 1, sample{throughput: 7})
	r.add("w", "p", 2, sample{throughput: 8, costPerGB: 9})
	if got := r.of("w", "p", throughput); len(got) != 3 || !math.IsNaN(got[0]) || got[1] != 7 || got[2] != 8 {
		t.Errorf("%v", got)
	}
	if got := r.of("w", "p", costPerGB).spread(); got.n != 1 || got.median != 9 {
		t.Errorf("%+v", got)
	}
	if got := r.of("w", "another", throughput); got != nil {
		t.Errorf("%v", got)
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0:           "0",
		0.00004:     "0.0000",
		0.0512:      "0.0512",
		0.999:       "0.999",
		1:           "1.00",
		12.345:      "12.3",
		100.4:       "100",
		1234:        "1,230",
		134_567:     "135,000",
		1_234_567.8: "1,230,000",
		none:        "–",
	} {
		if got := figure(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}
