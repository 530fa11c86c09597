package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strings"
)

// Places in a chart, in its own units, which are about CSS pixels.
const (
	chartWidth = 640
	plotLeft   = 68
	plotRight  = chartWidth - 28
	plotTop    = 30
	underPlot  = 48
)

// Chart is a diagram with two axes. Its colours are those of the classes of its series, which a page gives light and dark ones.
type Chart struct {
	Title  string
	About  string // what it shows, in a sentence
	X, Y   Axis
	Height int // 0: 300
	Series []Series
	Lines  []Line
	Bands  []Band

	// The values under the pointer are those of Series.Values at From, From+Step, … on the X axis, as distances on it are. Step 0: none.
	From, Step float64
}

// Kind is how a series is drawn.
type Kind int

const (
	Curve   Kind = iota // a line through the points, with a gap where one is missing
	Stack               // the area from the series before it, one point for the time to the next
	Columns             // a bar for each point, from X to To
	Marks               // single points: filled if Shape is empty
)

// Series is a row of points.
type Series struct {
	Name   string
	Class  string // s1 to s8, bad, good, plan or faint
	Kind   Kind
	Dashed bool
	Cross  bool // Marks are crosses, not discs
	Points []Point
	Values []float64 // under the pointer
}

// Point is a point of a series. A Y that is not a number is a gap.
type Point struct {
	X, Y float64
	To   float64 // the end of a column or of a step
	Name string  // what the pointer shows
}

// Line is a straight line through the whole chart at a value of one axis.
type Line struct {
	Name     string
	At       float64
	Vertical bool // at X, otherwise at Y
	Class    string
}

// Band is the range of X between two values.
type Band struct {
	Name     string
	From, To float64
	Class    string
}

// drawing is an SVG that is being written.
type drawing struct {
	strings.Builder
	chart        *Chart
	left, bottom float64 // of the plot
}

