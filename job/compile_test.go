package job

import (
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary/layout"
	"tributary/optim"
	"tributary/shard"
)

var update = flag.Bool("update", false, "rewrite golden files")

// tensorsJob is a job of 100 000 parameters whose workers bring their own
// model.
func tensorsJob(change func(*Spec)) *Spec {
	s := Default()
	s.Model = Model{Kind: "tensors", Tensors: []layout.Tensor{{Name: "w", Shape: []int{300, 300}}, {Name: "b", Shape: []int{10000}, NoDecay: true}}}
	s.Data = Data{Name: "none"}
	s.Optimizer.Rule = "sgd"
	if change != nil {
		change(s)
	}
	return s
}

func compile(t *testing.T, s *Spec) *Pipeline {
	t.Helper()
	p, err := Compile(NewRecord(s, nil))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// How a step closes follows from the rule and from what the job promises (C3).
func TestModes(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Spec)
		want   shard.Mode
	}{
		{"element-wise", func(*Spec) {}, shard.Streaming},
		{"sums", func(s *Spec) { s.Optimizer.Rule = "lamb" }, shard.ByReduction},
		{"shrink", func(s *Spec) { s.OnLoss = Shrink }, shard.ByDecision},
		{"wait", func(s *Spec) { s.OnLoss = Wait }, shard.Streaming},
		{"ranks that are not recomputed", func(s *Spec) { s.Recompute = false }, shard.ByDecision},
		{"stale, pinned", func(s *Spec) { s.Staleness, s.Pinned = 2, true }, shard.Streaming},
		{"stale, not pinned", func(s *Spec) { s.Staleness = 2 }, shard.ByDecision},
		{"asynchronous", func(s *Spec) { s.Staleness = -1 }, shard.Async},
	} {
		p := compile(t, tensorsJob(c.change))
		if p.Mode != c.want || !strings.Contains(p.Explain(), "closing        "+c.want.String()) {
			t.Errorf("%s: closes %v, want %v", c.name, p.Mode, c.want)
		}
		if p.Broadcast == (p.Mode == shard.Async) {
			t.Errorf("%s: broadcast %v", c.name, p.Broadcast)
		}
	}
	for _, name := range optim.Names() {
		r, err := optim.New[float32](name, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := shard.Streaming
		if r.Spec().Reductions() > 0 {
			want = shard.ByReduction
		}
		if p := compile(t, tensorsJob(func(s *Spec) { s.Optimizer.Rule = name })); p.Mode != want {
			t.Errorf("%s closes %v, want %v", name, p.Mode, want)
		}
	}
}

// What shards and coordinator are made for is what the job says.
func TestConfigs(t *testing.T) {
	s := tensorsJob(func(s *Spec) {
		s.Name, s.Ranks, s.Workers, s.Servers, s.Shards, s.Steps, s.Seed = "big", 6, 3, 2, 5, 77, 9
		s.OnBad, s.OnLoss, s.Window, s.RankState, s.Checkpoint = "null", Wait, 3, true, Checkpoint{Every: 11, Keep: 4}
		s.Timeouts = Timeouts{Worker: Duration(3 * time.Second), Start: Duration(time.Hour), Retry: Duration(time.Second / 4)}
	})
	p := compile(t, s)
	chunks := 0
	for k := range p.Shards {
		c := p.ShardConfig(k)
		if c.Job != "big" || c.ID != k || c.Shards != 5 || c.Ranks != 6 || c.Steps != 77 || c.CutEvery != 11 || !c.RankState || c.Window != 3 ||
			c.Seed != 9 || !c.NullBad || c.Mode != shard.Streaming || c.Staleness != 0 || c.Chunks.Lo != chunks || !c.Broadcast || c.LR(1) <= 0 {
			t.Errorf("shard %d: %+v", k, c)
		}
		chunks = c.Chunks.Hi
	}
	if chunks != p.Layout.Chunks() || p.Keep != 4 {
		t.Errorf("shards hold %d of %d chunks", chunks, p.Layout.Chunks())
	}
	c := p.CoordConfig()
	if c.Job != "big" || c.Ranks != 6 || c.Workers != 3 || c.Shards != 5 || c.Steps != 77 || c.OnLoss != Wait || c.WorkerTimeout != 3*time.Second || c.StartTimeout != time.Hour {
		t.Errorf("coordinator: %+v", c)
	}
	// A model with fewer chunks than shards asked for has fewer shards.
	small := compile(t, tensorsJob(func(s *Spec) { s.Model.Tensors = []layout.Tensor{{Name: "w", Shape: []int{300}}} }))
	if small.Shards != 2 || small.Layout.Chunks() != 2 {
		t.Errorf("300 parameters: %d shards of %d chunks", small.Shards, small.Layout.Chunks())
	}
}

