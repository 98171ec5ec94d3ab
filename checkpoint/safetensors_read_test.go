package checkpoint

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tributary/layout"
)

func someLayout(t testing.TB) *layout.Layout {
	l, err := layout.New([]layout.Tensor{{Name: "w", Shape: []int{2, 3}}, {Name: "b", Shape: []int{3}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestReadSafetensors(t *testing.T) {
	l := someLayout(t)
	x := []float32{1, -2, 3.5, 1e-40, 0, 6, 7, 8, 9}
	b, err := Safetensors(l, x, map[string]string{"job": "j"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.safetensors")
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"whole":     {func(b []byte) []byte { return b }, ""},
		"empty":     {func(b []byte) []byte { return nil }, "too short"},
		"truncated": {func(b []byte) []byte { return b[:len(b)-1] }, `tensor "b"`},
		"header":    {func(b []byte) []byte { b[3] = 1; return b }, "a header of"},
		"json":      {func(b []byte) []byte { b[8] = 'x'; return b }, "header"},
		"name":      {func(b []byte) []byte { return []byte(strings.Replace(string(b), `"w"`, `"v"`, 1)) }, `no tensor "w"`},
		"shape":     {func(b []byte) []byte { return []byte(strings.Replace(string(b), `[2,3]`, `[3,2]`, 1)) }, "want F32 of [2 3]"},
		"type":      {func(b []byte) []byte { return []byte(strings.Replace(string(b), `F32`, `F16`, 1)) }, "F16"},
		"nan": {func(b []byte) []byte {
			le.PutUint32(b[len(b)-4:], math.Float32bits(float32(math.NaN())))
			return b
		}, "NaN at element 2"},
	} {
		if err := os.WriteFile(path, c.change(slices.Clone(b)), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadSafetensors(path, l)
		switch {
		case c.want == "" && (err != nil || !slices.Equal(got, x)):
			t.Errorf("%s: got %v, %v", name, got, err)
		case c.want != "" && (!errors.Is(err, ErrSafetensors) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got error %v, want %q", name, err, c.want)
		}
	}
}

func FuzzSafetensors(f *testing.F) {
	l := someLayout(f)
	b, err := Safetensors(l, make([]float32, l.P), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, err := decodeSafetensors(b, l); err == nil && len(x) != l.P {
			t.Errorf("%d parameters", len(x))
		}
	})
}
