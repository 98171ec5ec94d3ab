package train

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

const (
	maxClasses  = 1 << 12
	maxFeatures = 1 << 20
)

// decodeCSV reads comma-separated numbers, one example a line, with one column
// of labels, which may be any text. A first line in which some feature is not
// a number is a header. label is as in [Source].
func decodeCSV(b []byte, label string) (*Dataset, error) {
	r := csv.NewReader(bytes.NewReader(b))
	r.ReuseRecord, r.TrimLeadingSpace = true, true
	first, err := r.Read()
	if err == io.EOF {
		return nil, errors.New("no lines")
	}
	if err != nil {
		return nil, err
	}
	if len(first) < 2 || len(first) > maxFeatures+1 {
		return nil, fmt.Errorf("%d columns: want a label and 1 to %d features", len(first), maxFeatures)
	}
	at, header, err := columns(first, label)
	if err != nil {
		return nil, err
	}
	d, names := &Dataset{Dim: len(first) - 1}, []string(nil)
	row := first
	for {
		if !header {
			for j, cell := range row {
				if j == at {
					names = append(names, csvLabel(cell))
					continue
				}
				v, err := number(cell)
				if err != nil {
					line, _ := r.FieldPos(j)
					return nil, fmt.Errorf("line %d, column %d: %w", line, j+1, err)
				}
				d.X = append(d.X, v)
			}
		}
		header = false
		if row, err = r.Read(); err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return d, d.label(names)
}

// columns returns the index of the label's column and whether the first line
// is a header.
func columns(first []string, label string) (at int, header bool, err error) {
	switch label {
	case "", "last":
		at = len(first) - 1
	case "first":
	default:
		at = slices.IndexFunc(first, func(s string) bool { return strings.TrimSpace(s) == label })
		if at < 0 {
			return 0, false, fmt.Errorf("no column %q in the first line", label)
		}
		return at, true, nil
	}
	for j, cell := range first {
		if _, err := strconv.ParseFloat(strings.TrimSpace(cell), 64); j != at && err != nil {
			header = true
		}
	}
	return at, header, nil
}

// decodeLibSVM reads lines "label index:value ...". Indexes count from 1 and
// rise; what is left out is 0. Text from a # on is a comment. The result is
// dense, so data too sparse for that are refused.
func decodeLibSVM(b []byte) (*Dataset, error) {
	type entry struct {
		at int // row·2^20 + feature
		v  float32
	}
	var entries []entry
	var names []string
	d := &Dataset{}
	for i, line := range bytes.Split(b, []byte("\n")) {
		text, _, _ := strings.Cut(string(line), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		name, err := wholeLabel(fields[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		last := 0
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, ":")
			k, err := strconv.Atoi(key)
			if err != nil || k <= last || k > maxFeatures {
				return nil, fmt.Errorf("line %d: %.40q: want rising indexes from 1 to %d", i+1, f, maxFeatures)
			}
			v, err := number(value)
			if err != nil {
				return nil, fmt.Errorf("line %d: %.40q: %w", i+1, f, err)
			}
			entries = append(entries, entry{len(names)*maxFeatures + k - 1, v})
			last = k
		}
		d.Dim = max(d.Dim, last)
		names = append(names, name)
	}
	if d.Dim == 0 {
		return nil, errors.New("no features")
	}
	if size := len(names) * d.Dim; size > max(1<<16, 64*len(b)) {
		return nil, fmt.Errorf("%d examples of %d features are too sparse: this reader keeps zeros too", len(names), d.Dim)
	}
	d.X = make([]float32, len(names)*d.Dim)
	for _, e := range entries {
		d.X[e.at/maxFeatures*d.Dim+e.at%maxFeatures] = e.v
	}
	return d, d.label(names)
}

// label sets N, Y, Classes and Labels from the label of each example. Classes
// are in ascending order, by number if all labels are numbers.
func (d *Dataset) label(names []string) error {
	class, numeric := make(map[string]int32), true
	for i, s := range names {
		if s == "" {
			return fmt.Errorf("example %d has an empty label", i+1)
		}
		if _, ok := class[s]; !ok {
			class[s] = 0
			d.Labels = append(d.Labels, s)
			_, err := strconv.ParseFloat(s, 64)
			numeric = numeric && err == nil
		}
	}
	if n := len(d.Labels); n < 2 || n > maxClasses {
		return fmt.Errorf("%d different labels in %d examples: want 2 to %d; is this the right column?", n, len(names), maxClasses)
	}
	slices.SortFunc(d.Labels, func(a, b string) int {
		if !numeric {
			return strings.Compare(a, b)
		}
		x, _ := strconv.ParseFloat(a, 64) // parsed above
		y, _ := strconv.ParseFloat(b, 64)
		return cmp.Or(cmp.Compare(x, y), strings.Compare(a, b))
	})
	for i, s := range d.Labels {
		class[s] = int32(i)
	}
	d.N, d.Classes = len(names), len(d.Labels)
	d.Y = make([]int32, d.N)
	for i, s := range names {
		d.Y[i] = class[s]
	}
	return nil
}

// csvLabel is a label without spaces around it, whole numbers in the form of
// [wholeLabel]. It is a copy: a cell keeps the memory of its whole line.
func csvLabel(cell string) string {
	cell = strings.TrimSpace(cell)
	if whole, err := wholeLabel(cell); err == nil {
		return whole
	}
	return strings.Clone(cell)
}

// number reads a finite float32.
func number(s string) (float32, error) {
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 32)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%.40q is not a finite number", s)
	}
	return float32(v), nil
}

// wholeLabel brings "+1", "1" and "1.0" to one form.
func wholeLabel(s string) (string, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || v != math.Trunc(v) || math.Abs(v) > 1<<53 {
		return "", fmt.Errorf("label %.40q is not a whole number", s)
	}
	return strconv.FormatInt(int64(v), 10), nil
}
