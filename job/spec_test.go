package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary/layout"
)

const fullSpec = `
name: digits-16
model:
  kind: mlp
  hidden: [64, 32]
data: {name: csv, path: a.csv, label: y}
seed: 18446744073709551615
ranks: 16
workers: 4
servers: 3
shards: 5
chunk: 1024
batch: 7
steps: 1000
optimizer:
  rule: sgd
  hyper: {lr: 1e-1, momentum: 0.9, nesterov: yes}
  schedule: {kind: cosine, warmup: 10, min: 1e-3}
aggregate: {rule: mean, by: uniform}
staleness: 2
pinned: true
on_loss: wait
recompute: false
on_bad: null
checkpoint: {every: 50, keep: 3}
eval: {every: 25}
level: durable
window: 4
memory_budget: 512MiB
timeouts: {worker: 500ms, start: 1m30s, retry: 50ms}
`

func TestParse(t *testing.T) {
	// YAML 1.2 has no "yes": only true and false are booleans.
	s, err := Parse([]byte(strings.Replace(fullSpec, "yes", "true", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "digits-16" || s.Seed != 1<<64-1 || s.Chunk != 1024 || s.Recompute || !s.Pinned || s.OnLoss != Wait || s.OnBad != "null" ||
		s.MemoryBudget != 512<<20 || time.Duration(s.Timeouts.Start) != 90*time.Second || !slices.Equal(s.Model.Hidden, []int{64, 32}) ||
		s.Optimizer.Hyper["lr"] != 0.1 || s.Optimizer.Hyper["nesterov"] != true || s.Optimizer.Schedule.Min != 1e-3 || s.Data.Label != "y" {
		t.Errorf("Parse: %+v", s)
	}
	if s.RankCount() != 16 || s.ShardCount() != 5 {
		t.Errorf("%d ranks, %d shards", s.RankCount(), s.ShardCount())
	}
	checkRoundTrip(t, s)
	sched, err := s.NewSchedule()
	if err != nil || sched(10) != 0.1 || sched(5) != 0.05 {
		t.Errorf("schedule: %v", err)
	}
	if _, err := s.NewRule(); err != nil {
		t.Error(err)
	}
}

func TestParseEmptyIsDefault(t *testing.T) {
	for _, file := range []string{"", "# nothing\n", "{}", "---\n"} {
		s, err := Parse([]byte(file))
		if err != nil || !reflect.DeepEqual(s, Default()) {
			t.Errorf("Parse(%q) = %+v, %v, want the default", file, s, err)
		}
	}
	d := Default()
	if d.RankCount() != d.Workers || d.ShardCount() != 8*d.Servers {
		t.Errorf("default: %d ranks, %d shards", d.RankCount(), d.ShardCount())
	}
	checkRoundTrip(t, d)
}

// checkRoundTrip asserts that YAML and JSON both read back equal.
func checkRoundTrip(t *testing.T, s *Spec) {
	t.Helper()
	y, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{y, j} {
		if again, err := Parse(b); err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("does not read back: %v\n%s\n%+v\n%+v", err, b, s, again)
		}
	}
	var again Spec
	if err := json.Unmarshal(j, &again); err != nil || !reflect.DeepEqual(&again, s) {
		t.Fatalf("JSON does not read back: %v\n%s\n%+v\n%+v", err, j, s, again)
	}
}

func TestTensors(t *testing.T) {
	s, err := Parse([]byte(`
model:
  kind: tensors
  tensors:
    - {name: w, shape: [3, 2], init: {kind: normal, scale: 0.1}}
    - {name: b, shape: [], no_decay: true}
    - {name: mean, shape: [2], buffer: true}
data: {name: none}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []layout.Tensor{
		{Name: "w", Shape: []int{3, 2}, Init: layout.Init{Kind: layout.Normal, Scale: 0.1}},
		{Name: "b", NoDecay: true}, {Name: "mean", Shape: []int{2}, Buffer: true}}
	if !reflect.DeepEqual(s.Model.Tensors, want) {
		t.Errorf("tensors %+v, want %+v", s.Model.Tensors, want)
	}
	checkRoundTrip(t, s)
}

// Every problem is reported at once, in the order of the lines.
func TestParseReportsAll(t *testing.T) {
	_, err := Parse([]byte(`name: Digits
modle:
  kind: softmax
steps: many
batch: 0
optimizer:
  rule: adam
  hyper:
    lr: 0.1
    beta: [0.9, 0.99]
    eps: -1
  schedule: {kind: cosine, warmup: 1000, max: 3}
checkpoint: {every: 0}
level: durable
on_loss: shrinc
timeouts: {worker: 2}
memory_budget: lots
steps: 5
staleness: -2
`))
	want := []string{
		`line 1: name: "Digits": want up to 63 small letters, digits, - and _, the first a letter or digit`,
		`line 2: modle: no such field: did you mean "model"?`,
		`line 4: steps: want a whole number, 0 or more, got "many"`,
		`line 5: batch: got 0, want 1 to 16777216`,
		`line 10: optimizer.hyper.beta: adam has no "beta": did you mean "betas"?`,
		`line 11: optimizer.hyper.eps: adam: eps: want 0 or more, got -1`,
		`line 12: optimizer.schedule.max: no such field: did you mean "min"?`,
		`line 14: level: durable needs checkpoint.every above 0: a push is durable once it is in a recorded checkpoint`,
		`line 15: on_loss: "shrinc" is none of reassign, wait, shrink: did you mean "shrink"?`,
		`line 16: timeouts.worker: want a duration such as 500ms, 2s or 1m30s, got "2"`,
		`line 17: memory_budget: want an amount of memory such as 512MiB or 2GiB, got "lots"`,
		`line 18: steps: stands here twice, first in line 4`,
		`line 19: staleness: got -2, want -1 to 1024`,
	}
	if err == nil || !errors.Is(err, ErrSpec) {
		t.Fatalf("Parse: %v, want ErrSpec", err)
	}
	got := strings.Split(err.Error(), "\n")
	for i := range max(len(got), len(want)) {
		g, w := "", ""
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("problem %d:\n got %s\nwant %s", i, g, w)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"a: [", "line 1"},
		{"- 1", "line 1: want a list of key: value, got a list"},
		{"name: a\n---\nname: b\n", "more than one document"},
		{"name: &x a\non_bad: *x", "line 2: on_bad: aliases are not supported"},
		{"<<: {name: a}", "no such field"},
		{"? [a]\n: 1", "want a word as key"},
		{"name: 12", `line 1: name: want a word, got "12"`},
		{"name:", "line 1: name: want a word, got nothing"},
		{"model: softmax", `line 1: model: want a list of key: value, got "softmax"`},
		{"optimizer: {hyper: [1]}", "optimizer.hyper: want a list of key: value, got a list"},
		{"optimizer: {hyper: {lr: {a: 1}}}", "optimizer.hyper.lr: adamw: lr: want 0 or more, got map[a:1]"},
		{"optimizer: {hyper: {lr: {a: {b: {c: {d: {e: {f: {g: {h: 1}}}}}}}}}}", "nested too deep"},
		{"optimizer:\n  rule: sam\n  hyper:\n    base: adamw\n    base_hyper:\n      lrr: 1", `line 6: optimizer.hyper.base_hyper.lrr: sam: base_hyper: adamw has no "lrr": did you mean "lr"?`},
		{"optimizer: {rule: sam, hyper: {base: adma}}", `optimizer.hyper.base: sam: base: unknown update rule "adma": did you mean "adam"?`},
		{"optimizer: {rule: sam, hyper: {base_hyper: 3}}", "optimizer.hyper.base_hyper: sam: base_hyper: want hyper-parameters by name, got 3"},
		{"optimizer: {clip: {normm: 1}}", `optimizer.clip.normm: no such field: did you mean "norm"?`},
		{"optimizer: {clip: {norm: -1}}", "optimizer.clip.norm: clip: norm: want 0 or more, got -1"},
		{"staleness: 1\noptimizer: {rule: sam}", "line 1: staleness: got 1, but sam pushes twice per update"},
		{"staleness: -1\noptimizer: {rule: oasis}", "line 1: staleness: got -1, but oasis compares gradients at two neighbouring versions: want 0"},
		{"staleness: -1\noptimizer: {rule: adamw, groups: [{match: ['fc1*'], rule: sophia_g}]}", "line 1: staleness: -1 (asynchronous) does not go with groups"},
		{"staleness: 1\noptimizer: {rule: lamb}", "pinned: lamb needs sums over all shards"},
		{"optimizer: {rule: dot}", "distill.teacher: dot takes the gradient of a distillation loss"},
		{"optimizer: {rule: dot}\ndistill: {teacher: t}", "line 2: distill.hidden: an mlp has hidden layers"},
		{"optimizer: {rule: dot}\ndistill: {teacher: t, kind: softmax, hidden: [3]}", "line 2: distill.hidden: has no meaning for kind softmax"},
		{"optimizer: {rule: spider, clip: {norm: 1}}", "optimizer.clip: clip: spider subtracts gradients at two points"},
		{"optimizer: {groups: [{match: [w], rul: sgd}]}", `optimizer.groups[0].rul: no such field: did you mean "rule"?`},
		{"optimizer: {groups: [{rule: sgd}]}", "optimizer.groups[0].match: 0 patterns, want 1 to 1024"},
		{"optimizer:\n  groups:\n  - match: [w]\n    rule: sgdd", `line 4: optimizer.groups[0].rule: unknown update rule "sgdd": did you mean "sgd"?`},
		{"optimizer:\n  groups:\n  - match: [w]\n    hyper: {beta: 1}", `line 4: optimizer.groups[0].hyper.beta: adamw has no "beta": did you mean "betas"?`},
		{"optimizer: {groups: [{match: [w], rule: sam}]}", "optimizer.groups: rules do not go together: sam pushes 2 times per update"},
		{"staleness: -1\noptimizer: {clip: {norm: 1}}", "line 1: staleness: -1 (asynchronous) does not go with adamw with clipping"},
		{"optimizer: {no_decay: [b*]}\ndata: {name: none}\nmodel: {kind: tensors, tensors: [{name: w, shape: [1]}, {name: m, shape: [1], buffer: true}, {name: v, shape: [2]}]}",
			`optimizer.no_decay[0]: "b*" matches no tensor (* stands for any characters, ? for one); there are w, v`},
		{"optimizer: {groups: [{match: ['?']}, {match: [w, v]}]}\ndata: {name: none}\nmodel: {kind: tensors, tensors: [{name: w, shape: [1]}, {name: v, shape: [2]}]}",
			"optimizer.groups[1].match: all that it matches is in an earlier group (such as optimizer.groups[0])"},
		{"optimizer: {hyper: {betas: [[1], 2]}}", "optimizer.hyper.betas[0]: want a single value"},
		{"optimizer: {hyper: {lr: .inf}}", "optimizer.hyper.lr: adamw: lr: want 0 or more"},
		{"optimizer: {rule: adma}", `line 1: optimizer.rule: unknown update rule "adma": did you mean "adam"?`},
		{"optimizer: {rule: sgd, hyper: {nesterov: true}}", "optimizer.hyper.nesterov: sgd: nesterov needs a momentum"},
		{"optimizer:\n  schedule:\n    kind: cosin", `line 3: optimizer.schedule.kind: "cosin" is none of constant, step,`},
		{"optimizer:\n  schedule:\n    kind: stages\n    stages:\n    - length: 5\n    - kind: cosine\n      min: 3", `line 7: optimizer.schedule.stages[1].min: got 3, want 0 to the base rate 0.001`},
		{"optimizer: {schedule: {kind: step, every: x}}", `optimizer.schedule.every: want a whole number, 0 or more, got "x"`},
		{"optimizer: {schedule: {kind: polynomial, powr: 3}}", `optimizer.schedule.powr: no such field: did you mean "power"?`},
		{"optimizer: {schedule: {warmup: 301}}", "line 1: optimizer.schedule.warmup: got 301, longer than the 300 updates there are"},
		{"aggregate: {by: exmaples}", `aggregate: bad hyper-parameter of the aggregation: by: got exmaples: did you mean "examples"?`},
		{"aggregate: {rule: median}", "unknown aggregation rule"},
		{"model: {kind: mpl, hidden: [3]}", `model.kind: "mpl" is none of`},
		{"model: {hidden: [3]}", "model.hidden: has no meaning for kind softmax"},
		{"model: {channels: [3]}", "model.channels: has no meaning"},
		{"model:\n  kind: mlp\n  hidden:\n  - 3\n  - 0", "line 5: model.hidden[1]: got 0"},
		{"model: {kind: mlp, hidden: 3}", `model.hidden: want a list, got "3"`},
		{"model: {kind: tensors}\ndata: {name: none}", "0 tensors"},
		{"model: {kind: tensors, tensors: [{name: a, shape: [1]}]}", "workers of a model of tensors bring their own data"},
		{"model: {tensors: [{name: a, shape: [1]}]}", "model.tensors: has no meaning"},
		{"model: {kind: tensors, tensors: [{name: a, shape: [0]}]}\ndata: {name: none}", `tensor "a": shape [0]`},
		{"data: {name: none}", "a built-in model needs data"},
		{"data: {name: csv}", "data.path: csv needs the path"},
		{"data: {name: digits, path: x}", "data.path: has no meaning"},
		{"data: {name: mnist, label: x}", "data.label: has no meaning"},
		{"pinned: true", "pinned: needs a staleness above 0"},
		{"staleness: -1\noptimizer: {rule: lamb}", "line 1: staleness: -1 (asynchronous) does not go with lamb"},
		{"memory_budget: 1kB", "got 1000B, want 1MiB or more"},
		{"memory_budget: -5", "want an amount of memory"},
		{"memory_budget: [1]", "want a single value"},
		{"timeouts: {worker: 0s}", "timeouts.worker: got 0s"},
		{"timeouts: {worker: 1s, retry: 500ms}", "at least 6 times timeouts.retry"},
		{"seed: -1", "seed: want a whole number"},
		{"batch: 1.5", "batch: want a whole number"},
		{"ranks: 99999999999999999999", "ranks: want a whole number"},
		{"recompute: 1", "recompute: want true or false"},
		{"name: \xff", "invalid"},
		{"name: " + strings.Repeat("x", MaxSpecBytes), "bytes, want"},
	} {
		s, err := Parse([]byte(c.file))
		if !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), c.want) || s != nil {
			t.Errorf("Parse(%.80q): %.200v, want %s", c.file, err, c.want)
		}
		if c.want != "line 1" && strings.Count(err.Error(), "\n") > 0 && c.want != "a built-in model needs data" {
			t.Errorf("Parse(%.80q): more than one problem:\n%v", c.file, err)
		}
	}
}

func TestSet(t *testing.T) {
	s := Default()
	orig := s.clone()
	for _, a := range []string{"optimizer.hyper.weight_decay=0.5", "optimizer.rule=adam", "optimizer.hyper.lr=0.01", "optimizer.hyper.betas=[0.8, 0.9]", "steps=7", "recompute=false", "name=x",
		"timeouts.worker=3s", "memory_budget=1GB", "model.kind=mlp", "model.hidden=[4,5]", "data={name: csv, path: p=q}", "data.label=", "optimizer.rule=adam"} {
		if err := s.Set(a); err != nil {
			t.Errorf("Set(%q): %v", a, err)
		}
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	if s.Optimizer.Hyper["lr"] != 0.01 || s.Steps != 7 || s.Recompute || time.Duration(s.Timeouts.Worker) != 3*time.Second ||
		s.MemoryBudget != 1e9 || s.Data.Path != "p=q" || s.Timeouts.Start != orig.Timeouts.Start || s.Optimizer.Schedule.Kind != "constant" {
		t.Errorf("after Set: %+v", s)
	}
	if orig.Optimizer.Hyper != nil {
		t.Error("Set reached a copy")
	}
	if len(s.Optimizer.Hyper) != 2 {
		t.Errorf("hyper-parameters of the rule before: %v", s.Optimizer.Hyper)
	}
	checkRoundTrip(t, s)
	before := s.clone()
	for a, want := range map[string]string{
		"steps":                               "want key=value",
		"=1":                                  "want key=value",
		"stepz=1":                             `stepz: no such field: did you mean "steps"?`,
		"steps=":                              "steps: want a whole number",
		"steps=x":                             `steps: want a whole number, 0 or more, got "x"`,
		"steps=[":                             `steps: "[" is not YAML: did not find`,
		"optimizer.hyper.lr=null":             "got nothing",
		"optimizer.hyper.lr.x=1":              "optimizer.hyper.lr: want a number",
		"steps.x=1":                           "steps: want a whole number",
		"model.hidden=[1, x]":                 `model.hidden[1]: want a whole number, got "x"`,
		"model={hidden: [9], k: 1}":           "model.k: no such field",
		"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q=1": "no such field",
	} {
		if err := s.Set(a); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "line") {
			t.Errorf("Set(%q): %v, want %s", a, err, want)
		}
	}
	if !reflect.DeepEqual(s, before) {
		t.Errorf("a refused Set changed the spec: %+v", s)
	}
}

// Files that are large or deep cost no more than a small multiple of reading
// them, and are not answered with a book.
func TestHostileFiles(t *testing.T) {
	var keys, hypers strings.Builder
	hypers.WriteString("optimizer:\n  hyper:\n")
	for i := range 20000 {
		fmt.Fprintf(&keys, "key%d: 1\n", i)
		fmt.Fprintf(&hypers, "    h%d: 1\n", i)
	}
	for name, file := range map[string]string{
		"flow":   strings.Repeat("[", 9000),
		"block":  strings.Repeat("- ", 9000),
		"nested": strings.Repeat("{a: ", 5000) + strings.Repeat("}", 5000),
		"keys":   keys.String(),
		"hypers": hypers.String(),
		"list":   "model: {kind: mlp, hidden: [" + strings.Repeat("0,", 100000) + "]}",
		"words":  "model: {kind: mlp, hidden: [" + strings.Repeat("x,", 100000) + "]}",
	} {
		start := time.Now()
		_, err := Parse([]byte(file))
		if err == nil || strings.Count(err.Error(), "\n") > 2*maxProblems {
			t.Errorf("%s: %d lines of error, want 1 to %d", name, strings.Count(fmt.Sprint(err), "\n"), 2*maxProblems)
		}
		t.Logf("%s: %v", name, time.Since(start))
	}
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "12": 12, "12B": 12, "1kB": 1000, "1KB": 1000, "1KiB": 1024, "1.5 GiB": 3 << 29, "2TiB": 2 << 40, "1e6": 1e6,
		"9007199254740993": 9007199254740993} {
		var b Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q reads as %d, %v, want %d", text, b, err, want)
		}
		var again Bytes
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%v does not read back: %d, %v", b, again, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1XB", "NaN", "inf", "1e40", "1GiBB"} {
		if err := new(Bytes).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
	if got := Bytes(3 << 30).String(); got != "3GiB" {
		t.Errorf("String() = %s", got)
	}
}

// The reference page names every field, with its default.
func TestEveryFieldIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/jobs.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{} // field → its table row
	for line := range strings.SplitSeq(string(page), "\n") {
		if rest, ok := strings.CutPrefix(line, "| `"); ok {
			name, row, _ := strings.Cut(rest, "` |")
			rows[name] = row
		}
	}
	example := strings.SplitN(strings.SplitN(string(page), "```yaml\n", 2)[1], "```", 2)[0]
	s, err := Parse([]byte(example))
	if err != nil {
		t.Fatalf("the example: %v", err)
	}
	if !reflect.DeepEqual(s, Default()) {
		t.Errorf("the example is not the default: %+v", s)
	}
	n := 0
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if tag == "-" {
				continue
			}
			if tag == "" || strings.Split(f.Tag.Get("json"), ",")[0] != tag {
				t.Errorf("%s%s: tags differ: %s", path, f.Name, f.Tag)
			}
			if x := v.Field(i); x.Kind() == reflect.Struct {
				walk(x, path+tag+".")
				continue
			}
			n++
			row, ok := rows[path+tag]
			cells := strings.Split(row, "|")
			if !ok || len(cells) < 4 {
				t.Errorf("docs/jobs.md has no row for %s", path+tag)
				continue
			}
			delete(rows, path+tag)
			if def := defaultText(t, v.Field(i)); strings.TrimSpace(cells[0]) != def {
				t.Errorf("docs/jobs.md: default of %s is %q, want %q", path+tag, strings.TrimSpace(cells[0]), def)
			}
			if !strings.Contains(example, tag+":") {
				t.Errorf("docs/jobs.md: the example lacks %s", path+tag)
			}
		}
	}
	walk(reflect.ValueOf(Default()).Elem(), "")
	var tensor layout.Tensor
	walk(reflect.ValueOf(&tensor).Elem(), "model.tensors[].")
	walk(reflect.ValueOf(&Group{}).Elem(), "optimizer.groups[].")
	if n < 44 {
		t.Errorf("only %d fields found", n)
	}
	for name := range rows {
		t.Errorf("docs/jobs.md documents %s, which does not exist", name)
	}
}

// defaultText is a field's default as the page prints it.
func defaultText(t *testing.T, v reflect.Value) string {
	b, err := json.Marshal(v.Interface())
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Trim(string(b), `"`)
	if v.IsZero() && (v.Kind() == reflect.Slice || v.Kind() == reflect.String || v.Kind() == reflect.Map) {
		return "none"
	}
	return s
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(fullSpec))
	f.Add([]byte("model: {kind: tensors, tensors: [{name: a, shape: [2, 2]}]}\ndata: {name: none}"))
	f.Add([]byte("a: &a [*a, *a]\nb: !!binary x\n? {}\n: <<"))
	if b, err := Default().Marshal(); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := Parse(file)
		if err != nil {
			if ps := (Problems)(nil); !errors.As(err, &ps) || len(ps) == 0 || strings.Count(err.Error(), "\n") != len(ps)-1 {
				t.Fatalf("%d problems, text %q", len(ps), err)
			}
			return
		}
		if err := s.Validate(); err != nil {
			t.Fatalf("parsed, but not valid: %v", err)
		}
		checkRoundTrip(t, s)
	})
}
