package optim

import (
	"compress/gzip"
	"encoding/json"
	"errors"
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
	Reference                struct{ Source string }
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

// inputNames maps the inputs of a step to roles.
var inputNames = map[string]Role{"grad": Grad, "hess_diag": HessDiag, "hess_grad": HessGrad, "grad_prev": GradPrev, "grad_kd": GradKD}

// outputs are the fields of a step that are not inputs, and where a runner has
// them; "" where it does not. What is "before" is compared before the step.
var outputs = map[string]string{
	"step": "", "aux": "", "params": "params", "eval_params": "eval", "perturbed": "perturbed", "eval_at": "before", "params_ag": "w_ag",
}

// ownGolden is where the golden files of this package are, and how many there
// must be.
const (
	ownGolden    = "testdata/golden"
	minOwnGolden = 108
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

// baseLR is the rate that a constant schedule gives.
func (g *golden) baseLR(t testing.TB) float64 {
	h, err := g.hyper()
	if err != nil {
		t.Fatal(err)
	}
	d, _ := Lookup(g.ruleName())
	v, err := d.Resolve(h)
	if err != nil {
		t.Fatal(err)
	}
	lr, err := d.BaseLR(v)
	if err != nil {
		t.Fatal(err)
	}
	return lr
}

func (g *golden) layout(t testing.TB, chunk int) *layout.Layout {
	var ts []layout.Tensor
	for _, x := range g.Tensors {
		ts = append(ts, layout.Tensor{Name: x.Name, Shape: x.Shape, NoDecay: g.unpenalized(x.Name)})
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
		// Estimates of a convolution's Hessian stand once for its last two
		// dimensions.
		if n := len(byName[t.Name]); len(t.Shape) == 4 && n == t.Shape[0]*t.Shape[1] {
			for _, x := range byName[t.Name] {
				out = append(out, slices.Repeat([]float64{x}, len(t.Init)/n)...)
			}
			continue
		}
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

// result is what came out of a step, by the names of the fields.
type result[T Float] map[string][]T

// replay runs g on rule and returns what came out of every step.
func replay[T Float](t testing.TB, g *golden, rule Rule[T], l *layout.Layout, o RunnerOptions) []result[T] {
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
	lr := g.baseLR(t)
	var out []result[T]
	for i, st := range g.Steps {
		res := result[T]{"eval_at": r.Params()}
		in := replayInput[T](t, g, i, lr)
		r.Phase(0, in[0])
		for ph := 1; ph < len(rule.Spec().Phases); ph++ {
			res["perturbed"] = r.Point(Perturbed)
			r.Phase(ph, in[ph])
		}
		res["params"] = r.Params()
		res["eval_params"] = r.Point(Eval)
		if g.ruleName() == "ag_nonconvex" { // the parameters are where gradients are taken
			res["params"], res["params_ag"] = r.Slot("w"), r.Slot("w_ag")
		}
		for name := range st {
			if where := outputs[name]; where != "" && res[name] == nil {
				t.Fatalf("step %d: nothing to compare %q with", i+1, name)
			}
		}
		out = append(out, res)
	}
	return out
}

// replayInput is what is pushed in step i, by phase.
func replayInput[T Float](t testing.TB, g *golden, i int, lr float64) (in [2]Input[T]) {
	for ph := range in {
		in[ph].LR, in[ph].Examples = lr, 1
	}
	for name, raw := range g.Steps[i] {
		role, known := inputNames[name]
		if _, out := outputs[name]; out {
			continue
		}
		switch {
		case name == "loss":
			if err := json.Unmarshal(raw, &in[0].Loss); err != nil {
				t.Fatal(err)
			}
		case name == "rows":
			in[0].Runs, in[0].G[Grad] = replayRows[T](t, g, i)
		case name == "grad_rows":
		case known || name == "grad2":
			x, err := g.vector(raw)
			if err != nil {
				t.Fatalf("step %d: %s: %v", i+1, name, err)
			}
			if name == "grad2" {
				in[1].G[Grad] = convert[T](x)
			} else {
				in[0].G[role] = convert[T](x)
			}
		default:
			t.Fatalf("step %d: unknown field %q", i+1, name)
		}
	}
	return in
}

// replayRows reads a row-sparse gradient. Rows named twice are added up.
func replayRows[T Float](t testing.TB, g *golden, i int) (runs []layout.Range, grad []T) {
	var rows map[string][]int
	var values map[string][]float64
	if err := errors.Join(json.Unmarshal(g.Steps[i]["rows"], &rows), json.Unmarshal(g.Steps[i]["grad_rows"], &values)); err != nil {
		t.Fatalf("step %d: rows: %v", i+1, err)
	}
	l := g.layout(t, 0)
	grad = make([]T, l.P)
	for _, tn := range l.Tensors {
		for j, row := range rows[tn.Name] {
			lo := tn.Offset + row*tn.RowLen()
			for k, x := range values[tn.Name][j*tn.RowLen() : (j+1)*tn.RowLen()] {
				grad[lo+k] += T(x)
			}
			if run := (layout.Range{Lo: lo, Hi: lo + tn.RowLen()}); !slices.Contains(runs, run) {
				runs = append(runs, run)
			}
		}
	}
	slices.SortFunc(runs, func(a, b layout.Range) int { return a.Lo - b.Lo })
	return runs, grad
}

// compare returns the first violation of g's tolerance, or nil.
func compare[T Float](g *golden, got []result[T]) error {
	if g.Tolerance.Scale != "running_max" || g.Tolerance.Rtol <= 0 || len(got) < 10 {
		return fmt.Errorf("tolerance %+v over %d steps is not understood", g.Tolerance, len(got))
	}
	for _, field := range []string{"params", "eval_params", "perturbed", "eval_at", "params_ag"} {
		if err := compareField(g, field, got); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	return nil
}

func compareField[T Float](g *golden, field string, got []result[T]) error {
	var scale []float64
	for _, x := range g.Tensors {
		for _, v := range x.Init {
			scale = append(scale, math.Abs(v))
		}
	}
	for i, st := range g.Steps {
		raw, ok := st[field]
		if !ok {
			continue
		}
		want, err := g.vector(raw)
		if err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		for j, x := range want {
			scale[j] = max(scale[j], math.Abs(x))
			y := float64(got[i][field][j])
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
	rule, err := New[T](g.ruleName(), h)
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
			for field := range one[i] {
				if !equalBits(one[i][field], many[i][field]) {
					t.Fatalf("%T, chunks of 7, %+v: %s of step %d differs from one shard", T(0), o, field, i+1)
				}
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
		if _, ok := Lookup(g.ruleName()); !ok {
			unknown[g.Optimizer]++
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
	g := &golden{Hyper: map[string]any{"lr": 0.1, "fused": true}}
	if _, err := g.hyper(); err == nil || !strings.Contains(err.Error(), "fused") {
		t.Errorf("hyper with an unknown name: %v, want an error", err)
	}
}
