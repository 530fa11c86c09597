package main

import (
	"math"
	"slices"
)

// median returns the middle of the values, NaN if there is none.
func median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(n-1)/2] + s[n/2]) / 2
}

// confidence is that of the interval of a median.
const confidence = 0.95

// interval returns the bounds between which the true median lies with the confidence above: two of the values, chosen by rank.
// That says nothing about how the values are spread. With fewer than 6 values all of them are not enough for it, and the bounds
// are the smallest and the largest.
func interval(values []float64) (low, high float64) {
	n := len(values)
	if n == 0 {
		return math.NaN(), math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	// The median is outside of ranks k+1..n-k if at most k of n values fall on one side of it, each with probability 1/2.
	k, choose, outside := 0, 1.0, 2*math.Pow(0.5, float64(n))
	for next := outside; next <= 1-confidence; k++ {
		outside = next
		choose *= float64(n-k) / float64(k+1)
		next = outside + 2*choose*math.Pow(0.5, float64(n))
		if next > 1-confidence {
			break
		}
	}
	return s[k], s[n-1-k]
}

// ratios divides the values of the rounds that both have, in the order of the rounds.
func ratios(of, by map[int]float64) []float64 {
	var list []float64
	for round := range of {
		if _, ok := by[round]; ok {
			list = append(list, float64(round))
		}
	}
	slices.Sort(list)
	for i, round := range list {
		list[i] = of[int(round)] / by[int(round)]
	}
	return list
}
