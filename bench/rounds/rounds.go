// Package rounds says what repeated rounds of a measurement have shown. Figures drift with the machine, so that what is compared is measured
// in turn, round by round, and a ratio is that of the same round.
package rounds

import (
	"math"
	"slices"
)

// Confidence is that of the interval of a median.
const Confidence = 0.95

// Median returns the middle of the values, NaN if there is none.
func Median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Interval returns the bounds between which the median lies with the confidence above: two of the values, chosen by their rank,
// which asks nothing of how the values are spread. Fewer than 6 values cannot give it; the bounds are then the smallest and the
// largest.
func Interval(values []float64) (low, high float64) {
	n := len(values)
	if n == 0 {
		return math.NaN(), math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	// The median is below s[k] if at most k of n values are below it, each with probability 1/2; the same above.
	k, below, next := 0, 0.0, math.Pow(0.5, float64(n))
	for i := 0; 2*(below+next) <= 1-Confidence; i++ {
		k = i
		below += next
		next *= float64(n-i) / float64(i+1)
	}
	return s[k], s[n-1-k]
}

// Valid returns the values without the NaN of rounds that failed.
func Valid(values []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(values), math.IsNaN)
}

// Ratios divides two lists of the same rounds, without the rounds in which either failed.
func Ratios(a, b []float64) []float64 {
	var list []float64
	for i := range min(len(a), len(b)) {
		list = append(list, a[i]/b[i])
	}
	return Valid(list)
}
