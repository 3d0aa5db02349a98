package main

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// colours are those of Okabe and Ito, which colour-blind people can distinguish. A variant has the same colour in every
// plot.
var colours = []color.Color{
	color.RGBA{0x99, 0x99, 0x99, 0xff},
	color.RGBA{0x00, 0x00, 0x00, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff},
	color.RGBA{0x56, 0xb4, 0xe9, 0xff},
	color.RGBA{0x00, 0x72, 0xb2, 0xff},
	color.RGBA{0xe6, 0x9f, 0x00, 0xff},
	color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xf0, 0xe4, 0x42, 0xff},
}

func colourOf(name string) color.Color {
	i := slices.IndexFunc(variants, func(c variant) bool { return c.name == name })
	return colours[max(i, 0)%len(colours)]
}

// newPlot is an empty plot with letters that can be read.
func newPlot(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.Padding = vg.Points(8)
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle,
		&p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant, style.Font.Size = "Sans", vg.Points(11)
	}
	p.Title.TextStyle.Font.Size = vg.Points(13)
	p.BackgroundColor = color.White
	return p
}

// variants are those of the cells, each once, in the order of the tables.
func (r *Result) variants() []string {
	var names []string
	for _, c := range variants {
		if slices.ContainsFunc(r.Cells, func(cell Cell) bool { return cell.Variant == c.name }) {
			names = append(names, c.name)
		}
	}
	return names
}

// plotRatios draws the ratios to the reference as bars, with their spread, as SVG.
func plotRatios(r Result) ([]byte, error) {
	p := newPlot(fmt.Sprintf("Speed of FTP helpers, %s, Linux %s (%s = 1)", r.Situation, kernelName(r.Kernel), r.Reference))
	workloads := r.workloads()
	var names []string
	for _, name := range r.variants() {
		if name != r.Reference {
			names = append(names, name)
		}
	}
	const barWidth, groupWidth = 26, 0.8 // points, and part of the axis
	group := vg.Points(float64(barWidth*len(names)) / groupWidth)
	top := 1.0
	for i, name := range names {
		values := make(plotter.Values, len(workloads))
		spreads := &spreads{}
		// A figure stands in its bar, or above it if that is too low.
		var inside, above plotter.XYLabels
		offset := vg.Points(float64(barWidth) * (float64(i) - float64(len(names)-1)/2))
		for j, w := range workloads {
			c := r.cell(name, w)
			if c == nil {
				continue
			}
			ratio, ok := r.ratio(c, r.Reference)
			if !ok {
				continue
			}
			values[j] = ratio.median
			x := float64(j) + float64(offset/group)
			spreads.add(x, ratio)
			labels, y := &inside, 0.0
			if ratio.low < 0.12 {
				labels, y = &above, ratio.high
			}
			labels.XYs = append(labels.XYs, plotter.XY{X: x, Y: y})
			labels.Labels = append(labels.Labels, fmt.Sprintf("%.2f", ratio.median))
			top = max(top, ratio.high)
		}
		bars, err := plotter.NewBarChart(values, vg.Points(barWidth-4))
		if err != nil {
			return nil, err
		}
		bars.Color, bars.LineStyle.Width, bars.Offset = colourOf(name), 0, offset
		p.Add(bars)
		p.Legend.Add(name, bars)
		if err := addFigures(p, inside, onColour(colourOf(name))); err != nil {
			return nil, err
		}
		if err := addFigures(p, above, color.Black); err != nil {
			return nil, err
		}
		if len(spreads.XYs) == 0 {
			continue
		}
		ends, err := plotter.NewYErrorBars(spreads)
		if err != nil {
			return nil, err
		}
		ends.LineStyle.Color, ends.CapWidth = color.Gray{0x40}, vg.Points(6)
		p.Add(ends)
	}
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.Width, one.Dashes, one.Color = vg.Points(1), []vg.Length{vg.Points(4), vg.Points(3)}, colourOf(r.Reference)
	p.Add(one)
	p.Legend.Add(r.Reference, one)

	var ticks []string
	for _, w := range workloads {
		ticks = append(ticks, strings.ReplaceAll(w.String(), ", ", "\n"))
	}
	p.NominalX(ticks...)
	p.X.Min, p.X.Max = -0.5, float64(len(ticks))-0.5
	p.X.Padding = vg.Points(4)
	p.Y.Min, p.Y.Max = 0, top*1.08
	p.Y.Tick.Marker = quarters{}
	p.Y.Label.Text = "operations per second, ratio"

	const axis = 70
	canvas := vgsvg.New(vg.Points(axis+legendWidth)+group*vg.Length(len(ticks)), 12*vg.Centimeter)
	p.Draw(besideLegend(canvas, p))
	return svg(canvas)
}

// legendWidth is in points.
const legendWidth = 110

// besideLegend draws a plot's legend at the right of a canvas, takes it from the plot, and
// returns the part of the canvas that is left.
func besideLegend(canvas *vgsvg.Canvas, p *plot.Plot) draw.Canvas {
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	legend := p.Legend
	legend.Top, legend.Left, legend.Padding = true, true, vg.Points(4)
	legend.Draw(draw.Crop(all, all.Max.X-vg.Points(legendWidth-6), 0, 0, -vg.Points(34)))
	p.Legend = plot.NewLegend()
	return draw.Crop(all, vg.Points(8), -vg.Points(legendWidth), vg.Points(8), -vg.Points(8))
}

