package optim

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tributary/layout"
)

// golden is one recorded trajectory (testdata/golden/README.md).
type golden struct {
	Optimizer, Config, Dtype string
	Hyper                    map[string]any
	Tolerance                struct {
		Atol, Rtol float64
		Scale      string
	}
	Tensors []struct {
		Name  string
		Shape []int
		Init  []float64
	}
	InitState map[string]json.RawMessage `json:"init_state"`
	Steps     []map[string]json.RawMessage
}

// hyperNames maps the references' names of hyper-parameters to ours. "beta1"
// and "beta2" become a pair. A name that is not listed fails the replay.
var hyperNames = map[string]string{
	"lr": "lr", "momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov", "maximize": "maximize",
	"weight_decay": "weight_decay", "betas": "betas", "beta1": "betas", "beta2": "betas", "eps": "eps", "epsilon": "eps",
}

// inputNames maps the inputs of a step to roles.
var inputNames = map[string]Role{"grad": Grad, "hess_diag": HessDiag, "hess_grad": HessGrad, "grad_prev": GradPrev, "grad_kd": GradKD}

// outputNames are fields of a step that are not inputs.
var outputNames = []string{"step", "params", "loss", "aux", "eval_params"}

// ownGolden is where the golden files of this package are, and how many there
// must be.
const (
	ownGolden    = "testdata/golden"
	minOwnGolden = 15
)

// goldenFiles are those to replay: of the folder in TRIBUTARY_GOLDEN, any
// number of them, or this package's own.
func goldenFiles(t *testing.T) (files []string, min int) {
	dir := os.Getenv("TRIBUTARY_GOLDEN")
	if dir == "" {
		return goldenIn(t, ownGolden), minOwnGolden
	}
	if _, err := os.Stat(filepath.Join(dir, "optimizers")); err == nil {
		dir = filepath.Join(dir, "optimizers")
	}
	return goldenIn(t, dir), 1
}

func goldenIn(t *testing.T, dir string) []string {
	var files []string
	for _, pat := range []string{"*.json", "*.json.gz"} {
		f, err := filepath.Glob(filepath.Join(dir, pat))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f...)
	}
	slices.Sort(files)
	return files
}

func readGolden(t testing.TB, file string) *golden {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	g := new(golden)
	if err := json.NewDecoder(r).Decode(g); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return g
}

// hyper returns g's hyper-parameters under our names.
func (g *golden) hyper() (map[string]any, error) {
	h := map[string]any{}
	betas := []any{0.9, 0.999}
	for ref, x := range g.Hyper {
		ours, ok := hyperNames[ref]
		if !ok {
			return nil, fmt.Errorf("hyper-parameter %q of the reference has no counterpart", ref)
		}
		switch ref {
		case "beta1":
			betas[0] = x
			h[ours] = betas
		case "beta2":
			betas[1] = x
			h[ours] = betas
		default:
			h[ours] = x
		}
	}
	return h, nil
}