// The windows of all ranks together stay below what a broker queues, and what
// may be staged below the budget; a job beyond it is refused with the sum.
func TestMemory(t *testing.T) {
	for _, ranks := range []int{1, 2, 16, 500, 4096} {
		for _, staleness := range []int{-1, 0, 3} {
			for _, rule := range []string{"sgd", "lamb"} {
				if rule == "lamb" && staleness < 0 {
					continue
				}
				p := compile(t, tensorsJob(func(s *Spec) {
					s.Ranks, s.Staleness, s.Pinned, s.Optimizer.Rule, s.MemoryBudget = ranks, staleness, staleness > 0, rule, 1<<50
					s.Model.Tensors = []layout.Tensor{{Name: "w", Shape: []int{1 << 24}}}
				}))
				chunk, perServer := int64(4*p.Layout.ChunkLen), int64(p.perServer())
				staged := chunk
				if rule == "sgd" { // whose contributions may be runs of single parameters
					staged *= 3
				}
				if p.Window < 1 || p.Window > maxCredits || p.Window > 1 && chunk*int64(p.Window)*int64(ranks)*perServer*int64(max(staleness, 0)+1) > inFlight {
					t.Errorf("%d ranks, staleness %d, %s: a window of %d for each of the steps under way", ranks, staleness, rule, p.Window)
				}
				most := int64(ranks) * int64(max(staleness, 0)+1) * staged * int64(p.Layout.Chunks())
				if p.Staged < staged || p.Staged > most || p.Mode != shard.Streaming && p.Staged < most {
					t.Errorf("%d ranks, staleness %d, %s: %d bytes staged of at most %d", ranks, staleness, rule, p.Staged, most)
				}
			}
		}
	}
	s := tensorsJob(func(s *Spec) { s.Ranks, s.Optimizer.Rule, s.MemoryBudget = 16, "lamb", 4<<20 })
	_, err := Compile(NewRecord(s, nil))
	var ps Problems
	if !errors.As(err, &ps) || ps[0].Path != "memory_budget" || !strings.Contains(err.Error(), "16 ranks × 1 steps × 8 shards per server × 4 chunks × 16KiB = 8MiB") ||
		!strings.Contains(err.Error(), "budget of 4MiB") {
		t.Errorf("beyond the budget: %v", err)
	}
}

