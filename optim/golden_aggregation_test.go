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
	"strings"
	"testing"

	"tributary/layout"
)

// aggregationReplay replays a case of a file of testdata/golden/aggregation. It
// returns what came out under the names of the fields that the case records it
// in, one row per step; "result" is needed.
type aggregationReplay func(c *aggregationCase) map[string][][]float64

// aggregationReplays holds a function per rule. Files of other rules are
// reported as not replayed.
var aggregationReplays = map[string]aggregationReplay{}

// replayAggregation registers how the cases of a rule are replayed, for an init.
func replayAggregation(rule string, f aggregationReplay) {
	aggregationReplays[rule] = f
	withoutGolden[rule] = "testdata/golden/aggregation"
}

func init() {
	replayAggregation("normalized_gd", replayNormalizedGD)
	replayAggregation("spider", replaySPIDER)
}

// aggregationFile is one file: derived cases, each with a small problem, its
// hyper-parameters and the points visited.
type aggregationFile struct {
	Rule      string
	Tolerance struct {
		Rel    float64
		AbsMax float64 `json:"abs_times_maxabs_input"`
	}
	Cases []map[string]json.RawMessage
}

// aggregationCase is one case and the way to run it.
type aggregationCase struct {
	t      testing.TB
	fields map[string]json.RawMessage
	o      RunnerOptions
	chunk  int
}

// read decodes a field.
func (c *aggregationCase) read(field string, x any) {
	c.t.Helper()
	if err := json.Unmarshal(c.fields[field], x); err != nil {
		c.t.Fatalf("%s: %v", field, err)
	}
}

func (c *aggregationCase) vector(field string) (x []float64) {
	c.read(field, &x)
	return x
}

func (c *aggregationCase) matrix(field string) (x [][]float64) {
	c.read(field, &x)
	return x
}

// hyper returns the hyper-parameters of the case, of which number gives one as
// a number.
func (c *aggregationCase) hyper() (h map[string]any) {
	c.read("hyper", &h)
	return h
}

func (c *aggregationCase) number(name string) float64 {
	c.t.Helper()
	x, ok := c.hyper()[name].(float64)
	if !ok {
		c.t.Fatalf("hyper-parameter %q is %v", name, c.hyper()[name])
	}
	return x
}

// runner starts rule at w, which is cut into two tensors.
func (c *aggregationCase) runner(rule string, hyper map[string]any, w []float64) *Runner[float64] {
	c.t.Helper()
	return c.runnerOver(rule, hyper, []layout.Tensor{
		{Name: "a", Shape: []int{len(w) - 1}}, {Name: "b", Shape: []int{1}},
	}, w)
}

// runnerOver starts rule at w, the parameters of the given tensors.
func (c *aggregationCase) runnerOver(rule string, hyper map[string]any, ts []layout.Tensor, w []float64) *Runner[float64] {
	c.t.Helper()
	r, err := New[float64](rule, hyper)
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := layout.New(ts, c.chunk)
	if err != nil {
		c.t.Fatal(err)
	}
	return NewRunner(r, l, w, c.o)
}

// aggregationInput is what is pushed in a step with the given value of the
// schedule: gradients by role.
func aggregationInput(lr float64, g map[Role][]float64) (in Input[float64]) {
	in.LR, in.Examples = lr, 1
	for role, x := range g {
		in.G[role] = x
	}
	return in
}

func replayNormalizedGD(c *aggregationCase) map[string][][]float64 {
	eta := c.number("eta")
	hyper := map[string]any{"lr": eta}
	switch kind := c.hyper()["kind"]; kind {
	case "ngd":
	case "ngd_momentum":
		hyper["momentum"] = c.number("beta")
	case "clip_gd":
		hyper["clip"] = c.number("c")
	case "gd_1_over_norm":
		hyper["gamma"] = c.number("gamma")
	default:
		c.t.Fatalf("unknown kind %v", kind)
	}
	a := c.matrix("A")
	r := c.runner("normalized_gd", hyper, c.vector("x0"))
	var out [][]float64
	for range c.matrix("result") {
		x := r.Params()
		g := times(a, x)
		for i, xi := range x { // A·x + 0.1·x³
			g[i] += 0.1 * xi * xi * xi
		}
		r.Step(aggregationInput(eta, map[Role][]float64{Grad: g}))
		out = append(out, r.Params())
	}
	return map[string][][]float64{"result": out}
}

func replaySPIDER(c *aggregationCase) map[string][][]float64 {
	eta := c.number("eta")
	hyper := map[string]any{"lr": eta, "period": c.number("q"), "normalized": c.hyper()["normalized"]}
	x, y := c.matrix("X"), c.vector("y")
	var index [][]int
	c.read("index", &index)
	// Mean over the listed examples of ½·(x·w − y)².
	gradient := func(batch []int, w []float64) []float64 {
		g := make([]float64, len(w))
		for _, i := range batch {
			e := -y[i]
			for j, wj := range w {
				e += x[i][j] * wj
			}
			for j := range g {
				g[j] += e * x[i][j] / float64(len(batch))
			}
		}
		return g
	}
	r := c.runner("spider", hyper, c.vector("w0"))
	var result, estimator [][]float64
	before := r.Params()
	for t, batch := range index {
		w := r.Params()
		in := map[Role][]float64{}
		for _, role := range r.rule.Spec().Roles(0, uint64(t+1)) {
			switch role {
			case FullGrad:
				if len(batch) != len(y) {
					c.t.Fatalf("step %d asks for the full gradient, the case has %v", t+1, batch)
				}
				in[role] = gradient(batch, w)
			case Grad:
				in[role] = gradient(batch, w)
			case GradPrev:
				in[role] = gradient(batch, before)
			default:
				c.t.Fatalf("step %d asks for %v", t+1, role)
			}
		}
		r.Step(aggregationInput(eta, in))
		before = w
		result, estimator = append(result, r.Params()), append(estimator, r.Slot("v"))
	}
	return map[string][][]float64{"result": result, "estimator": estimator}
}

