package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"tributary/optim"
)

// rulesText is what `ps rules` prints.
func rulesText(t *testing.T, c rulesCmd) string {
	t.Helper()
	var b strings.Builder
	if err := c.print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// The list has every rule, and the page of a rule every hyper-parameter.
func TestRules(t *testing.T) {
	list := rulesText(t, rulesCmd{})
	var all []ruleInfo
	if err := json.Unmarshal([]byte(rulesText(t, rulesCmd{JSON: true})), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != len(optim.Names()) {
		t.Fatalf("%d rules in JSON, want %d", len(all), len(optim.Names()))
	}
	for i, name := range optim.Names() {
		d, _ := optim.Lookup(name)
		if !strings.Contains(list, "\n"+name+": "+d.Doc+"\n") && !strings.HasPrefix(list, name+": "+d.Doc+"\n") {
			t.Errorf("the list lacks %s", name)
		}
		page := rulesText(t, rulesCmd{Rule: name})
		if !strings.Contains(page, d.Paper) {
			t.Errorf("%s: no source:\n%s", name, page)
		}
		for _, h := range d.Hypers {
			if !strings.Contains(page, "\n  "+h.Name+" ") || !strings.Contains(page, h.Doc+" ("+h.Range()+")\n") {
				t.Errorf("%s: hyper-parameter %s is not documented:\n%s", name, h.Name, page)
			}
		}
		var one ruleInfo
		if err := json.Unmarshal([]byte(rulesText(t, rulesCmd{Rule: name, JSON: true})), &one); err != nil || one.Name != name || one.Doc != d.Doc || all[i].Name != name {
			t.Errorf("%s in JSON: %+v, %v", name, one, err)
		}
	}
}

// What is said about rules of each kind.
func TestRulesFacts(t *testing.T) {
	for name, want := range map[string][]string{
		"sgd":                 {"pushes grad; 1 pass without sums; row-sparse\n    state: none\n", "lr 0.01, momentum 0, "},
		"adamw":               {"state: 8 bytes per parameter in m, v\n", "betas [0.9, 0.999], eps 1e-8, weight_decay 0.01"},
		"lamb":                {"2 passes: sum over each tensor\n"},
		"momo":                {"pushes grad, the loss; 2 passes: sum over the model\n", "4 bytes per parameter in d, f (8 bytes per model)"},
		"sam":                 {"pushes grad, then grad at the point that the servers hand out; 3 passes: sum over the model", "base sgd, base_hyper {}"},
		"schedule_free_adamw": {"evaluated at slot x"},
		"sophia_g":            {"pushes grad, in some steps hess_grad"},
		"adafactor":           {"0 bytes per parameter of matrices, 4 of vectors in v (vectors; matrices: 8 bytes per column of the last two dimensions)"},
	} {
		x, err := describeRule(name)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		x.entry(&b)
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s: no %q in\n%s", name, w, b.String())
			}
		}
	}
	err := (&rulesCmd{Rule: "adma"}).print(&strings.Builder{})
	if !errors.Is(err, optim.ErrUnknownRule) || !strings.Contains(err.Error(), `did you mean "adam"?`) {
		t.Errorf("adma: %v", err)
	}
}

func TestWhere(t *testing.T) {
	for _, c := range []struct {
		s    slotInfo
		want string
	}{
		{slotInfo{"s", "parameter", "parameter"}, ""},
		{slotInfo{"s", "row", "row"}, " (8 bytes per row)"},
		{slotInfo{"s", "parameter", ""}, " (matrices; vectors: none)"},
		{slotInfo{"s", "row", "parameter"}, " (vectors; matrices: 8 bytes per row)"},
		{slotInfo{"s", "row", ""}, " (matrices: 8 bytes per row; vectors: none)"},
	} {
		if got := where(c.s); got != c.want {
			t.Errorf("%+v: %q, want %q", c.s, got, c.want)
		}
	}
}
