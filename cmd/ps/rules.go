package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"tributary/layout"
	"tributary/optim"
)

// rulesCmd lists the update rules or explains one.
type rulesCmd struct {
	Rule string `arg:"" optional:"" name:"rule" help:"Rule to explain; without one, all are listed."`
	JSON bool   `name:"json" help:"Print JSON."`
}

// Run prints the rules.
func (c *rulesCmd) Run() error { return c.print(os.Stdout) }

func (c *rulesCmd) print(w io.Writer) error {
	names := optim.Names()
	if c.Rule != "" {
		if !slices.Contains(names, c.Rule) {
			return fmt.Errorf("%w %q: %s", optim.ErrUnknownRule, c.Rule, optim.Suggest(c.Rule, names))
		}
		names = []string{c.Rule}
	}
	all := make([]ruleInfo, len(names))
	for i, name := range names {
		var err error
		if all[i], err = describeRule(name); err != nil {
			return err
		}
	}
	switch {
	case c.JSON && c.Rule != "":
		return json.NewEncoder(w).Encode(&all[0])
	case c.JSON:
		return json.NewEncoder(w).Encode(all)
	case c.Rule != "":
		return all[0].page(w)
	}
	for i := range all {
		all[i].entry(w)
	}
	_, err := fmt.Fprintln(w, "\nPushes, passes and state are those of the default hyper-parameters. More on one: ps rules NAME")
	return err
}

// ruleInfo is what can be said about a rule with its default hyper-parameters.
type ruleInfo struct {
	Name string `json:"name"`
	Doc  string `json:"doc"`
	From string `json:"from"`
	// Pushes are those of one update, in their order: nearly always one.
	Pushes []pushInfo `json:"pushes"`
	// SomeSteps are roles that contributions to some steps carry, too.
	SomeSteps []string `json:"some_steps,omitempty"`
	Loss      bool     `json:"loss"`
	// Evaluated is the slot that is evaluated; empty for the parameters.
	Evaluated string `json:"evaluated,omitempty"`
	// Perturbed is how far from the parameters workers take gradients.
	Perturbed float64    `json:"perturbed,omitempty"`
	RowSparse bool       `json:"row_sparse"`
	Slots     []slotInfo `json:"slots"`
	// Bytes of state per parameter in slots with values per element.
	MatrixBytes int         `json:"matrix_bytes_per_parameter"`
	VectorBytes int         `json:"vector_bytes_per_parameter"`
	Hypers      []hyperInfo `json:"hypers"`
}

type pushInfo struct {
	Roles  []string          `json:"roles"`
	Passes [][]reductionInfo `json:"passes"`
}

type reductionInfo struct {
	Name   string `json:"name"`
	Op     string `json:"op"`
	Over   string `json:"over"`
	Values int    `json:"values"` // for each of these
}

// String is the reduction in words.
func (r reductionInfo) String() string {
	s := fmt.Sprintf("%s %q over %s", r.Op, r.Name, each(r.Over))
	if r.Values > 1 {
		s += fmt.Sprintf(" (%d values)", r.Values)
	}
	return s
}

// each is all of a class, in words.
func each(class string) string {
	if class == classes[optim.Model] {
		return "the model"
	}
	return "each " + class
}

// slotInfo says what a slot has a value for, in matrices and in vectors; empty
// where there is none.
type slotInfo struct {
	Name   string `json:"name"`
	Matrix string `json:"matrix"`
	Vector string `json:"vector"`
}

type hyperInfo struct {
	Name    string `json:"name"`
	Default any    `json:"default"`
	Range   string `json:"range"`
	Doc     string `json:"doc"`
}

var ops = map[optim.Op]string{optim.Sum: "sum", optim.Max: "maximum", optim.Gather: "gather"}

var classes = map[optim.Class]string{
	optim.Element: "parameter", optim.Row: "row", optim.Column: "column", optim.Tensor: "tensor", optim.Model: "model",
	optim.LastRow: "row of the last two dimensions", optim.LastColumn: "column of the last two dimensions",
}