// SVG draws the chart.
func (c *Chart) SVG() template.HTML {
	if c.Height == 0 {
		c.Height = 300
	}
	c.fit()
	d := &drawing{chart: c, left: plotLeft, bottom: float64(c.Height - underPlot)}
	fmt.Fprintf(d, `<svg class="chart" viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, c.Height, esc(c.Title+". "+c.About))
	d.bands()
	d.axes()
	d.series()
	d.lines()
	fmt.Fprintf(d, `<path class="cursor" d="M%d %dV%s"/></svg>`, plotLeft, plotTop, num(d.bottom))
	return template.HTML(d.String())
}

func esc(text string) string { return html.EscapeString(printable(text)) }

// printable replaces what XML does not allow, which names and errors from outside may have.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0xFFFE || r == 0xFFFF {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

// num writes a coordinate.
func num(v float64) string { return shortest(math.Round(v*100)/100, 6) }

// fit chooses the ends of axes that have none.
func (c *Chart) fit() {
	var x, y extent
	var stacked []float64
	for _, s := range c.Series {
		for i, p := range s.Points {
			if !finite(p.Y) {
				continue
			}
			x.add(p.X)
			if p.To > p.X {
				x.add(p.To)
			}
			if s.Kind != Stack {
				y.add(p.Y)
				continue
			}
			for len(stacked) <= i {
				stacked = append(stacked, 0)
			}
			stacked[i] += p.Y
			y.add(stacked[i])
		}
	}
	for _, l := range c.Lines {
		if !l.Vertical {
			y.add(l.At)
		}
	}
	c.X.fit(x.low, x.high)
	c.Y.fit(y.low, y.high)
}

// extent is the range of values. Those that are not above 0 do not count for its low end, which only logarithms need.
type extent struct{ low, high float64 }

func (e *extent) add(v float64) {
	if v > 0 && (e.low == 0 || v < e.low) {
		e.low = v
	}
	e.high = max(e.high, v)
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// x and y return places. What is beyond the ends of an axis is at its end.
func (d *drawing) x(v float64) float64 {
	return d.left + clamp(d.chart.X.at(v))*(plotRight-d.left)
}

func (d *drawing) y(v float64) float64 {
	return d.bottom - clamp(d.chart.Y.at(v))*(d.bottom-plotTop)
}

func clamp(p float64) float64 {
	if math.IsNaN(p) {
		return 0
	}
	return min(max(p, 0), 1)
}

func (d *drawing) axes() {
	c := d.chart
	var grid strings.Builder
	for _, v := range c.Y.ticks(c.Height / 50) {
		y := d.y(v)
		fmt.Fprintf(&grid, "M%d %sH%d", plotLeft, num(y), plotRight)
		fmt.Fprintf(d, `<text class="tick" x="%d" y="%s" text-anchor="end">%s</text>`, plotLeft-8, num(y+4), esc(c.Y.label(v)))
	}
	for _, v := range c.X.ticks(5) {
		x := d.x(v)
		fmt.Fprintf(&grid, "M%s %sv5", num(x), num(d.bottom))
		fmt.Fprintf(d, `<text class="tick" x="%s" y="%s" text-anchor="middle">%s</text>`, num(x), num(d.bottom+20), esc(c.X.label(v)))
	}
	fmt.Fprintf(d, `<path class="grid" d="%s"/><path class="axis" d="M%d %sH%d"/>`, grid.String(), plotLeft, num(d.bottom), plotRight)
	fmt.Fprintf(d, `<text class="unit" x="8" y="16">%s</text>`, esc(c.Y.Title))
	fmt.Fprintf(d, `<text class="unit" x="%d" y="%d" text-anchor="end">%s</text>`, plotRight, c.Height-8, esc(c.X.Title))
}

func (d *drawing) bands() {
	for _, b := range d.chart.Bands {
		from, to := d.x(b.From), d.x(b.To)
		fmt.Fprintf(d, `<rect class="band %s" x="%s" y="%d" width="%s" height="%s"><title>%s</title></rect>`,
			esc(b.Class), num(from), plotTop, num(max(to-from, 1)), num(d.bottom-plotTop), esc(b.Name))
	}
}

func (d *drawing) lines() {
	row := plotTop - 7 // labels of vertical lines are below each other
	for _, l := range d.chart.Lines {
		if l.Vertical {
			row += 18
			x, anchor, shift := d.x(l.At), "start", 4.0
			if x > (plotLeft+plotRight)/2 {
				anchor, shift = "end", -4
			}
			fmt.Fprintf(d, `<path class="mark %s" d="M%s %dV%s"/><text class="mark" x="%s" y="%d" text-anchor="%s">%s</text>`,
				esc(l.Class), num(x), plotTop, num(d.bottom), num(x+shift), row, anchor, esc(l.Name))
			continue
		}
		y := d.y(l.At)
		fmt.Fprintf(d, `<path class="mark %s" d="M%d %sH%d"/><text class="mark" x="%d" y="%s">%s</text>`,
			esc(l.Class), plotLeft, num(y), plotRight, plotLeft+6, num(y-5), esc(l.Name))
	}
}

func (d *drawing) series() {
	var base []float64 // heights of what is stacked so far
	for i := range d.chart.Series {
		s := &d.chart.Series[i]
		switch s.Kind {
		case Curve:
			d.curve(s)
		case Columns:
			d.columns(s)
		case Marks:
			d.marks(s)
		case Stack:
			for len(base) < len(s.Points) {
				base = append(base, 0)
			}
			d.stack(s, base)
		}
	}
}

func (d *drawing) curve(s *Series) {
	var path strings.Builder
	drawn, last := false, [2]string{}
	for _, p := range s.Points {
		if !finite(p.X) || !finite(p.Y) || d.chart.Y.Scale == Log && p.Y <= 0 {
			drawn = false
			continue
		}
		here := [2]string{num(d.x(p.X)), num(d.y(p.Y))}
		switch {
		case !drawn: // a line of no length makes a point visible that has no neighbours
			fmt.Fprintf(&path, "M%s %sh0", here[0], here[1])
		case here != last:
			fmt.Fprintf(&path, "L%s %s", here[0], here[1])
		}
		drawn, last = true, here
	}
	if path.Len() == 0 {
		return
	}
	dashed := ""
	if s.Dashed {
		dashed = " dashed"
	}
	fmt.Fprintf(d, `<path class="line %s%s" d="%s"/>`, esc(s.Class), dashed, path.String())
}

// stack draws an area on top of base, which it raises.
func (d *drawing) stack(s *Series, base []float64) {
	if len(s.Points) == 0 {
		return
	}
	var upper, lower strings.Builder
	for i, p := range s.Points {
		top := base[i]
		if finite(p.Y) {
			top += p.Y
		}
		from, to := num(d.x(p.X)), num(d.x(p.To))
		fmt.Fprintf(&upper, "L%s %sL%s %s", from, num(d.y(top)), to, num(d.y(top)))
		base[i] = top
	}
	for i := len(s.Points) - 1; i >= 0; i-- {
		p := s.Points[i]
		under := base[i]
		if finite(p.Y) {
			under -= p.Y
		}
		fmt.Fprintf(&lower, "L%s %sL%s %s", num(d.x(p.To)), num(d.y(under)), num(d.x(p.X)), num(d.y(under)))
	}
	fmt.Fprintf(d, `<path class="area %s" d="M%sZ"><title>%s</title></path>`, esc(s.Class), upper.String()[1:]+lower.String(), esc(s.Name))
}

func (d *drawing) columns(s *Series) {
	for _, p := range s.Points {
		if !(p.Y > 0) || !finite(p.Y) {
			continue
		}
		from, to, y := d.x(p.X), d.x(p.To), d.y(p.Y)
		fmt.Fprintf(d, `<rect class="column %s" x="%s" y="%s" width="%s" height="%s"><title>%s</title></rect>`,
			esc(s.Class), num(from), num(y), num(max(to-from-0.5, 0.5)), num(max(d.bottom-y, 0.5)), esc(p.Name))
	}
}

func (d *drawing) marks(s *Series) {
	for _, p := range s.Points {
		if !finite(p.X) || !finite(p.Y) {
			continue
		}
		x, y := d.x(p.X), d.y(p.Y)
		if s.Cross {
			fmt.Fprintf(d, `<path class="cross %s" d="M%s %sl9 9m0 -9l-9 9"><title>%s</title></path>`, esc(s.Class), num(x-4.5), num(y-4.5), esc(p.Name))
			continue
		}
		fmt.Fprintf(d, `<circle class="disc %s" cx="%s" cy="%s" r="5"><title>%s</title></circle>`, esc(s.Class), num(x), num(y), esc(p.Name))
	}
}