// Sums that exceed 64 bits exceed every budget too.
func TestMemoryOverflow(t *testing.T) {
	refused := 0
	for _, ranks := range []int{1, 4096} {
		for _, staleness := range []int{0, 1023, 1024} {
			for _, parameters := range []int{1 << 20, 1 << 40} {
				s := tensorsJob(func(s *Spec) {
					s.Ranks, s.Staleness, s.Recompute, s.Steps, s.MemoryBudget = ranks, staleness, false, maxSteps, 1<<61
					s.Model.Tensors = []layout.Tensor{{Name: "w", Shape: []int{parameters}}}
				})
				want := float64(ranks) * float64(staleness+1) * float64(parameters) * 12
				p, err := Compile(NewRecord(s, nil))
				switch {
				case err != nil && want > 1<<61 && errors.Is(err, ErrSpec):
					refused++
				case err != nil || want > 1<<61 || float64(p.Staged) < want || p.Window < 1 || p.Explain() == "":
					t.Errorf("%d ranks, staleness %d, %d parameters: %v, %+v", ranks, staleness, parameters, err, p)
				}
			}
		}
	}
	if refused != 2 {
		t.Errorf("%d jobs refused, want 2: 4096 ranks of 2^40 parameters at two stalenesses", refused)
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Record)
		want   error
	}{
		"bad specification":  {func(r *Record) { r.Spec.Steps = 0 }, ErrSpec},
		"no tensors":         {func(r *Record) { r.Tensors = nil }, layout.ErrLayout},
		"hostile shape":      {func(r *Record) { r.Tensors = []layout.Tensor{{Name: "w", Shape: []int{math.MaxInt, math.MaxInt}}} }, layout.ErrLayout},
		"a trillion chunks":  {func(r *Record) { r.Spec.Chunk, r.Tensors = 1, []layout.Tensor{{Name: "w", Shape: []int{1 << 40}}} }, layout.ErrLayout},
		"owners of nothing":  {func(r *Record) { r.Owners = []string{"a"} }, ErrRecord},
		"rule nobody knows":  {func(r *Record) { r.Spec.Optimizer.Rule = "magic" }, ErrSpec},
		"sums, asynchronous": {func(r *Record) { r.Spec.Optimizer.Rule, r.Spec.Staleness = "lamb", -1 }, ErrSpec},
		"sums, shrink":       {func(r *Record) { r.Spec.Optimizer.Rule, r.Spec.OnLoss = "lamb", Shrink }, ErrSpec},
	} {
		r := NewRecord(tensorsJob(nil), nil)
		c.change(r)
		if _, err := Compile(r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// What explain says is part of the interface: these pages are read before they
// change.
func TestExplain(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"streaming": func(*Spec) {},
		"reduction": func(s *Spec) { s.Optimizer.Rule, s.Ranks, s.Servers = "lamb", 16, 3 },
		"decision": func(s *Spec) {
			s.OnLoss, s.Recompute, s.OnBad, s.Checkpoint.Every, s.Optimizer.Schedule.Kind = Shrink, false, "null", 0, "cosine"
		},
		"stale":        func(s *Spec) { s.Staleness, s.OnLoss, s.Level = 2, Wait, "durable" },
		"asynchronous": func(s *Spec) { s.Staleness, s.Aggregate.By = -1, "uniform" },
		"groups": func(s *Spec) {
			s.Optimizer.Rule, s.Optimizer.Clip = "lamb", optim.ClipSpec{Value: 1, Adaptive: 0.01, Norm: 1}
			s.Optimizer.NoDecay, s.Optimizer.Groups = []string{"w"}, []Group{{Match: []string{"b*"}, Rule: "adamw"}}
		},
	} {
		p := compile(t, tensorsJob(change))
		got := p.Explain() + "\n" + p.Tensors()
		file := filepath.Join("testdata", "explain", name+".txt")
		if *update {
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestRecord(t *testing.T) {
	r := NewRecord(tensorsJob(func(s *Spec) { s.Optimizer.Hyper = map[string]any{"momentum": 0.9, "nesterov": true} }), nil)
	r.Owners, r.Coordinator = slices.Repeat([]string{"ps-1"}, 8), "ps-1"
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	a, err := got.Encode()
	if err != nil || string(a) != string(b) {
		t.Errorf("%s\nbecame\n%s", b, a)
	}
	if x, y := compile(t, r.Spec), compile(t, got.Spec); x.Explain() != y.Explain() {
		t.Errorf("%s\nbecame\n%s", x.Explain(), y.Explain())
	}
	for name, text := range map[string]string{
		"nothing":           ``,
		"null":              `null`,
		"no specification":  `{"name":"job","numerics":2}`,
		"another name":      strings.Replace(string(b), `"name":"job"`, `"name":"jab"`, 1),
		"another numerics":  strings.Replace(string(b), `"numerics":2`, `"numerics":1`, 1),
		"too many owners":   strings.Replace(string(b), `"owners":[`, `"owners":[`+strings.Repeat(`"",`, 1<<14), 1),
		"too long":          `{"name":"` + strings.Repeat("x", maxRecordBytes) + `"}`,
		"half":              string(b[:len(b)/2]),
		"something else":    `[]`,
		"two":               string(b) + string(b),
		"a word for number": strings.Replace(string(b), `"steps":300`, `"steps":"many"`, 1),
	} {
		if r, err := DecodeRecord([]byte(text)); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// A record comes from a peer: whatever is in it, reading and compiling it ends
// with a pipeline that can be explained, or with an error.
func FuzzRecord(f *testing.F) {
	for _, change := range []func(*Spec){nil, func(s *Spec) { s.Optimizer.Rule = "lamb" }, func(s *Spec) { s.Staleness = -1 }} {
		b, err := NewRecord(tensorsJob(change), nil).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatal(err)
			}
			return
		}
		if _, err := r.Encode(); err != nil {
			t.Fatal(err)
		}
		p, err := Compile(r)
		if err != nil {
			if !errors.Is(err, ErrSpec) && !errors.Is(err, ErrRecord) && !errors.Is(err, layout.ErrLayout) {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		if p.Window < 1 || p.Staged < 0 || p.Shards < 1 || p.Explain() == "" || p.Tensors() == "" {
			t.Fatalf("compiled to %+v", p)
		}
		p.ShardConfig(p.Shards - 1)
		p.LR(1)
		p.LR(p.Steps)
	})
}

// Users count updates; shards, coordinator and cuts the phases of them.
func TestPhasesOfAJob(t *testing.T) {
	p := compile(t, tensorsJob(func(s *Spec) {
		s.Optimizer.Rule, s.Steps, s.Checkpoint.Every = "sam", 30, 10
	}))
	c, k := p.ShardConfig(0), p.CoordConfig()
	if p.Steps != 60 || c.Steps != 60 || k.Steps != 60 || k.Phases != 2 || c.CutEvery != 20 {
		t.Errorf("%d steps, shards %d with a cut every %d, coordinator %d in %d phases", p.Steps, c.Steps, c.CutEvery, k.Steps, k.Phases)
	}
	s := Default()
	s.Optimizer.Rule, s.Eval.Every = "sam", 7
	if p, err := Compile(NewRecord(s, tensorsJob(nil).Model.Tensors)); err != nil || p.ShardConfig(0).EvalEvery != 14 {
		t.Errorf("want an evaluation every 14 steps: %v", err)
	}
}

// Only workers that may name runs of parameters can, and only their jobs pay for
// the memory that runs may take.
func TestSparse(t *testing.T) {
	for _, c := range []struct {
		name string
		spec *Spec
		want bool
	}{
		{"tensors", tensorsJob(nil), true},
		{"tensors, momentum", tensorsJob(func(s *Spec) { s.Optimizer.Hyper = map[string]any{"momentum": 0.9} }), false},
		{"tensors, bf16", tensorsJob(func(s *Spec) { s.Encoding = BF16 }), false},
		{"tensors, adamw", tensorsJob(func(s *Spec) { s.Optimizer.Rule = "adamw" }), false},
		{"a network", func() *Spec { s := Default(); s.Optimizer.Rule = "adagrad"; return s }(), false},
		{"a sparse model", func() *Spec { s := Default(); s.Optimizer.Rule, s.Model.Kind = "adagrad", "sparse"; return s }(), true},
	} {
		p, err := Compile(NewRecord(c.spec, tensorsJob(nil).Model.Tensors))
		if err != nil {
			t.Fatal(err)
		}
		if p.Sparse != c.want || p.ShardConfig(0).Dense == c.want || (p.stagedBytes() > p.chunkBytes()) != c.want {
			t.Errorf("%s: sparse %v, dense %v, %v of %v", c.name, p.Sparse, p.ShardConfig(0).Dense, p.stagedBytes(), p.chunkBytes())
		}
	}
}
