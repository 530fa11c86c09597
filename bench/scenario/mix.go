package scenario

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"

	"icapgate/bench"
	"icapgate/configs"
	"icapgate/icap"
)

// Mix is a scenario that is ready to be sent. It is shared by all workers of a load.
type Mix struct {
	run         string
	entries     []*entry
	weights     shares
	bodyWeights shares // of the entries with a body alone
	faults      []FaultType
	faultShares shares

	users      people
	userFormat template
	clients    people
	network    [16]byte // address of the first client
}

// Entry is one type of request, for reports.
type Entry struct {
	Name   string
	Method icap.Method
	Share  float64 // of all requests; faulty clients that need a body are not looked at
}

// entry is a compiled RequestType.
type entry struct {
	Entry
	request    bench.Request // what all have in common
	head       template
	first      template // the blocks up to what an echo has of them
	last       template
	before     template // of the form
	after      template
	hasBody    bool
	files      []file // nil: the pattern
	size       sizes
	statuses   []int // nil: see Expected
	expectBody ExpectBody

	usesUser, usesClient, usesUUID bool
}

// Entries returns the types of requests in the order of the scenario.
func (m *Mix) Entries() []Entry {
	list := make([]Entry, len(m.entries))
	for i, e := range m.entries {
		list[i] = e.Entry
		list[i].Share = m.weights.share(i)
	}
	return list
}

// SetRun chooses the word that names of incidents begin with, in place of "run". It is called before NewSource.
func (m *Mix) SetRun(word string) error {
	if !isToken(word) {
		return fmt.Errorf("bad name of a run %q: want letters, digits, - and _", word)
	}
	m.run = word
	return nil
}

// shares picks an index by weight.
type shares []float64 // sums of the weights up to each, itself included

func (s *shares) add(weight float64) {
	sum := weight
	if n := len(*s); n > 0 {
		sum += (*s)[n-1]
	}
	*s = append(*s, sum)
}

func (s shares) total() float64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1]
}

// pick returns the index for a number from 0 up to, but without, the total; len(s) for one beyond.
func (s shares) pick(x float64) int {
	if len(s) <= 8 {
		i := 0
		for i < len(s) && x >= s[i] {
			i++
		}
		return i
	}
	i, found := slices.BinarySearch(s, x)
	for found && i < len(s) && s[i] == x { // also past those of weight 0
		i++
	}
	return i
}

// draw picks at random.
func (s shares) draw(rng *rand.Rand) int {
	i := s.pick(rng.Float64() * s.total())
	if i == len(s) { // rounded up to the total, which belongs to the last of a weight above 0
		i, _ = slices.BinarySearch(s, s.total())
	}
	return i
}

func (s shares) share(i int) float64 {
	weight := s[i]
	if i > 0 {
		weight -= s[i-1]
	}
	return weight / s.total()
}

// sizes is the distribution of the sizes of bodies.
type sizes struct {
	kind      sizeKind
	low, high int64   // of a fixed size both are it
	median    float64 // of the logarithm: mu
	sigma     float64
}

type sizeKind uint8

const (
	fixedSize sizeKind = iota
	uniformSize
	logNormalSize
)

func newSizes(s *Size) (sizes, error) {
	switch {
	case s == nil:
		return sizes{}, nil
	case s.Uniform != nil:
		return sizes{kind: uniformSize, low: int64(s.Uniform.Min), high: int64(s.Uniform.Max)}, nil
	case s.LogNormal != nil:
		l := s.LogNormal
		return sizes{logNormalSize, int64(l.Min), int64(l.Max), math.Log(float64(l.Median)), l.Sigma}, nil
	case s.Fixed < 0:
		return sizes{}, fmt.Errorf("a body cannot have %d bytes", s.Fixed)
	}
	return sizes{low: int64(s.Fixed), high: int64(s.Fixed)}, nil
}

func (s *sizes) draw(rng *rand.Rand) int64 {
	switch s.kind {
	case uniformSize:
		return s.low + rng.Int64N(s.high-s.low+1)
	case logNormalSize:
		x := math.Round(math.Exp(s.median + s.sigma*rng.NormFloat64()))
		if x >= float64(s.high) {
			return s.high
		}
		return max(s.low, int64(x))
	}
	return s.low
}

// people are users or clients, by their numbers from 0.
type people struct {
	count int
	skew  float64
}

func newPeople(count int, skew float64) people { return people{count, skew} }

// zipf returns what draws the numbers if some come more often than others; nil: all are alike.
func (p people) zipf(rng *rand.Rand) *rand.Zipf {
	if p.skew == 0 {
		return nil
	}
	return rand.NewZipf(rng, p.skew, 1, uint64(p.count-1))
}

func (p people) draw(rng *rand.Rand, zipf *rand.Zipf) uint64 {
	if zipf != nil {
		return zipf.Uint64()
	}
	return rng.Uint64N(uint64(p.count))
}

// addresses returns how many clients a network has room for: its first address is left out, unless it is the only one.
func addresses(network configs.Prefix) float64 {
	prefix := netip.Prefix(network)
	if prefix.IsSingleIP() {
		return 1
	}
	return math.Exp2(float64(prefix.Addr().BitLen()-prefix.Bits())) - 1
}

// firstAddress returns the address of the first client, IPv4 as the last 4 of 16 bytes behind ::ffff.
func firstAddress(network configs.Prefix) [16]byte {
	prefix := netip.Prefix(network)
	first := prefix.Addr()
	if !prefix.IsSingleIP() {
		first = first.Next()
	}
	return first.As16()
}

// address returns that of the client with the number.
func address(first [16]byte, number uint64) netip.Addr {
	for i := 15; number > 0 && i >= 0; i-- {
		number += uint64(first[i])
		first[i] = byte(number)
		number >>= 8
	}
	return netip.AddrFrom16(first).Unmap()
}