func (g *golden) layout(t testing.TB, chunk int) *layout.Layout {
	var ts []layout.Tensor
	for _, x := range g.Tensors {
		ts = append(ts, layout.Tensor{Name: x.Name, Shape: x.Shape})
	}
	l, err := layout.New(ts, chunk)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// vector reads one value per tensor, in either form the files use: an object
// by tensor name or a list in tensor order.
func (g *golden) vector(raw json.RawMessage) ([]float64, error) {
	byName := map[string][]float64{}
	if err := json.Unmarshal(raw, &byName); err != nil {
		var list [][]float64
		if err := json.Unmarshal(raw, &list); err != nil || len(list) != len(g.Tensors) {
			return nil, fmt.Errorf("tensors: %v", err)
		}
		for i, x := range list {
			byName[g.Tensors[i].Name] = x
		}
	}
	var out []float64
	for _, t := range g.Tensors {
		if len(byName[t.Name]) != len(t.Init) {
			return nil, fmt.Errorf("tensor %q: %d values, want %d", t.Name, len(byName[t.Name]), len(t.Init))
		}
		out = append(out, byName[t.Name]...)
	}
	return out, nil
}

func convert[T Float](x []float64) []T {
	out := make([]T, len(x))
	for i := range x {
		out[i] = T(x[i])
	}
	return out
}

// replay runs g on rule and returns the parameters after every step.
func replay[T Float](t testing.TB, g *golden, rule Rule[T], l *layout.Layout, o RunnerOptions) [][]T {
	var w []float64
	for _, x := range g.Tensors {
		w = append(w, x.Init...)
	}
	r := NewRunner(rule, l, convert[T](w), o)
	for name, raw := range g.InitState {
		x, err := g.vector(raw)
		if err != nil {
			t.Fatalf("init_state %s: %v", name, err)
		}
		r.SetSlot(name, convert[T](x))
	}
	lr, ok := g.Hyper["lr"].(float64)
	if !ok {
		t.Fatal("no lr among the hyper-parameters")
	}
	var out [][]T
	for i, st := range g.Steps {
		in := Input[T]{LR: lr, Examples: 1}
		for name, raw := range st {
			role, known := inputNames[name]
			switch {
			case known:
				x, err := g.vector(raw)
				if err != nil {
					t.Fatalf("step %d: %s: %v", i+1, name, err)
				}
				in.G[role] = convert[T](x)
			case name == "loss":
				if err := json.Unmarshal(raw, &in.Loss); err != nil {
					t.Fatal(err)
				}
			case !slices.Contains(outputNames, name):
				t.Fatalf("step %d: unknown field %q", i+1, name)
			}
		}
		r.Step(in)
		out = append(out, r.Params())
	}
	return out
}

// compare returns the first violation of g's tolerance, or nil.
func compare[T Float](g *golden, got [][]T) error {
	if g.Tolerance.Scale != "running_max" || g.Tolerance.Rtol <= 0 || len(got) < 10 {
		return fmt.Errorf("tolerance %+v over %d steps is not understood", g.Tolerance, len(got))
	}
	var scale []float64
	for _, x := range g.Tensors {
		for _, v := range x.Init {
			scale = append(scale, math.Abs(v))
		}
	}
	for i, st := range g.Steps {
		want, err := g.vector(st["params"])
		if err != nil {
			return fmt.Errorf("step %d: params: %w", i+1, err)
		}
		for j, x := range want {
			scale[j] = max(scale[j], math.Abs(x))
			y := float64(got[i][j])
			if !(math.Abs(y-x) <= g.Tolerance.Atol+g.Tolerance.Rtol*scale[j]) {
				return fmt.Errorf("step %d, element %d: got %v, want %v (scale %v)", i+1, j, y, x, scale[j])
			}
		}
	}
	return nil
}

// checkGolden replays g in precision T: unsharded against the file, and cut
// into chunks of 7 over several shards against one shard, bit for bit.
func checkGolden[T Float](t *testing.T, g *golden) {
	h, err := g.hyper()
	if err != nil {
		t.Fatal(err)
	}
	rule, err := New[T](g.Optimizer, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := compare(g, replay(t, g, rule, g.layout(t, 0), RunnerOptions{})); err != nil {
		t.Errorf("%T: %v", T(0), err)
	}
	l := g.layout(t, 7)
	one := replay(t, g, rule, l, RunnerOptions{Shards: 1})
	if err := compare(g, one); err != nil {
		t.Errorf("%T, chunks of 7: %v", T(0), err)
	}
	for _, o := range []RunnerOptions{{Shards: 2}, {Shards: 3}, {Shards: 7}, {Shards: 3, Span: 2}} {
		many := replay(t, g, rule, l, o)
		for i := range one {
			if !equalBits(one[i], many[i]) {
				t.Fatalf("%T, chunks of 7, %+v: step %d differs from one shard", T(0), o, i+1)
			}
		}
	}
}

// equalBits compares bit patterns.
func equalBits[T Float](a, b []T) bool {
	return slices.EqualFunc(a, b, func(x, y T) bool {
		return math.Float64bits(float64(x)) == math.Float64bits(float64(y))
	})
}

func TestGolden(t *testing.T) {
	replayed, unknown := 0, map[string]int{}
	files, min := goldenFiles(t)
	for _, file := range files {
		g := readGolden(t, file)
		if _, ok := Lookup(g.Optimizer); !ok {
			unknown[g.Optimizer]++
			continue
		}
		if _, rows := g.Steps[0]["rows"]; rows {
			unknown[g.Optimizer+" (row-sparse)"]++
			continue
		}
		replayed++
		t.Run(strings.TrimSuffix(strings.TrimSuffix(filepath.Base(file), ".gz"), ".json"), func(t *testing.T) {
			if g.Dtype == "float32" {
				checkGolden[float32](t, g)
			}
			checkGolden[float64](t, g)
		})
	}
	if replayed < min {
		t.Errorf("replayed %d golden files of %d, want %d or more", replayed, len(files), min)
	}
	if len(unknown) > 0 {
		n := 0
		for _, k := range unknown {
			n += k
		}
		t.Logf("NOT REPLAYED: %d golden files of rules that do not exist here: %v", n, unknown)
	}
}

func TestGoldenUnknownHyper(t *testing.T) {
	g := &golden{Hyper: map[string]any{"lr": 0.1, "amsgrad": true}}
	if _, err := g.hyper(); err == nil || !strings.Contains(err.Error(), "amsgrad") {
		t.Errorf("hyper with an unknown name: %v, want an error", err)
	}
}