func describeRule(name string) (ruleInfo, error) {
	d, _ := optim.Lookup(name)
	rule, err := optim.New[float32](name, nil)
	if err != nil {
		return ruleInfo{}, fmt.Errorf("%s with default hyper-parameters: %w", name, err)
	}
	spec := rule.Spec()
	x := ruleInfo{Name: name, Doc: d.Doc, From: d.Paper, Loss: spec.NeedsLoss, Evaluated: spec.Eval, Perturbed: spec.Perturb, RowSparse: spec.Runs, Slots: []slotInfo{}}
	needed := map[string]bool{}
	for _, ph := range spec.Phases {
		p := pushInfo{Roles: []string{}}
		for _, role := range ph.Needs {
			p.Roles = append(p.Roles, role.String())
			needed[role.String()] = true
		}
		for _, ps := range ph.Passes {
			reductions := []reductionInfo{}
			for _, rd := range ps.Reduce {
				reductions = append(reductions, reductionInfo{rd.Name, ops[rd.Op], classes[rd.Over], max(1, rd.Width)})
			}
			p.Passes = append(p.Passes, reductions)
		}
		x.Pushes = append(x.Pushes, p)
	}
	for _, role := range spec.AllRoles() {
		if !needed[role.String()] {
			x.SomeSteps = append(x.SomeSteps, role.String())
		}
	}
	for i := range spec.Slots {
		sl := slotInfo{Name: spec.Slots[i].Name}
		sl.Matrix, x.MatrixBytes = slotIn(&spec.Slots[i], x.MatrixBytes, 64, 32)
		sl.Vector, x.VectorBytes = slotIn(&spec.Slots[i], x.VectorBytes, 64)
		x.Slots = append(x.Slots, sl)
	}
	for _, h := range d.Hypers {
		x.Hypers = append(x.Hypers, hyperInfo{h.Name, h.Default, h.Range(), h.Doc})
	}
	return x, nil
}

// slotIn says what a slot has values for in a tensor of the given shape, and
// adds its bytes per parameter.
func slotIn(sl *optim.Slot, bytes int, shape ...int) (class string, sum int) {
	n := 1
	for _, d := range shape {
		n *= d
	}
	in := sl.In(&layout.Tensor{Name: "x", Shape: shape, Len: n})
	switch {
	case in == nil:
		return "", bytes
	case in.Class == optim.Element:
		bytes += 4 // float32
	}
	return classes[in.Class], bytes
}

// entry prints the rule in the list of all.
func (x *ruleInfo) entry(w io.Writer) {
	hypers := make([]string, len(x.Hypers))
	for i, h := range x.Hypers {
		hypers[i] = h.Name + " " + text(h.Default)
	}
	facts := []string{"pushes " + strings.Join(x.pushes(), ", then "), x.passes()}
	for _, f := range []string{x.points(), x.rowSparse()} {
		if f != "" {
			facts = append(facts, f)
		}
	}
	fmt.Fprintf(w, "%s: %s\n    %s\n    state: %s\n    %s\n", x.Name, x.Doc, strings.Join(facts, "; "), x.state(), strings.Join(hypers, ", "))
}

// page prints all there is to say about the rule.
func (x *ruleInfo) page(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\t%s\nfrom\t%s\n", x.Name, x.Doc, x.From)
	for i, p := range x.pushes() {
		fmt.Fprintf(tw, "%s\t%s\n", ordinal("push", i, len(x.Pushes)), p)
	}
	for i, p := range x.Pushes {
		for j, reductions := range p.Passes {
			what := []string{}
			for _, r := range reductions {
				what = append(what, r.String())
			}
			if len(what) == 0 {
				what = []string{"no sums"}
			}
			name := ordinal("pass", j, len(p.Passes))
			if len(x.Pushes) > 1 {
				name += fmt.Sprintf(" of push %d", i+1)
			}
			fmt.Fprintf(tw, "%s\t%s\n", name, strings.Join(what, ", "))
		}
	}
	if p := x.points(); p != "" {
		fmt.Fprintf(tw, "points\t%s\n", p)
	}
	fmt.Fprintf(tw, "state\t%s\n", x.state())
	sparse := "no: every contribution is of the whole model"
	if x.RowSparse {
		sparse = "yes: rows that no contribution names keep parameters and state"
	}
	fmt.Fprintf(tw, "row-sparse\t%s\n", sparse)
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nhyper-parameters, under optimizer.hyper\n")
	for _, h := range x.Hypers {
		fmt.Fprintf(tw, "  %s\t%s\t%s (%s)\n", h.Name, text(h.Default), h.Doc, h.Range)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "\nPushes, passes and state are those of the defaults; a job's own: ps explain JOB.yaml")
	return err
}