// addFigures writes numbers just above their points.
func addFigures(p *plot.Plot, figures plotter.XYLabels, ink color.Color) error {
	if len(figures.XYs) == 0 {
		return nil
	}
	labels, err := plotter.NewLabels(figures)
	if err != nil {
		return err
	}
	for i := range labels.TextStyle {
		style := &labels.TextStyle[i]
		style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(9)}
		style.XAlign, style.Color = draw.XCenter, ink
	}
	labels.Offset.Y = vg.Points(4)
	p.Add(labels)
	return nil
}

// onColour is black or white, whichever can be read on a colour.
func onColour(c color.Color) color.Color {
	if color.GrayModel.Convert(c).(color.Gray).Y > 0x70 {
		return color.Black
	}
	return color.White
}

// quarters are the ticks of ratios.
type quarters struct{}

// Ticks implements plot.Ticker.
func (quarters) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for i := math.Ceil(low * 4); i <= high*4; i++ {
		ticks = append(ticks, plot.Tick{Value: i / 4, Label: fmt.Sprintf("%.2f", i/4)})
	}
	return ticks
}

// spreads are error bars.
type spreads struct {
	plotter.XYs
	plotter.YErrors
}

func (s *spreads) add(x float64, ratio spread) {
	s.XYs = append(s.XYs, plotter.XY{X: x, Y: ratio.median})
	s.YErrors = append(s.YErrors, struct{ Low, High float64 }{ratio.median - ratio.low, ratio.high - ratio.median})
}

// plotLatency draws how many operations take how long at most, a panel for each workload, as SVG.
func plotLatency(r Result) ([]byte, error) {
	var panels []*plot.Plot
	for _, w := range r.workloads() {
		if w.bulk() {
			continue // one operation in each round
		}
		p, err := latencyPanel(&r, w)
		if err != nil {
			return nil, err
		}
		panels = append(panels, p)
	}
	if len(panels) == 0 {
		return nil, errors.New("there is nothing but long transfers")
	}
	const columns = 2
	var rows [][]*plot.Plot
	for row := range slices.Chunk(panels, columns) {
		for len(row) < columns {
			row = append(slices.Clip(row), newPlot(""))
			row[len(row)-1].HideAxes()
		}
		rows = append(rows, row)
	}
	canvas := vgsvg.New(columns*13*vg.Centimeter+vg.Points(legendWidth), vg.Length(len(rows))*8*vg.Centimeter)
	// The first workload is one that every variant takes part in.
	all := besideLegend(canvas, panels[0])
	for _, p := range panels[1:] {
		p.Legend = plot.NewLegend()
	}
	tiles := draw.Tiles{Rows: len(rows), Cols: columns, PadRight: vg.Points(8), PadX: vg.Points(20), PadY: vg.Points(18)}
	for i, row := range plot.Align(rows, tiles, all) {
		for j, c := range row {
			rows[i][j].Draw(c)
		}
	}
	return svg(canvas)
}

func latencyPanel(r *Result, w Workload) (*plot.Plot, error) {
	p := newPlot(w.String())
	p.X.Label.Text = "takes at most"
	p.Y.Label.Text = "of all operations"
	p.Add(plotter.NewGrid())
	shortest, longest := time.Duration(math.MaxInt64), time.Duration(1)
	for _, name := range r.variants() {
		c := r.cell(name, w)
		if c == nil || len(c.Latencies) == 0 {
			continue
		}
		line, err := plotter.NewLine(cumulated(c.Latencies))
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = colourOf(name), vg.Points(1.8)
		p.Add(line)
		p.Legend.Add(name, line)
		shortest = min(shortest, c.quantile(0.005))
		longest = max(longest, c.quantile(0.995))
	}
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, durationTicks{}
	p.X.Min, p.X.Max = max(float64(shortest)*0.9, 1), float64(longest)*1.1
	p.Y.Min, p.Y.Max = 0, 1
	p.Y.Tick.Marker = plot.ConstantTicks{
		{Value: 0, Label: "0"}, {Value: 0.25, Label: "25 %"}, {Value: 0.5, Label: "50 %"},
		{Value: 0.75, Label: "75 %"}, {Value: 0.99, Label: "99 %"},
	}
	return p, nil
}

// cumulated is the part of all operations that took at most so many nanoseconds, without the
// slowest and the fastest half percent.
func cumulated(l Latencies) plotter.XYs {
	var total, seen uint64
	for _, n := range l {
		total += n
	}
	var points plotter.XYs
	for _, ns := range slices.Sorted(maps.Keys(l)) {
		seen += l[ns]
		part := float64(seen) / float64(total)
		if part > 0.995 && len(points) > 0 {
			break
		}
		if part >= 0.005 {
			points = append(points, plotter.XY{X: float64(max(ns, 1)), Y: part})
		}
	}
	return points
}

// durationTicks are 1, 2 and 5 times powers of ten nanoseconds.
type durationTicks struct{}

// Ticks implements plot.Ticker.
func (durationTicks) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	wide := high/low > 300
	for power := 1.0; power <= high; power *= 10 {
		for _, step := range []float64{1, 2, 5} {
			value := power * step
			if value < low || value > high {
				continue
			}
			tick := plot.Tick{Value: value}
			if !wide || step == 1 {
				tick.Label = time.Duration(value).String()
			}
			ticks = append(ticks, tick)
		}
	}
	return ticks
}

func svg(canvas *vgsvg.Canvas) ([]byte, error) {
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	// Where that font is missing, those of the same widths are as good.
	const family = "font-family:Liberation Sans"
	return bytes.ReplaceAll(b.Bytes(), []byte(family), []byte(family+",Arial,Helvetica,sans-serif")), err
}
