package client

import (
	"slices"
	"strings"
	"testing"

	"tributary/layout"
)

func TestRows(t *testing.T) {
	l, err := layout.New([]layout.Tensor{{Name: "table", Shape: []int{4, 2}}, {Name: "bias", Shape: []int{3}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRows(l)
	if _, runs := r.Gradient(); runs == nil || len(runs) != 0 {
		t.Errorf("of nothing: %v", runs)
	}
	for _, x := range []struct {
		tensor string
		row    int
		g      []float32
		err    string
	}{
		{"table", 3, []float32{1, 2}, ""},
		{"table", 1, []float32{0, 0}, ""}, // touched all the same
		{"table", 3, []float32{10, 20}, ""},
		{"bias", 0, []float32{7, 8, 9}, ""},
		{"tabel", 0, nil, `no tensor "tabel"`},
		{"table", 4, []float32{1, 2}, "row 4"},
		{"table", -1, []float32{1, 2}, "row -1"},
		{"bias", 1, []float32{1, 2, 3}, "row 1"},
		{"table", 0, []float32{1}, "1 numbers for a row of 2"},
	} {
		switch err := r.Add(x.tensor, x.row, x.g); {
		case x.err == "" && err != nil, x.err != "" && (err == nil || !strings.Contains(err.Error(), x.err)):
			t.Errorf("Add(%q, %d, %v): %v, want %q", x.tensor, x.row, x.g, err, x.err)
		}
	}
	grad, runs := r.Gradient()
	if want := []layout.Range{{Lo: 2, Hi: 4}, {Lo: 6, Hi: 11}}; !slices.Equal(runs, want) {
		t.Errorf("runs %v, want %v", runs, want)
	}
	if want := []float32{0, 0, 0, 0, 0, 0, 11, 22, 7, 8, 9}; !slices.Equal(grad, want) {
		t.Errorf("gradient %v, want %v", grad, want)
	}
	r.Reset()
	if grad, runs = r.Gradient(); len(runs) != 0 || slices.ContainsFunc(grad, func(x float32) bool { return x != 0 }) {
		t.Errorf("after Reset: %v, %v", grad, runs)
	}
}
