package main

import (
	"math"
	"slices"
)

// results are all samples of a run of the bench.
type results struct {
	rounds int
	values map[cell]series
}

// cell is one figure of one peer at one workload.
type cell struct {
	workload, peer string
	metric         metric
}

// series has a value for each round; NaN where there is none.
type series []float64

func newResults(rounds int) *results {
	return &results{rounds: rounds, values: make(map[cell]series)}
}

func (r *results) add(workload, peer string, round int, s sample) {
	for m, v := range s {
		c := cell{workload, peer, m}
		if r.values[c] == nil {
			r.values[c] = slices.Repeat(series{math.NaN()}, r.rounds)
		}
		r.values[c][round] = v
	}
}

// of is the series of a cell; it is empty where nothing was measured.
func (r *results) of(workload, peer string, m metric) series {
	return r.values[cell{workload, peer, m}]
}

// over divides round by round: what disturbs a round disturbs both.
func (s series) over(t series) series {
	var ratios series
	for i := range min(len(s), len(t)) {
		if q := s[i] / t[i]; !math.IsNaN(q) && !math.IsInf(q, 0) {
			ratios = append(ratios, q)
		}
	}
	return ratios
}

// spread is what is told of a series.
type spread struct {
	n                int
	median, min, max float64
}

func (s series) spread() spread {
	sorted := slices.DeleteFunc(slices.Clone(s), math.IsNaN)
	slices.Sort(sorted)
	n := len(sorted)
	if n == 0 {
		return spread{median: math.NaN(), min: math.NaN(), max: math.NaN()}
	}
	return spread{n: n, median: (sorted[(n-1)/2] + sorted[n/2]) / 2, min: sorted[0], max: sorted[n-1]}
}
