package shard

import (
	"testing"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/optim"
)

// evalJob is a job whose point of evaluation is a slot.
func evalJob(t tb, ranks int, steps uint64) Config {
	t.Helper()
	cfg := sgdJob(t, ranks, steps)
	cfg.Rule, cfg.EvalEvery = newRule(t, "schedule_free_sgd", nil), 2
	return cfg
}

// pulled asks for a point of every chunk at a version; the code is that of the
// first refusal.
func (s *story) pulled(point optim.Point, v uint64) ([]float32, wire.Code) {
	s.t.Helper()
	var x []float32
	for k, sh := range s.shards {
		for ci := sh.cfg.Chunks.Lo; ci < sh.cfg.Chunks.Hi; ci++ {
			h := wire.Header{Kind: wire.Pull, Job: testJob, Worker: "w0", Timeline: sh.led.Timeline, Shard: uint32(k), Epoch: sh.cfg.Epoch,
				Chunk: uint32(ci), Step: v, Seq: 9, Point: point}
			o := sh.Handle(wire.NewMessage(h, nil, nil), s.now)
			if len(o) == 0 {
				s.t.Fatalf("no answer to a pull of version %d", v)
			}
			o = o[len(o)-1:] // after a question for news
			if a := o[0].H; a.Kind == wire.Ack {
				if a.Point != point || a.Step != v || a.Chunk != uint32(ci) {
					s.t.Errorf("refused with %+v", a)
				}
				return nil, a.Code
			}
			if a := o[0].H; a.Kind != wire.Params || a.Point != point || v != Latest && a.Step != v || a.Seq != 9 || wire.Checksum(o[0].Tail) != a.CRC {
				s.t.Errorf("pull of version %d answered with %+v", v, a)
			}
			x = append(x, viewFloat32(append([]byte(nil), o[0].Tail...))...)
		}
	}
	return x, wire.OK
}

// The point of evaluation stays readable where workers evaluate, as long as
// somebody may still owe a contribution to a step computed there; after a restore
// too.
func TestEvalPoint(t *testing.T) {
	for _, staleness := range []int{0, 1, 4} {
		for _, every := range []uint64{1, 2, 3} {
			cfg := evalJob(t, 2, 12)
			cfg.Staleness, cfg.EvalEvery, cfg.CutEvery = staleness, every, 6
			s, x := newStory(t, cfg, 3), newTwin(cfg)
			points := [][]float32{append([]float32(nil), x.r.Point(optim.Eval)...)}
			check := func(now, base uint64) {
				t.Helper()
				for v := range now + 2 {
					got, code := s.pulled(optim.Eval, v)
					kept := v == now || v < now && v >= base && v%every == 0 && v+2*uint64(staleness)+1 >= now
					switch {
					case v > now && code != wire.ErrAhead, kept && code != wire.OK, v <= now && code != wire.OK && code != wire.ErrGone:
						t.Fatalf("staleness %d, every %d, at %d: version %d gives %v", staleness, every, now, v, code)
					case code == wire.OK:
						sameBits(t, "point of evaluation", got, points[v])
					}
				}
				if got, code := s.pulled(optim.Eval, Latest); code != wire.OK {
					t.Fatalf("latest: %v", code)
				} else {
					sameBits(t, "latest", got, points[now])
				}
			}
			check(0, 0)
			for step := range uint64(9) {
				s.step(step)
				x.step(s.contribute(0, step), s.contribute(1, step))
				points = append(points, append([]float32(nil), x.r.Point(optim.Eval)...))
				check(step+1, 0)
			}
			s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 6, Epochs: s.epochs()})
			check(6, 6)
			for step := uint64(6); step < 12; step++ {
				s.step(step)
				if step >= 9 {
					x.step(s.contribute(0, step), s.contribute(1, step))
					points = append(points, append([]float32(nil), x.r.Point(optim.Eval)...))
				}
				check(step+1, 6)
			}
		}
	}
}

// While a shard loads its cut there is nothing to evaluate, and where the point
// of evaluation is the parameters a pull of it is one of those.
func TestEvalRefused(t *testing.T) {
	cfg := evalJob(t, 1, 4)
	s := newStory(t, cfg, 2)
	s.step(0)
	for _, sh := range s.shards {
		sh.Decide(&ledger.Decision{N: sh.led.N + 1, Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 2, Epochs: s.epochs()}, s.now)
	}
	if _, code := s.pulled(optim.Eval, 1); code != wire.ErrBusy {
		t.Errorf("while loading: %v", code)
	}
	s = newStory(t, sgdJob(t, 1, 4), 2)
	s.step(0)
	h := wire.Header{Kind: wire.Pull, Job: testJob, Worker: "w0", Timeline: 1, Epoch: testEpoch, Step: 1, Point: optim.Eval}
	if o := s.shards[0].Handle(wire.NewMessage(h, nil, nil), 0); len(o) != 1 || o[0].H.Kind != wire.Params || string(o[0].Tail) != s.params[place{0, 1}] && s.params[place{0, 1}] != "" {
		t.Errorf("parameters asked for as the point of evaluation: %+v", o)
	}
}
