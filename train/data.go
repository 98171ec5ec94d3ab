package train

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"path/filepath"
)

// Dataset is labelled examples in memory.
type Dataset struct {
	Name string
	X    []float32 // N×Dim, row by row, scaled to about [0, 1]
	Y    []int32   // N classes, each in [0, Classes)

	N, Dim, Classes int
	Height, Width   int // of images, Height·Width = Dim; 0 for other data

	// Labels names the classes as the file does; nil if class k is just k.
	Labels []string
}

// Shape is what [NewModel] needs to know.
func (d *Dataset) Shape() Shape {
	return Shape{Dim: d.Dim, Classes: d.Classes, Height: d.Height, Width: d.Width}
}

// Gather copies the examples with the given indices into x, of
// len(indices)·Dim elements, and y, of len(indices).
func (d *Dataset) Gather(indices []int, x []float32, y []int32) {
	for i, k := range indices {
		copy(x[i*d.Dim:(i+1)*d.Dim], d.X[k*d.Dim:(k+1)*d.Dim])
		y[i] = d.Y[k]
	}
}

// pick is a data set of the examples with the given indices.
func (d *Dataset) pick(indices []int) *Dataset {
	out := *d
	out.N = len(indices)
	out.X, out.Y = make([]float32, out.N*d.Dim), make([]int32, out.N)
	d.Gather(indices, out.X, out.Y)
	return &out
}

// ErrFormat is wrapped by the error for a file that was read but is broken,
// truncated, inconsistent or beyond what the package takes. A file that is not
// there gives an error that wraps [io/fs.ErrNotExist].
var ErrFormat = errors.New("bad data file")

// maxFileBytes bounds what a file may hold once decompressed.
const maxFileBytes = 1 << 30

// Source says where a data set comes from.
type Source struct {
	Name  string // digits, mnist, fashion-mnist, csv or libsvm
	Path  string // folder of (fashion-)mnist, empty for the usual places; file of csv and libsvm
	Label string // column of a csv: first, last or a name in its header; empty means last
}

// Load is [Source.Load] with no word on the label. dir is the path.
func Load(name, dir string, seed uint64) (train, test *Dataset, split *Split, err error) {
	return Source{Name: name, Path: dir}.Load(seed)
}

// Load reads a data set and its test part. If the data come in one piece they
// are split by [NewSplit] with the seed, and split says how; it is nil for
// mnist and fashion-mnist, which have a test set of their own.
//
// Grey values are divided by their maximum. The features of csv and libsvm are
// scaled so that the training part spans [0, 1] in each; a feature that is
// constant there becomes 0.
func (s Source) Load(seed uint64) (train, test *Dataset, split *Split, err error) {
	var all *Dataset
	switch s.Name {
	case "digits":
		all, err = digits()
	case "mnist":
		train, test, err = loadMNIST(s.Name, s.Path, "data/mnist")
		return train, test, nil, err
	case "fashion-mnist":
		train, test, err = loadMNIST(s.Name, s.Path, "data/fashion-mnist", "/usr/share/datasets/fashion-mnist")
		return train, test, nil, err
	case "csv":
		all, err = loadText(s.Path, func(b []byte) (*Dataset, error) { return decodeCSV(b, s.Label) })
	case "libsvm":
		all, err = loadText(s.Path, decodeLibSVM)
	default:
		err = fmt.Errorf("data set %q: want digits, mnist, fashion-mnist, csv or libsvm", s.Name)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	split = NewSplit(all.Y, all.Classes, seed)
	if len(split.Train) == 0 || len(split.Test) == 0 {
		return nil, nil, nil, fmt.Errorf("%w: %s: too few examples to set a fifth of each class aside", ErrFormat, s.Path)
	}
	train, test = all.pick(split.Train), all.pick(split.Test)
	if s.Name == "csv" || s.Name == "libsvm" {
		rescale(train, test)
	}
	return train, test, split, nil
}

//go:embed digits/digits.csv.gz
var digitsFile []byte

// digits is the data set that is part of the program, see digits/README.md.
func digits() (*Dataset, error) {
	b, err := decompress(bytes.NewReader(digitsFile))
	if err != nil {
		return nil, fmt.Errorf("built-in digits: %w", err)
	}
	d, err := decodeCSV(b, "last")
	if err != nil {
		return nil, fmt.Errorf("built-in digits: %w", err)
	}
	d.Name, d.Height, d.Width, d.Labels = "digits", 8, 8, nil
	for i := range d.X {
		d.X[i] /= 16
	}
	return d, nil
}

// loadText decodes a csv or libsvm file, plain or compressed by gzip.
func loadText(path string, decode func([]byte) (*Dataset, error)) (*Dataset, error) {
	if path == "" {
		return nil, errors.New("the data set needs the path of a file")
	}
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	d, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, path, err)
	}
	d.Name = filepath.Base(path)
	return d, nil
}

// rescale maps each feature of both parts by x ↦ (x−lo)/(hi−lo), where lo and
// hi are its extremes in the training part: the test part must not have a say.
func rescale(train, test *Dataset) {
	for j := range train.Dim {
		lo, hi := math.Inf(1), math.Inf(-1)
		for i := j; i < len(train.X); i += train.Dim {
			lo, hi = min(lo, float64(train.X[i])), max(hi, float64(train.X[i]))
		}
		for _, d := range []*Dataset{train, test} {
			for i := j; i < len(d.X); i += d.Dim {
				if lo == hi {
					d.X[i] = 0
				} else {
					d.X[i] = float32((float64(d.X[i]) - lo) / (hi - lo))
				}
			}
		}
	}
}
