package shard

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary/comm/wire"
	"tributary/internal/rng"
	"tributary/layout"
	"tributary/optim"
)

// The promise of package optim and this one: for every rule there is, the bits
// do not depend on the number of shards, on the order of arrival, on what is
// repeated, or on how the step closes; they are those of one process.
func TestBitIdentical(t *testing.T) {
	for _, name := range append(optim.Names(), sumsSpec.Name) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { checkBitIdentical(t, name) })
		})
	}
}

// draw makes the rule with hyper-parameters that let all of its state count.
func drawRule(t *rapid.T, name string) optim.Rule[float32] {
	if name == sumsSpec.Name {
		return sumsRule{}
	}
	hyper := map[string]any{}
	d, _ := optim.Lookup(name)
	for _, h := range d.Hypers {
		switch h.Name {
		case "weight_decay":
			hyper[h.Name] = rapid.SampledFrom([]float64{0, 0.1}).Draw(t, h.Name)
		case "momentum":
			hyper[h.Name] = rapid.SampledFrom([]float64{0, 0.9}).Draw(t, h.Name)
		}
	}
	if name == "dot" && hyper["momentum"] == 0.0 {
		hyper["delta"] = 0 // the rates are momentum ± delta
	}
	if r, err := optim.New[float32](name, hyper); err == nil {
		return r
	}
	return newRule(t, name, nil) // whose defaults go with each other
}

func checkBitIdentical(t *rapid.T, name string) {
	cfg := sgdJob(t, rapid.IntRange(1, 4).Draw(t, "ranks"), 3)
	cfg.Rule = drawRule(t, name)
	cfg.Layout = smallModel(t, rapid.SampledFrom([]int{4, 8, 11}).Draw(t, "chunk"))
	if cfg.Rule.Spec().Reductions() > 0 {
		cfg.Mode = ByReduction
	} else {
		cfg.Mode = rapid.SampledFrom([]Mode{Streaming, ByReduction, ByDecision}).Draw(t, "mode")
	}
	spec := cfg.Rule.Spec()
	cfg.Steps *= uint64(len(spec.Phases))
	if len(spec.Phases) == 1 && spec.History() == 0 {
		cfg.Staleness = rapid.IntRange(0, 2).Draw(t, "staleness")
	}
	sparse := spec.Runs && rapid.Bool().Draw(t, "sparse")
	cfg.Half = !sparse && rapid.IntRange(0, 3).Draw(t, "half") == 0
	x := newTwin(cfg)
	var want [][]float32
	null := map[[2]uint64]bool{}
	one := newStory(t, cfg, 1)
	one.sparse = sparse
	for step := range cfg.Steps {
		var cs []contribution
		for r := range cfg.Ranks {
			c := one.contribute(r, step)
			if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
				c, null[[2]uint64{uint64(r), step}] = contribution{rank: r, step: step}, true
			}
			cs = append(cs, c)
		}
		x.step(cs...)
		want = append(want, x.r.Point(optim.Perturbed)) // or the parameters, after a whole update
	}
	// One number of shards per check: all of them are the twin's equal.
	shards := rapid.SampledFrom([]int{1, 2, 3, 7}).Draw(t, "shards")
	s := newStory(t, cfg, shards)
	s.sparse = sparse
	s.shuffled(t, null)
	s.at(cfg.Steps)
	for p, bits := range s.params {
		if r := cfg.Layout.Chunk(int(p.chunk)); p.version > 0 && bits != string(wire.Bytes32(want[p.version-1][r.Lo:r.Hi])) {
			t.Fatalf("%d shards: version %d of chunk %d differs from the twin's", shards, p.version, p.chunk)
		}
	}
	s.equal(x)
	s.balanced()
	if cfg.Mode == ByReduction && s.shards[0].stats.Reductions < cfg.Steps {
		t.Fatalf("%d reductions in %d steps", s.shards[0].stats.Reductions, cfg.Steps)
	}
}

// shuffled pushes all steps of all ranks, as far ahead as the staleness
// allows, in any order of messages, some of them twice. The order is one drawn
// number: drawing every choice would take ten times as long.
func (s *story) shuffled(t *rapid.T, null map[[2]uint64]bool) {
	order, n := rng.New(rapid.Uint64().Draw(t, "order"), "order"), uint64(0)
	s.cfg.Broadcast = true
	for k := range s.shards {
		s.shards[k].cfg.Broadcast = true
	}
	next := make([]uint64, s.cfg.Ranks)
	var flying []envelope
	pick := func(of int) int { n++; return order.IntN(n, of) }
	for {
		lowest := s.cfg.Steps
		for _, sh := range s.shards {
			lo, _ := sh.Versions()
			lowest = min(lowest, lo)
		}
		var may []int
		for r, step := range next {
			if step < s.cfg.Steps && step <= lowest+uint64(s.cfg.Staleness) {
				may = append(may, r)
			}
		}
		switch {
		case len(may) > 0 && (len(flying) == 0 || pick(8) == 0):
			r := may[pick(len(may))]
			c := s.contribute(r, next[r])
			if null[[2]uint64{uint64(r), next[r]}] {
				c = contribution{rank: r, step: next[r]}
			}
			flying = append(flying, s.messages(c)...)
			next[r]++
		case len(flying) > 0:
			i := pick(len(flying))
			m := flying[i]
			if pick(10) > 0 { // else it comes again
				flying = slices.Delete(flying, i, i+1)
			}
			s.send(m.to, m.h, m.tail)
			s.settleIn(pick)
		default:
			return
		}
	}
}