// times is a·x.
func times(a [][]float64, x []float64) []float64 {
	out := make([]float64, len(a))
	for i, row := range a {
		for j, v := range row {
			out[i] += v * x[j]
		}
	}
	return out
}

func readAggregation(t testing.TB, file string) *aggregationFile {
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
	g := new(aggregationFile)
	if err := json.NewDecoder(r).Decode(g); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if g.Tolerance.Rel <= 0 || len(g.Cases) == 0 {
		t.Fatalf("%s: tolerance %+v over %d cases is not understood", file, g.Tolerance, len(g.Cases))
	}
	return g
}

// compare returns the first violation of the tolerance by what came out of c:
// every element within rel·max|row recorded| + abs·max|inputs|.
func (f *aggregationFile) compare(c *aggregationCase, got map[string][][]float64) error {
	if got["result"] == nil {
		return errors.New("no result")
	}
	inputs := 0.0
	for name, raw := range c.fields {
		var x any
		if _, output := got[name]; output || name == "hyper" {
			continue
		}
		if err := json.Unmarshal(raw, &x); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		inputs = max(inputs, greatest(x))
	}
	for _, name := range sortedKeys(got) {
		want := c.matrix(name)
		if len(got[name]) != len(want) {
			return fmt.Errorf("%s: %d rows, want %d", name, len(got[name]), len(want))
		}
		for i, row := range want {
			tol := f.Tolerance.AbsMax * inputs
			for _, x := range row {
				tol = max(tol, f.Tolerance.AbsMax*inputs+f.Tolerance.Rel*math.Abs(x))
			}
			if len(got[name][i]) != len(row) {
				return fmt.Errorf("%s: row %d has %d values, want %d", name, i, len(got[name][i]), len(row))
			}
			for j, x := range row {
				if y := got[name][i][j]; !(math.Abs(y-x) <= tol) {
					return fmt.Errorf("%s: row %d, element %d: got %v, want %v within %v", name, i, j, y, x, tol)
				}
			}
		}
	}
	return nil
}

// greatest is the greatest magnitude in decoded JSON.
func greatest(x any) (top float64) {
	switch x := x.(type) {
	case float64:
		return math.Abs(x)
	case []any:
		for _, y := range x {
			top = max(top, greatest(y))
		}
	case map[string]any:
		for _, y := range x {
			top = max(top, greatest(y))
		}
	}
	return top
}

// aggregationFiles are those of the folder in TRIBUTARY_GOLDEN, or this
// package's own.
func aggregationFiles(t *testing.T) []string {
	dir := ownGolden
	if d := os.Getenv("TRIBUTARY_GOLDEN"); d != "" {
		dir = d
	}
	return goldenIn(t, filepath.Join(dir, "aggregation"))
}

func TestGoldenAggregation(t *testing.T) {
	replayed := map[string]bool{}
	var skipped []string
	for _, file := range aggregationFiles(t) {
		f := readAggregation(t, file)
		replay := aggregationReplays[f.Rule]
		if replay == nil {
			skipped = append(skipped, filepath.Base(file))
			continue
		}
		replayed[f.Rule] = true
		for i, fields := range f.Cases {
			t.Run(fmt.Sprintf("%s/%d", f.Rule, i), func(t *testing.T) {
				for _, chunk := range []int{0, 1, 3} {
					c := &aggregationCase{t, fields, RunnerOptions{}, chunk}
					one := replay(c)
					if err := f.compare(c, one); err != nil {
						t.Fatalf("chunk %d: %v", chunk, err)
					}
					for _, o := range []RunnerOptions{{Shards: 2}, {Shards: 3}, {Shards: 7}, {Shards: 3, Span: 2}} {
						many := replay(&aggregationCase{t, fields, o, chunk})
						for name, rows := range one {
							for i, row := range rows {
								if !equalBits(row, many[name][i]) {
									t.Fatalf("chunk %d, %+v: %s of row %d differs from one shard", chunk, o, name, i)
								}
							}
						}
					}
				}
			})
		}
	}
	for rule := range aggregationReplays {
		if !replayed[rule] {
			t.Errorf("no golden file of %s", rule)
		}
	}
	if len(skipped) > 0 {
		t.Logf("NOT REPLAYED: %d files of rules that are not replayed here: %v", len(skipped), skipped)
	}
}

// A rate that is off by a millionth is noticed in every case.
func TestGoldenAggregationNoticesWrongRate(t *testing.T) {
	for _, file := range goldenIn(t, filepath.Join(ownGolden, "aggregation")) {
		f := readAggregation(t, file)
		for i, fields := range f.Cases {
			c := &aggregationCase{t, map[string]json.RawMessage{}, RunnerOptions{}, 3}
			for name, raw := range fields {
				c.fields[name] = raw
			}
			h := c.hyper()
			eta, ok := h["eta"].(float64)
			if replay := aggregationReplays[f.Rule]; replay != nil && ok {
				h["eta"] = eta * (1 + 1e-6)
				c.fields["hyper"], _ = json.Marshal(h)
				if f.compare(c, replay(c)) == nil {
					t.Errorf("%s, case %d: a wrong rate goes unnoticed", f.Rule, i)
				}
			}
		}
	}
}
