package load

import (
	"math/bits"

	"icapgate/bench/result"
)

// numbers is a set of numbers of requests, a bit each. Those from maxNumber on are not kept.
type numbers []uint64

const maxNumber = 1 << 32

func (s *numbers) add(n uint64) {
	if n >= maxNumber {
		return
	}
	for uint64(len(*s)) <= n/64 {
		*s = append(*s, 0)
	}
	(*s)[n/64] |= 1 << (n % 64)
}

// union adds the numbers of another set.
func (s *numbers) union(other numbers) {
	for i, word := range other {
		if i == len(*s) {
			*s = append(*s, other[i:]...)
			return
		}
		(*s)[i] |= word
	}
}

// ranges returns the numbers as ranges of ids of a run.
func (s numbers) ranges(run string) []result.Range {
	list := []result.Range{}
	for i, word := range s {
		for word != 0 {
			n := uint64(i)*64 + uint64(bits.TrailingZeros64(word))
			word &= word - 1
			if k := len(list); k > 0 && list[k-1].To+1 == n {
				list[k-1].To = n
			} else {
				list = append(list, result.Range{Run: run, From: n, To: n})
			}
		}
	}
	return list
}
