package checkpoint

import (
	"encoding/json"
	"fmt"
	"math"

	"tributary/layout"
)

// Safetensors encodes a model in the safetensors format, which PyTorch and
// others read: eight bytes of header length, a JSON header with type, shape
// and offsets of every tensor, and the numbers in order. params is the whole
// parameter vector of l.
//
// https://github.com/huggingface/safetensors, "Format".
func Safetensors(l *layout.Layout, params []float32, meta map[string]string) ([]byte, error) {
	if len(params) != l.P {
		return nil, fmt.Errorf("safetensors: %d parameters, the model has %d", len(params), l.P)
	}
	type entry struct {
		Type    string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	head := map[string]any{}
	if len(meta) > 0 {
		head["__metadata__"] = meta
	}
	for i := range l.Tensors {
		t := &l.Tensors[i]
		shape := t.Shape
		if shape == nil {
			shape = []int{}
		}
		head[t.Name] = entry{"F32", shape, [2]int{4 * t.Offset, 4 * (t.Offset + t.Len)}}
	}
	js, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	for len(js)%8 != 0 {
		js = append(js, ' ')
	}
	b := make([]byte, 0, 8+len(js)+4*len(params))
	b = le.AppendUint64(b, uint64(len(js)))
	b = append(b, js...)
	for _, x := range params {
		b = le.AppendUint32(b, math.Float32bits(x))
	}
	return b, nil
}
