package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"

	"tributary/layout"
)

// ErrSafetensors is wrapped by the errors of [ReadSafetensors].
var ErrSafetensors = errors.New("bad safetensors file")

// ReadSafetensors reads the float32 parameters of a model of layout l from a
// file in the safetensors format. Tensors are found by name; the file may hold
// others. Its memory is that of the file and of the parameters.
func ReadSafetensors(path string, l *layout.Layout) ([]float32, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSafetensors, err)
	}
	x, err := decodeSafetensors(b, l)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrSafetensors, path, err)
	}
	return x, nil
}

func decodeSafetensors(b []byte, l *layout.Layout) ([]float32, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%d bytes, too short for a header", len(b))
	}
	n := le.Uint64(b)
	if n > uint64(len(b)-8) {
		return nil, fmt.Errorf("a header of %d bytes in a file of %d", n, len(b))
	}
	var head map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+n], &head); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	data := b[8+n:]
	params := make([]float32, l.P)
	for i := range l.Tensors {
		t := &l.Tensors[i]
		raw, ok := head[t.Name]
		if !ok {
			return nil, fmt.Errorf("has no tensor %q", t.Name)
		}
		var e struct {
			Type    string    `json:"dtype"`
			Shape   []int     `json:"shape"`
			Offsets [2]uint64 `json:"data_offsets"`
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		if e.Type != "F32" || fmt.Sprint(e.Shape) != fmt.Sprint(t.Shape) {
			return nil, fmt.Errorf("tensor %q is %s of shape %v, want F32 of %v", t.Name, e.Type, e.Shape, t.Shape)
		}
		lo, hi := e.Offsets[0], e.Offsets[1]
		if hi > uint64(len(data)) || lo > hi || hi-lo != uint64(4*t.Len) {
			return nil, fmt.Errorf("tensor %q: bytes %d to %d of %d, want %d", t.Name, lo, hi, len(data), 4*t.Len)
		}
		for j := range t.Len {
			x := math.Float32frombits(le.Uint32(data[lo+uint64(4*j):]))
			if x-x != 0 {
				return nil, fmt.Errorf("tensor %q is %v at element %d", t.Name, x, j)
			}
			params[t.Offset+j] = x
		}
	}
	return params, nil
}
