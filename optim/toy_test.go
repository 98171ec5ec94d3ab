package optim

import (
	"math"
	"testing"

	"tributary/internal/vec"
)

// toy is a rule as a newcomer would write one: this type and one call of
// Register are all of it. It steps along the sign of the gradient, as far as
// the gradients of the tensor are large on average:
//
//	w ← w − lr·mean|g|·sign(g)
type toy[T Float] struct{ spec Spec }

var toyDef = Def{
	Name: "toy", Doc: "steps along signs, scaled by the mean magnitude of a tensor's gradient", Paper: "none",
	Hypers: []Hyper{rate(0.1)},
	New32:  newToy[float32],
	New64:  newToy[float64],
}

func newToy[T Float](Values) (Rule[T], error) {
	spec := elementWise("toy")
	spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "abs", Over: Tensor}}}, {}}
	return &toy[T]{spec}, nil
}

func (r *toy[T]) Spec() *Spec { return &r.spec }

func (r *toy[T]) Prepare(_ int, k *Step) { k.Coef = append(k.Coef[:0], k.LR) }

func (r *toy[T]) Apply(pass int, k *Step, s *Span[T]) {
	var buf [SpanLen]T
	x := buf[:len(s.W)]
	if pass == 0 {
		vec.Abs(x, s.G[Grad])
		s.Sums[0][0] += vec.Sum(x)
		return
	}
	mean := s.Tensor.Reduced[0][0][0] / float64(s.Tensor.Info.Len)
	vec.Sign(x, s.G[Grad])
	vec.SubScaled(s.Out, s.W, T(k.Coef[0]*mean), x)
}

// A rule is one file: what is registered can be made by name, checked, and run
// over any number of shards with the same bits.
func TestToyRule(t *testing.T) {
	Register(toyDef)
	defer func() {
		registry.Lock()
		delete(registry.defs, "toy")
		registry.Unlock()
	}()
	if _, err := New[float64]("toy", map[string]any{"lr": -1}); err == nil {
		t.Error("a rate below 0 was taken")
	}
	rule, err := New[float64]("toy", nil)
	if err != nil {
		t.Fatal(err)
	}
	l := testModel(t, 4)
	w, g := jumble[float64](l.P, 1), jumble[float64](l.P, 2)
	var one *Runner[float64]
	for shards := 1; shards <= 7; shards++ {
		r := NewRunner(rule, l, w, RunnerOptions{Shards: shards})
		for range 3 {
			step(r, 0.1, constantly(g))
		}
		if one == nil {
			one = r
		}
		checkEqual(t, "toy", one, r)
	}
	for i, got := range one.Params() {
		ti := l.Find(i)
		sum := 0.0
		for _, x := range g[ti.Offset : ti.Offset+ti.Len] {
			sum += math.Abs(x)
		}
		want := w[i]
		if !ti.Buffer && g[i] != 0 {
			want -= math.Copysign(0.3*sum/float64(ti.Len), g[i])
		}
		if math.Abs(got-want) > 1e-12 {
			t.Errorf("%s[%d] = %v, want %v", ti.Name, i-ti.Offset, got, want)
		}
	}
}
