package train

import (
	"image"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// inked counts the pixels of the picture near a curve's colour.
func inked(img image.Image, r, g, b uint32) int {
	n := 0
	near := func(a, b uint32) bool { return a>>8+12 > b && b+12 > a>>8 }
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y++ {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x++ {
			if pr, pg, pb, _ := img.At(x, y).RGBA(); near(pr, r) && near(pg, g) && near(pb, b) {
				n++
			}
		}
	}
	return n
}

func TestCurves(t *testing.T) {
	var steps, loss []float64
	for i := range 600 {
		steps = append(steps, float64(i))
		loss = append(loss, 2.3*math.Exp(-float64(i)/90)+0.05+0.03*math.Sin(float64(i*i)))
	}
	nan := math.NaN()
	for _, c := range []struct {
		name                      string
		steps, loss, accStep, acc []float64
		lossInk, accInk           bool
	}{
		{"full", steps, loss, []float64{100, 200, 300, 400, 500, 600}, []float64{0.7, 0.85, 0.91, 0.95, 0.97, 0.975}, true, true},
		{"loss only", steps, loss, nil, nil, true, false},
		{"one point each", []float64{1}, []float64{2.3}, []float64{1}, []float64{0.1}, true, true},
		{"nothing", nil, nil, nil, nil, false, false},
		{"accuracy only", nil, nil, []float64{1, 2}, []float64{0.1, 0.1}, false, true},
		{"constant", []float64{1, 2}, []float64{1, 1}, nil, nil, true, false},
		{"not finite", []float64{1, 2, 3}, []float64{1, nan, math.Inf(1)}, []float64{1, 2}, []float64{nan, nan}, true, false},
	} {
		path := filepath.Join(t.TempDir(), "curves.png")
		if err := Curves(path, c.steps, c.loss, c.accStep, c.acc); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := inked(img, 0x1f, 0x77, 0xb4) > 20; got != c.lossInk {
			t.Errorf("%s: loss drawn: %v, want %v", c.name, got, c.lossInk)
		}
		if got := inked(img, 0xd6, 0x45, 0x27) > 20; got != c.accInk {
			t.Errorf("%s: accuracy drawn: %v, want %v", c.name, got, c.accInk)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".curves-*")); len(left) > 0 {
			t.Errorf("%s: left %v", c.name, left)
		}
	}
}

func TestCurvesErrors(t *testing.T) {
	dir := t.TempDir()
	if err := Curves(filepath.Join(dir, "a.png"), []float64{1}, nil, nil, nil); err == nil {
		t.Error("a step without a loss: no error")
	}
	if err := Curves(filepath.Join(dir, "none", "a.png"), nil, nil, nil, nil); err == nil {
		t.Error("a folder that is not there: no error")
	}
	if err := os.Mkdir(filepath.Join(dir, "b.png"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Curves(filepath.Join(dir, "b.png"), nil, nil, nil, nil); err == nil {
		t.Error("a folder in the place of the file: no error")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".curves-*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