// A tensor whose rows lie in three shards each: what a rule adds up over rows,
// columns, tensors and the model crosses two borders inside of one row.
func TestRowOverThreeShards(t *testing.T) {
	for name, rule := range map[string]optim.Rule[float32]{"lamb": newRule(t, "lamb", map[string]any{"weight_decay": 0.1}), "sums": sumsRule{}} {
		cfg := sgdJob(t, 2, 4)
		cfg.Mode, cfg.Rule = ByReduction, rule
		cfg.Layout = newLayout(t, 8, layout.Tensor{Name: "w", Shape: []int{2, 40}, Init: layout.Init{Kind: layout.Uniform, Scale: 1}})
		s := newStory(t, cfg, 5)
		var holders []int
		for k, sh := range s.shards {
			if sh.lo < 40 { // a part of row 0
				holders = append(holders, k)
			}
		}
		if len(holders) != 3 || s.shards[1].n >= 40 {
			t.Fatalf("row 0 lies in shards %v, want three", holders)
		}
		x := newTwin(cfg)
		for step := range cfg.Steps {
			s.step(step)
			x.step(s.contribute(0, step), s.contribute(1, step))
			s.equal(x)
		}
		stages := uint64(len(rule.Spec().Phases[0].Passes) - 1)
		for k, sh := range s.shards {
			if got, want := sh.stats.Reductions, stages*cfg.Steps; got != want {
				t.Errorf("%s: shard %d ran %d reductions, want %d", name, k, got, want)
			}
			for i := range rule.Spec().Slots {
				if a, b := fmt.Sprint(sh.tens[0].Slots[i]), fmt.Sprint(s.shards[0].tens[0].Slots[i]); a != b {
					t.Errorf("%s: slot %d of the tensor on shard %d is %s, on shard 0 %s", name, i, k, a, b)
				}
			}
			if a, b := sh.scal, s.shards[0].scal; fmt.Sprint(a[1].k.Next, a[1].k.Reduced) != fmt.Sprint(b[1].k.Next, b[1].k.Reduced) {
				t.Errorf("%s: scalars on shard %d are %+v, on shard 0 %+v", name, k, a, b)
			}
		}
		s.balanced()
	}
}

// An asynchronous job is the twin that takes contributions one by one in the
// order of the shard's log.
func TestAsync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := sgdJob(t, rapid.IntRange(1, 3).Draw(t, "ranks"), 3)
		cfg.Mode, cfg.Staleness = Async, -1
		s := newStory(t, cfg, rapid.SampledFrom([]int{1, 2, 3, 7}).Draw(t, "shards"))
		x := newTwin(cfg)
		next := make([]uint64, cfg.Ranks)
		for range int(cfg.Steps) * cfg.Ranks {
			r := rapid.IntRange(0, cfg.Ranks-1).Draw(t, "rank")
			for next[r] == cfg.Steps {
				r = (r + 1) % cfg.Ranks
			}
			c := s.contribute(r, next[r])
			ms := s.messages(c)
			ms = append(ms, ms[rapid.IntRange(0, len(ms)-1).Draw(t, "again")])
			for _, i := range rapid.Permutation(indices(len(ms))).Draw(t, "order") {
				s.send(ms[i].to, ms[i].h, ms[i].tail)
			}
			next[r]++
			x.step(c)
			s.equal(x)
		}
		s.push(s.contribute(0, 0)) // long applied
		s.equal(x)
		s.balanced()
		for k, sh := range s.shards {
			if lo, _ := sh.Versions(); lo != cfg.Steps*uint64(cfg.Ranks) {
				t.Errorf("shard %d made %d updates", k, lo)
			}
			if e := sh.LogSince(sh.log.Next - 1)[0]; len(e.Inputs) != 1 || e.Inputs[0].CRC == 0 {
				t.Errorf("shard %d: the log names %+v", k, e.Inputs)
			}
		}
	})
}

func indices(n int) []int {
	x := make([]int, n)
	for i := range x {
		x[i] = i
	}
	return x
}
