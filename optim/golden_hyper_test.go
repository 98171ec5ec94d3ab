package optim

import (
	"slices"
	"testing"
)

// wrongHyper says how to falsify a hyper-parameter, by name or by rule and name.
// Others are falsified by kind: numbers grow by a hundredth and a thousandth,
// booleans turn, pairs are swapped.
var wrongHyper = map[string]func(x any) any{
	"lr":       func(x any) any { return x.(float64) * 1.001 },
	"eps":      func(x any) any { return x.(float64) * 1.5 },
	"momentum": func(x any) any { return x.(float64) * 0.999 },
	// Larger second moments hide a smaller change.
	"adagrad.eps":   func(x any) any { return x.(float64)*1.5 + 1e-6 },
	"adam_lazy.eps": func(x any) any { return x.(float64)*1.5 + 1e-6 },
	// Thresholds that few values come near.
	"adamp.delta": func(any) any { return 0.0 },
	"sgdp.delta":  func(any) any { return 0.0 },
	// Words and settings.
	"ag_nonconvex.penalty": func(x any) any { return map[any]any{"scad": "mcp", "mcp": "scad"}[x] },
	"sam.base":             func(x any) any { return map[any]any{"adamw": "adam", "sgd": "sgd"}[x] },
	"sam.base_hyper":       func(any) any { return map[string]any{"betas": []any{0.9, 0.99}} },
}

// unnoticedHyper lists, by rule and name, hyper-parameters that change nothing
// in any golden file, and why.
var unnoticedHyper = map[string]string{
	"sophia_g.hessian_interval": "says when the input comes, which a file records",
	"gravity.alpha":             "is the deviation of a start that a file records",
	"sgdp.eps":                  "matters for norms below it alone",
	"oasis.adaptive":            "says which inputs come, which a file records",
}

// withoutGolden lists rules without a recorded trajectory of a model, and what
// stands in for it.
var withoutGolden = map[string]string{
	"normalized_gd": "cases of another form, in golden_aggregation_test.go",
	"spider":        "cases of another form, in golden_aggregation_test.go",
	"o2nc":          "cases of another form, in golden_aggregation2_test.go",
	"moe_bias":      "cases of another form, in golden_aggregation2_test.go",
}

// Every rule is compared with a reference, or says why not.
func TestEveryRuleHasGolden(t *testing.T) {
	has := map[string]bool{}
	for _, file := range goldenIn(t, ownGolden) {
		has[readGolden(t, file).ruleName()] = true
	}
	for _, name := range Names() {
		if why := withoutGolden[name]; has[name] == (why != "") {
			t.Errorf("%s: golden files: %v, reason for none: %q", name, has[name], why)
		}
	}
}

func falsify(rule, name string, x any) any {
	for _, key := range []string{rule + "." + name, name} {
		if wrong := wrongHyper[key]; wrong != nil {
			return wrong(x)
		}
	}
	switch x := x.(type) {
	case float64:
		return x*1.01 + 1e-3
	case bool:
		return !x
	case []any:
		return []any{x[1], x[0]}
	}
	return x
}

// setLR replaces the rate that g's schedule gives.
func (g *golden) setLR(lr any) {
	for _, name := range []string{"lr", "eta0", "step"} {
		if _, ok := g.Hyper[name]; ok {
			g.Hyper[name] = lr
		}
	}
	if inner, ok := g.Hyper["muon"].(map[string]any); ok {
		inner["lr"] = lr
	}
}

// Falsified hyper-parameters must be noticed by some golden file: a tolerance
// that forgives them would forgive a wrong rule.
func TestGoldenNoticesWrongHyper(t *testing.T) {
	noticed := map[string]bool{}
	for _, file := range goldenIn(t, ownGolden) {
		g := readGolden(t, file)
		name := g.ruleName()
		if _, ok := Lookup(name); !ok {
			continue
		}
		given, err := g.hyper()
		if err != nil {
			t.Fatal(err)
		}
		for _, hyper := range sortedKeys(given) {
			key := name + "." + hyper
			if noticed[key] || unnoticedHyper[key] != "" {
				continue
			}
			h, _ := g.hyper()
			h[hyper] = falsify(name, hyper, h[hyper])
			rule, err := New[float64](name, h)
			if err != nil {
				continue
			}
			other := g
			if hyper == "lr" {
				other = readGolden(t, file)
				other.setLR(h[hyper])
			}
			noticed[key] = compare(g, replay(t, other, rule, g.layout(t, 0), RunnerOptions{})) != nil
		}
	}
	for _, key := range sortedKeys(noticed) {
		if !noticed[key] {
			t.Errorf("no golden file notices a wrong %s", key)
		}
	}
	if len(noticed) < 80 {
		t.Errorf("only %d hyper-parameters tried", len(noticed))
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
