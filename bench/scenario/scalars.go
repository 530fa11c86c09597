package scenario

import (
	"fmt"
	"strconv"

	"icapgate/configs"
	"icapgate/icap"
)

// Size is a number of bytes for each body: fixed, or drawn from a distribution. In YAML a size alone is a fixed one.
type Size struct {
	Fixed     configs.Size `yaml:"fixed"`
	Uniform   *Uniform     `yaml:"uniform"`
	LogNormal *LogNormal   `yaml:"lognormal"`
}

// Uniform makes all sizes from Min to Max as likely.
type Uniform struct {
	Min configs.Size `yaml:"min"`
	Max configs.Size `yaml:"max"`
}

// LogNormal is how sizes of files are distributed: many small ones and few that are very large. Half of them are below Median; Sigma is
// the standard deviation of their natural logarithm. Larger ones than Max become Max, smaller ones than Min become Min.
type LogNormal struct {
	Median configs.Size `yaml:"median"`
	Sigma  float64      `yaml:"sigma"`
	Min    configs.Size `yaml:"min"`
	Max    configs.Size `yaml:"max"`
}

// SetDefaults is as that of Scenario.
func (l *LogNormal) SetDefaults() { *l = LogNormal{Min: 1, Max: maxBody} }

// UnmarshalText reads a fixed size.
func (s *Size) UnmarshalText(text []byte) error { return s.Fixed.UnmarshalText(text) }

// Wanted says what may stand there.
func (*Size) Wanted() string {
	return "a size such as 64KiB, {uniform: {min: 1KiB, max: 1MiB}} or {lognormal: {median: 40KiB, sigma: 1.8, max: 50MiB}}"
}

// UnmarshalText reads the short form of a body, its size alone.
func (b *Body) UnmarshalText(text []byte) error {
	b.Size = new(Size)
	return b.Size.UnmarshalText(text)
}

// Wanted says what may stand there.
func (*Body) Wanted() string { return "a size such as 64KiB, or a mapping with size or files" }

// Chunks are the sizes of the chunks of a body, in turn, over and over; the last one is what is left. In YAML a size alone will do.
type Chunks []configs.Size

// UnmarshalText reads one size for all chunks.
func (c *Chunks) UnmarshalText(text []byte) error {
	*c = make(Chunks, 1)
	return (*c)[0].UnmarshalText(text)
}

// Wanted says what may stand there.
func (*Chunks) Wanted() string {
	return "a size such as 64KiB, or a list of sizes that are used in turn"
}

// Preview is a number of bytes, -1: none.
type Preview int64

// UnmarshalText reads 0, 1024, none.
func (p *Preview) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*p = -1
		return nil
	}
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil || n > icap.MaxPreview {
		return fmt.Errorf("%s is no preview, allowed: none, or 0 to %d bytes", configs.Quote(string(text)), icap.MaxPreview)
	}
	*p = Preview(n)
	return nil
}

// Wanted says what may stand there.
func (*Preview) Wanted() string { return "none, or a number of bytes such as 1024" }
