package optim

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	names := Names()
	if !slices.IsSorted(names) {
		t.Errorf("Names() = %q, not sorted", names)
	}
	for _, want := range []string{"adam", "adamw", "lamb", "sgd"} {
		if !slices.Contains(names, want) {
			t.Errorf("Names() = %q lacks %q", names, want)
		}
	}
	for _, n := range names {
		d, _ := Lookup(n)
		if d.Doc == "" || d.Paper == "" || len(d.Hypers) == 0 {
			t.Errorf("%s: incomplete definition %+v", n, d)
		}
		for _, h := range d.Hypers {
			if h.Doc == "" {
				t.Errorf("%s: %s is not documented", n, h.Name)
			}
		}
		r, err := New[float32](n, nil)
		if err != nil {
			t.Errorf("New(%q) with defaults: %v", n, err)
			continue
		}
		spec := r.Spec()
		if spec.Name != n {
			t.Errorf("Spec().Name = %q, want %q", spec.Name, n)
		}
		for i := 1; i < len(spec.Slots); i++ {
			if spec.Slots[i].Elements() && !spec.Slots[i-1].Elements() {
				t.Errorf("%s: slots with a value per element come first", n)
			}
		}
		for _, ph := range spec.Phases {
			if len(ph.Passes) == 0 || len(ph.Passes[len(ph.Passes)-1].Reduce) > 0 {
				t.Errorf("%s: the last pass must exist and reduce nothing", n)
			}
		}
	}
}

func TestNewErrors(t *testing.T) {
	for _, c := range []struct {
		name  string
		hyper map[string]any
		want  []string // all in the error
	}{
		{"adma", nil, []string{`unknown update rule "adma"`, `did you mean "adam"?`}},
		{"zzzzzzz", nil, []string{"want one of adafactor, adagrad,"}},
		{"sgd", map[string]any{"momentun": 0.9}, []string{`sgd has no "momentun"`, `did you mean "momentum"?`}},
		{"adam", map[string]any{"beta": 0.9, "eps": -1, "weightdecay": 1}, []string{`"betas"`, `eps: want 0 or more, got -1`, `"weight_decay"`}},
		{"adam", map[string]any{"betas": 0.9}, []string{"betas: want two numbers, each 0 or more, below 1, got 0.9"}},
		{"adam", map[string]any{"betas": []any{0.9, 1}}, []string{"betas: want two numbers"}},
		{"adam", map[string]any{"betas": []any{0.9, 0.9, 0.9}}, []string{"betas"}},
		{"adam", map[string]any{"lr": "fast"}, []string{"lr: want 0 or more, got fast"}},
		{"adam", map[string]any{"lr": math.NaN()}, []string{"lr"}},
		{"adam", map[string]any{"lr": math.Inf(1)}, []string{"lr"}},
		{"adam", map[string]any{"lr": nil}, []string{"lr"}},
		{"sgd", map[string]any{"nesterov": 1}, []string{"nesterov: want true or false, got 1"}},
		{"sgd", map[string]any{"nesterov": true}, []string{"nesterov needs a momentum"}},
		{"sgd", map[string]any{"nesterov": true, "momentum": 0.9, "dampening": 0.1}, []string{"dampening 0"}},
	} {
		_, err := New[float64](c.name, c.hyper)
		if err == nil {
			t.Errorf("New(%q, %v): no error", c.name, c.hyper)
			continue
		}
		if !errors.Is(err, ErrHyper) && !errors.Is(err, ErrUnknownRule) {
			t.Errorf("New(%q, %v): %v wraps neither sentinel", c.name, c.hyper, err)
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("New(%q, %v): %v, want it to say %s", c.name, c.hyper, err, w)
			}
		}
	}
}

func TestNewAcceptsKindsOfNumbers(t *testing.T) {
	for _, lr := range []any{1, int64(1), uint64(1), float32(1), 1.0} {
		d, _ := Lookup("adam")
		v, err := d.Resolve(map[string]any{"lr": lr, "betas": []float64{0.5, 0.25}})
		if err != nil {
			t.Fatalf("lr %T: %v", lr, err)
		}
		a, b := v.Pair("betas")
		if v.Float("lr") != 1 || a != 0.5 || b != 0.25 || v.Float("eps") != 1e-8 {
			t.Errorf("lr %T: got %v", lr, v)
		}
	}
}

type ownFloat float32

func TestNewOtherPrecision(t *testing.T) {
	if _, err := New[ownFloat]("adam", nil); err == nil {
		t.Error("New for a type without constructor: no error")
	}
}

func TestRegisterPanics(t *testing.T) {
	ok := Def{Name: "test-only", New32: newAdam[float32], New64: newAdam[float64]}
	for name, change := range map[string]func(*Def){
		"taken":   func(d *Def) { d.Name = "adam" },
		"no name": func(d *Def) { d.Name = "" },
		"no new":  func(d *Def) { d.New64 = nil },
		"default": func(d *Def) { d.Hypers = []Hyper{number("x", 2, 0, 1, "out of its range")} },
		"integer": func(d *Def) { d.Hypers = []Hyper{{Name: "x", Default: 1, Max: 1, Doc: "not a float64"}} },
	} {
		d := ok
		change(&d)
		if !panics(func() { Register(d) }) {
			t.Errorf("%s: no panic", name)
		}
	}
}

func TestSuggest(t *testing.T) {
	known := []string{"lr", "momentum", "weight_decay", "eps"}
	for word, want := range map[string]string{
		"momentun": `"momentum"`, "wieght_decay": `"weight_decay"`, "epsilon": `"eps"`, "LR": `"lr"`,
		"xyzzyplugh": "want one of", strings.Repeat("a", 1000): "want one of", "": "one of",
	} {
		if got := Suggest(word, known); !strings.Contains(got, want) {
			t.Errorf("Suggest(%.20q) = %s, want %s", word, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"ab", "ba", 1}, {"lr", "rl", 1}} {
		if d, e := editDistance(c.a, c.b), editDistance(c.b, c.a); d != c.want || e != c.want {
			t.Errorf("editDistance(%q, %q) = %d and %d, want %d", c.a, c.b, d, e, c.want)
		}
	}
}
