package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"testing"

	"tributary/checkpoint"
	"tributary/job"
	"tributary/layout"
	"tributary/ledger"
)

// final is what a job ended with: the parameters as they were handed out, and
// everything in its last cut (parameters, slots, scalars), by name and merged
// over the shards, all as bytes.
type final struct {
	params []byte
	cut    map[string][]byte
}

// differs says in what two results differ, or "".
func (f *final) differs(g *final) string {
	if !bytes.Equal(f.params, g.params) {
		return fmt.Sprintf("the parameters differ: %s", firstDifference(f.params, g.params))
	}
	if a, b := slices.Sorted(maps.Keys(f.cut)), slices.Sorted(maps.Keys(g.cut)); !slices.Equal(a, b) {
		return fmt.Sprintf("the cuts hold %v and %v", a, b)
	}
	for _, name := range slices.Sorted(maps.Keys(f.cut)) {
		if !bytes.Equal(f.cut[name], g.cut[name]) {
			return fmt.Sprintf("%s of the cuts differ: %s", name, firstDifference(f.cut[name], g.cut[name]))
		}
	}
	return ""
}

func firstDifference(a, b []byte) string {
	if len(a) != len(b) {
		return fmt.Sprintf("%d and %d bytes", len(a), len(b))
	}
	n, first := 0, -1
	for i := 0; i+4 <= len(a); i += 4 {
		if !bytes.Equal(a[i:i+4], b[i:i+4]) {
			n++
			if first < 0 {
				first = i
			}
		}
	}
	at := max(first, 0)
	return fmt.Sprintf("%d of %d words, the first at %d: %x and %x", n, len(a)/4, at/4, a[at:at+4], b[at:at+4])
}

// same fails the test unless got is want, bit for bit.
func same(t *testing.T, got, want *final) {
	t.Helper()
	if d := got.differs(want); d != "" {
		t.Errorf("not the bits of the undisturbed run: %s", d)
	}
}

func floatBytes(x []float32) []byte {
	b := make([]byte, 0, 4*len(x))
	for _, f := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return b
}

// readSafetensors is a second, simple reader of the format: it returns the
// numbers in order and checks that the header describes them without gaps.
func readSafetensors(name string) (params []byte, shapes map[string][]int, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, nil, err
	}
	if len(b) < 8 || binary.LittleEndian.Uint64(b) > uint64(len(b)-8) {
		return nil, nil, fmt.Errorf("%s: %d bytes are no safetensors file", name, len(b))
	}
	n := int(binary.LittleEndian.Uint64(b))
	var head map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+n], &head); err != nil {
		return nil, nil, fmt.Errorf("%s: header: %w", name, err)
	}
	delete(head, "__metadata__")
	params = b[8+n:]
	shapes, covered := map[string][]int{}, 0
	for tensor, raw := range head {
		var x struct {
			Type    string `json:"dtype"`
			Shape   []int  `json:"shape"`
			Offsets [2]int `json:"data_offsets"`
		}
		if err := json.Unmarshal(raw, &x); err != nil {
			return nil, nil, fmt.Errorf("%s: %s: %w", name, tensor, err)
		}
		size := 4
		for _, d := range x.Shape {
			size *= d
		}
		if x.Type != "F32" || x.Offsets[1]-x.Offsets[0] != size || x.Offsets[1] > len(params) {
			return nil, nil, fmt.Errorf("%s: %s: %+v does not fit", name, tensor, x)
		}
		shapes[tensor] = x.Shape
		covered += size
	}
	if covered != len(params) {
		return nil, nil, fmt.Errorf("%s: the tensors take %d bytes of %d", name, covered, len(params))
	}
	return params, shapes, nil
}

// readCut merges the shards' files of a cut, each in the folder that dirs has
// for its owner. Ranges of one name must cover the model without gaps; what has
// no range stands in every shard that has it with the same bits.
func readCut(rec *job.Record, dir func(owner string) string, id ledger.CutID) (map[string][]byte, error) {
	parts, out := map[string][]layout.Section{}, map[string][]byte{}
	for k, owner := range rec.Owners {
		sections, err := checkpoint.Dir{Path: dir(owner)}.Load(k, id)
		if err != nil {
			return nil, fmt.Errorf("shard %d on %s: %w", k, owner, err)
		}
		for _, s := range sections {
			if s.F32 != nil {
				parts[s.Name] = append(parts[s.Name], s)
				continue
			}
			b := slices.Clone(s.Raw)
			for _, f := range s.F64 {
				b = binary.LittleEndian.AppendUint64(b, math.Float64bits(f))
			}
			if other, twice := out[s.Name]; twice && !bytes.Equal(b, other) {
				return nil, fmt.Errorf("shard %d: %s differs from another shard's", k, s.Name)
			}
			out[s.Name] = b
		}
	}
	for name, ss := range parts {
		slices.SortFunc(ss, func(a, b layout.Section) int { return a.Lo - b.Lo })
		at := 0
		for _, s := range ss {
			// A slot may be one that only some tensors have.
			if s.Lo < at || name == "params" && s.Lo != at || len(s.F32) != s.Len() {
				return nil, fmt.Errorf("%s: range %v after %d", name, s.Range, at)
			}
			at = s.Hi
			out[name] = append(out[name], floatBytes(s.F32)...)
		}
	}
	return out, nil
}
