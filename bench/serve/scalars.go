package serve

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/icap"
)

// Preview is the size of a preview: a number of bytes, or none.
type Preview int

const noPreview Preview = -1

// UnmarshalText reads 0, 4096, none.
func (p *Preview) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*p = noPreview
		return nil
	}
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil || n > icap.MaxPreview {
		return fmt.Errorf("%s is no preview, allowed: a number of bytes up to %d, or none", configs.Quote(string(text)), icap.MaxPreview)
	}
	*p = Preview(n)
	return nil
}

// Wanted is for messages of the decoder.
func (*Preview) Wanted() string { return "a number of bytes, or none" }

func (p Preview) config() int {
	switch p {
	case noPreview:
		return 0
	case 0:
		return dlpstub.PreviewZero
	}
	return int(p)
}

// Queue is how many requests wait: a number, or all (dlpstub.QueueAll).
type Queue int

// UnmarshalText reads 0, 100, all.
func (q *Queue) UnmarshalText(text []byte) error {
	return countOrAll((*int)(q), text, dlpstub.QueueAll)
}

// Wanted is for messages of the decoder.
func (*Queue) Wanted() string { return "a number, or all" }

// Skip is how many bytes are left out: a number, or all (dlpstub.SkipAll).
type Skip int

// UnmarshalText reads 0, 100, all.
func (s *Skip) UnmarshalText(text []byte) error { return countOrAll((*int)(s), text, dlpstub.SkipAll) }

// Wanted is for messages of the decoder.
func (*Skip) Wanted() string { return "a number of bytes, or all" }

func countOrAll(to *int, text []byte, all int) error {
	if string(text) == "all" {
		*to = all
		return nil
	}
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil {
		return fmt.Errorf("%s is no number, allowed: 0 and more, or all", configs.Quote(string(text)))
	}
	*to = int(n)
	return nil
}

// maxDelay bounds what is drawn.
const maxDelay = time.Hour

// Uniform is a distribution: any time between two, each as likely as the other.
type Uniform struct{ Least, Most time.Duration }

// UnmarshalText reads 10ms-30ms.
func (u *Uniform) UnmarshalText(text []byte) error {
	least, most, _ := strings.Cut(string(text), "-")
	a, err1 := time.ParseDuration(least)
	b, err2 := time.ParseDuration(most)
	if err1 != nil || err2 != nil || a < 0 || b < a || b > maxDelay {
		return fmt.Errorf("%s is none, allowed: two times up to 1h such as 10ms-30ms, the smaller one first", configs.Quote(string(text)))
	}
	*u = Uniform{a, b}
	return nil
}

// Wanted is for messages of the decoder.
func (*Uniform) Wanted() string { return "two times such as 10ms-30ms" }

// Lognormal is a distribution with a long tail, by its median and the deviation of its logarithm.
type Lognormal struct {
	Median time.Duration
	Sigma  float64
}

// UnmarshalText reads 20ms:0.5.
func (l *Lognormal) UnmarshalText(text []byte) error {
	median, sigma, _ := strings.Cut(string(text), ":")
	m, err1 := time.ParseDuration(median)
	s, err2 := strconv.ParseFloat(sigma, 64)
	if err1 != nil || err2 != nil || m <= 0 || m > maxDelay || math.IsNaN(s) || s < 0 || s > 5 {
		return fmt.Errorf("%s is none, allowed: a median up to 1h and a sigma of 0 to 5 such as 20ms:0.5", configs.Quote(string(text)))
	}
	*l = Lognormal{m, s}
	return nil
}

// Wanted is for messages of the decoder.
func (*Lognormal) Wanted() string { return "a median and a sigma such as 20ms:0.5" }

// FaultSpec is a fault as KIND:SHARE, with a status, a time or the word options behind where the kind has one.
type FaultSpec dlpstub.Fault

// UnmarshalText reads reset-body:1%, status:5%:503, trickle:0.01:50ms, late:100%:1s, status:100%:500:options, none.
func (f *FaultSpec) UnmarshalText(text []byte) error {
	parts := strings.Split(string(text), ":")
	*f = FaultSpec{Kind: dlpstub.ParseFault(parts[0]), Share: 1}
	if f.Kind == dlpstub.NoFault {
		if string(text) == "none" {
			return nil
		}
		return fmt.Errorf("%s is no fault, allowed: %s", configs.Quote(parts[0]), strings.Join(dlpstub.FaultNames(), ", "))
	}
	wrong := func(part string) error {
		return fmt.Errorf("%s does not fit %s, allowed: a share such as 1%%, then a status (of status), a time (of trickle, late), options, each after a colon",
			configs.Quote(part), f.Kind)
	}
	for i, part := range parts[1:] {
		switch {
		case i == 0:
			share, err := parseShare(part)
			if err != nil {
				return wrong(part)
			}
			f.Share = share
		case part == "options" && f.Kind != dlpstub.Refuse && f.Kind != dlpstub.Stall:
			f.Options = true
		case f.Kind == dlpstub.WrongStatus && f.Status == 0:
			n, err := strconv.ParseUint(part, 10, 16)
			if err != nil || n < 200 || n > 599 || n == 206 {
				return fmt.Errorf("%s is no status to answer with, allowed: 200 to 599, and not 206", configs.Quote(part))
			}
			f.Status = int(n)
		case (f.Kind == dlpstub.Trickle || f.Kind == dlpstub.Late) && f.Pause == 0:
			d, err := time.ParseDuration(part)
			if err != nil || d <= 0 || d > maxDelay {
				return wrong(part)
			}
			f.Pause = d
		default:
			return wrong(part)
		}
	}
	if f.Kind == dlpstub.WrongStatus && f.Status == 0 {
		f.Status = 500
	}
	return nil
}

// Wanted is for messages of the decoder.
func (*FaultSpec) Wanted() string { return "a fault such as reset-body:1%" }

// String is what UnmarshalText reads.
func (f FaultSpec) String() string {
	if f.Kind == dlpstub.NoFault {
		return "none"
	}
	s := f.Kind.String() + ":" + strconv.FormatFloat(f.Share*100, 'g', 6, 64) + "%"
	if f.Status != 0 {
		s += ":" + strconv.Itoa(f.Status)
	}
	if f.Pause != 0 {
		s += ":" + f.Pause.String()
	}
	if f.Options {
		s += ":options"
	}
	return s
}

// parseShare reads 1%, 0.01.
func parseShare(text string) (float64, error) {
	number, percent := strings.CutSuffix(text, "%")
	share, err := strconv.ParseFloat(number, 64)
	if percent {
		share /= 100
	}
	if err != nil || math.IsNaN(share) || share < 0 || share > 1 {
		return 0, fmt.Errorf("%s is no share, allowed: 0%% to 100%%, or 0 to 1", configs.Quote(text))
	}
	return share, nil
}
