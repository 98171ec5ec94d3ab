package train

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

var (
	lossColor     = color.RGBA{0x1f, 0x77, 0xb4, 0xff}
	accuracyColor = color.RGBA{0xd6, 0x45, 0x27, 0xff}
)

// Curves draws training loss (nats) and test accuracy (0 to 1) over the
// updates into a PNG file: two panels with a common axis, or one without
// accuracies. Points that are not finite are left out. The file appears whole
// or not at all. steps and loss, and accSteps and acc, pair up.
func Curves(path string, steps, loss, accSteps, acc []float64) error {
	if len(steps) != len(loss) || len(accSteps) != len(acc) {
		return fmt.Errorf("curves: %d losses at %d steps, %d accuracies at %d", len(loss), len(steps), len(acc), len(accSteps))
	}
	l, a := points(steps, loss), points(accSteps, acc)
	panels := []*plot.Plot{panel("training loss", l, lossColor)}
	if len(a) > 0 {
		panels = append(panels, panel("test accuracy", a, accuracyColor))
	}
	for _, p := range panels {
		p.X.Min, p.X.Max = extent(append(append(plotter.XYs{}, l...), a...))
	}
	panels[len(panels)-1].X.Label.Text = "updates"

	img := vgimg.NewWith(vgimg.UseWH(16*vg.Centimeter, vg.Length(1+6*len(panels))*vg.Centimeter), vgimg.UseDPI(120))
	tiles := draw.Tiles{Rows: len(panels), Cols: 1, PadY: 4 * vg.Millimeter,
		PadTop: 3 * vg.Millimeter, PadBottom: 3 * vg.Millimeter, PadLeft: 3 * vg.Millimeter, PadRight: 6 * vg.Millimeter}
	grid := make([][]*plot.Plot, len(panels))
	for i, p := range panels {
		grid[i] = []*plot.Plot{p}
	}
	for i, row := range plot.Align(grid, tiles, draw.New(img)) {
		panels[i].Draw(row[0])
	}
	return save(path, vgimg.PngCanvas{Canvas: img})
}

// panel is a plot of one curve, with dots if it has few points.
func panel(label string, xys plotter.XYs, c color.Color) *plot.Plot {
	p := plot.New()
	p.Y.Label.Text = label
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xe4}, color.Gray{0xe4}
	p.Add(grid)
	// Both fail only without points: those that are not finite are gone.
	if line, err := plotter.NewLine(xys); err == nil {
		line.Color, line.Width = c, vg.Points(1.3)
		p.Add(line)
	}
	if dots, err := plotter.NewScatter(xys); err == nil && len(xys) <= 40 {
		dots.Color, dots.Radius, dots.Shape = c, vg.Points(2), draw.CircleGlyph{}
		p.Add(dots)
	}
	if len(xys) == 0 {
		p.Y.Min, p.Y.Max = 0, 1
	}
	return p
}

// points pairs x and y and drops what is not finite.
func points(x, y []float64) plotter.XYs {
	var out plotter.XYs
	for i := range x {
		if d := x[i] - x[i] + y[i] - y[i]; d == 0 {
			out = append(out, plotter.XY{X: x[i], Y: y[i]})
		}
	}
	return out
}

// extent is the range of the x axis, never empty.
func extent(xys plotter.XYs) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, p := range xys {
		lo, hi = min(lo, p.X), max(hi, p.X)
	}
	switch {
	case lo > hi:
		return 0, 1
	case lo == hi:
		return lo - 1, hi + 1
	}
	return lo, hi
}

// save writes through a temporary file beside path.
func save(path string, c vgimg.PngCanvas) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".curves-*")
	if err != nil {
		return fmt.Errorf("curves: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("curves: %w", errors.Join(err, os.Remove(f.Name())))
		}
	}()
	if _, err = c.WriteTo(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Chmod(f.Name(), 0o644); err != nil { // CreateTemp makes it private
		return err
	}
	return os.Rename(f.Name(), path)
}