// ordinal is name, with a number where there are several.
func ordinal(name string, i, of int) string {
	if of == 1 {
		return name
	}
	return fmt.Sprintf("%s %d", name, i+1)
}

// pushes says what each push of an update carries.
func (x *ruleInfo) pushes() []string {
	out := make([]string, len(x.Pushes))
	for i, p := range x.Pushes {
		parts := slices.Clone(p.Roles)
		if i == 0 && len(x.SomeSteps) > 0 {
			parts = append(parts, "in some steps "+strings.Join(x.SomeSteps, ", "))
		}
		if x.Loss {
			parts = append(parts, "the loss")
		}
		out[i] = strings.Join(parts, ", ")
		if i > 0 {
			out[i] += " at the point that the servers hand out"
		}
	}
	return out
}

// passes says how many passes an update takes and what they sum over.
func (x *ruleInfo) passes() string {
	n := 0
	var over []string
	for _, p := range x.Pushes {
		n += len(p.Passes)
		for _, reductions := range p.Passes {
			for _, r := range reductions {
				if o := r.Op + " over " + each(r.Over); !slices.Contains(over, o) {
					over = append(over, o)
				}
			}
		}
	}
	s := fmt.Sprintf("%d passes", n)
	if n == 1 {
		s = "1 pass"
	}
	if len(over) == 0 {
		return s + " without sums"
	}
	return s + ": " + strings.Join(over, ", ")
}

// points says which points there are beside the parameters.
func (x *ruleInfo) points() string {
	var out []string
	if x.Evaluated != "" {
		out = append(out, "evaluated at slot "+x.Evaluated)
	}
	if x.Perturbed > 0 {
		out = append(out, fmt.Sprintf("gradients %v away from the parameters", x.Perturbed))
	}
	return strings.Join(out, "; ")
}

func (x *ruleInfo) rowSparse() string {
	if x.RowSparse {
		return "row-sparse"
	}
	return ""
}

// state says what is stored beside the parameters.
func (x *ruleInfo) state() string {
	if len(x.Slots) == 0 {
		return "none"
	}
	names := make([]string, len(x.Slots))
	for i, s := range x.Slots {
		names[i] = s.Name + where(s)
	}
	n := fmt.Sprintf("%d bytes per parameter", x.MatrixBytes)
	if x.MatrixBytes != x.VectorBytes {
		n = fmt.Sprintf("%d bytes per parameter of matrices, %d of vectors", x.MatrixBytes, x.VectorBytes)
	}
	return n + " in " + strings.Join(names, ", ")
}

// where says what a slot has values for, unless it is every parameter.
func where(s slotInfo) string {
	per := func(class string) string {
		if class == "" {
			return "none"
		}
		return "8 bytes per " + class
	}
	parameter := classes[optim.Element]
	switch {
	case s.Matrix == parameter && s.Vector == parameter:
		return ""
	case s.Matrix == s.Vector:
		return " (" + per(s.Matrix) + ")"
	case s.Matrix == parameter:
		return " (matrices; vectors: " + per(s.Vector) + ")"
	case s.Vector == parameter:
		return " (vectors; matrices: " + per(s.Matrix) + ")"
	}
	return " (matrices: " + per(s.Matrix) + "; vectors: " + per(s.Vector) + ")"
}

// text is a default as a job file has it.
func text(x any) string {
	switch x := x.(type) {
	case float64:
		return strings.Replace(strconv.FormatFloat(x, 'g', -1, 64), "e-0", "e-", 1)
	case optim.Pair:
		return "[" + text(x[0]) + ", " + text(x[1]) + "]"
	case optim.Settings:
		return "{}"
	}
	return fmt.Sprint(x)
}
