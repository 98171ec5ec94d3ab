package faults

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"tributary/checkpoint"
	"tributary/comm/wire"
	"tributary/ledger"
)

// golden is what the undisturbed run of a plan did.
type golden struct {
	cuts   map[uint64]*state    // by step
	inputs map[input]uint32     // checksums of contributions
	params map[published]uint32 // checksums of the versions of each chunk; timeline 0
	whole  map[uint64]uint32    // checksums of whole versions
	states map[rankStep]string  // of ranks before steps
}

// newGolden runs the plan undisturbed. It fails if that run does.
func newGolden(p Plan) (*golden, error) {
	w, err := newWorld(p.Calm(), nil, nil)
	if err != nil {
		return nil, err
	}
	w.begin()
	w.run()
	if w.fault == "" {
		w.audit.end()
	}
	if w.fault != "" {
		return nil, fmt.Errorf("undisturbed run: %s", w.fault)
	}
	g := &golden{cuts: map[uint64]*state{0: initialState(w)}, inputs: w.audit.inputs, params: map[published]uint32{}, whole: w.audit.whole, states: w.audit.states}
	for key, crc := range w.audit.published { // versions that are in no cut among them
		g.params[published{0, key.chunk, key.version}] = crc
	}
	for _, id := range w.auth.led.Cuts {
		if g.cuts[id.Step], err = w.readCut(id); err != nil {
			return nil, fmt.Errorf("undisturbed run: cut at step %d: %w", id.Step, err)
		}
	}
	for v, st := range g.cuts {
		x := st.f32["params"]
		g.whole[v] = wire.Checksum(wire.Bytes32(x))
		for c := range w.layout.Chunks() {
			r := w.layout.Chunk(c)
			g.params[published{0, uint32(c), v}] = wire.Checksum(wire.Bytes32(x[r.Lo:r.Hi]))
		}
	}
	return g, nil
}

func initialState(w *world) *state {
	st := newState()
	x := make([]float32, w.layout.P)
	r := w.layout.Chunk(0)
	r.Hi = w.layout.P
	w.layout.InitParams(w.plan.Seed, r, x)
	st.f32["params"] = x
	return st
}

// state is the content of a cut: numbers by parameter put together from all
// shards, and everything else, which is equal wherever it is kept.
type state struct {
	f32   map[string][]float32
	other map[string]string
}

func newState() *state { return &state{map[string][]float32{}, map[string]string{}} }

// readCut reads a cut from the disks of all servers.
func (w *world) readCut(id ledger.CutID) (*state, error) {
	st, filled := newState(), map[string]int{}
	for k, owner := range w.owner {
		parts, err := checkpoint.Decode(w.servers[owner].disk[cutFile{k, id}])
		if err != nil {
			return nil, fmt.Errorf("shard %d: %w", k, err)
		}
		for i := range parts {
			p := &parts[i]
			if p.F32 != nil {
				if st.f32[p.Name] == nil {
					st.f32[p.Name] = make([]float32, w.layout.P)
				}
				filled[p.Name] += copy(st.f32[p.Name][p.Lo:p.Hi], p.F32)
				continue
			}
			x := string(p.Raw)
			if p.F64 != nil {
				x = string(wire.Bytes64(p.F64))
			}
			if was, ok := st.other[p.Name]; ok && was != x {
				return nil, fmt.Errorf("shard %d: %q differs from another shard's", k, p.Name)
			}
			st.other[p.Name] = x
		}
	}
	for _, name := range slices.Sorted(maps.Keys(filled)) {
		if filled[name] != w.layout.P {
			return nil, fmt.Errorf("%q has %d of %d values", name, filled[name], w.layout.P)
		}
	}
	return st, nil
}

// diff says how got differs from want, bit for bit, or "".
func (want *state) diff(got *state) string {
	if want == nil {
		return "the undisturbed run has no such step"
	}
	names := slices.Sorted(maps.Keys(want.f32))
	if have := slices.Sorted(maps.Keys(got.f32)); !slices.Equal(names, have) {
		return fmt.Sprintf("sections %q, undisturbed run %q", have, names)
	}
	for _, n := range names {
		for i, x := range want.f32[n] {
			if math.Float32bits(got.f32[n][i]) != math.Float32bits(x) {
				return fmt.Sprintf("%s[%d] differs from the undisturbed run", n, i)
			}
		}
	}
	names = slices.Sorted(maps.Keys(want.other))
	if have := slices.Sorted(maps.Keys(got.other)); !slices.Equal(names, have) {
		return fmt.Sprintf("sections %q, undisturbed run %q", have, names)
	}
	for _, n := range names {
		if want.other[n] != got.other[n] {
			return fmt.Sprintf("%s differs from the undisturbed run", n)
		}
	}
	return ""
}
