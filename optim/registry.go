package optim

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
)

// Hyper describes one hyper-parameter of a rule.
type Hyper struct {
	Name string
	// Default is a float64, a bool, a Pair, a string (one of Choices) or Settings;
	// a value given for the hyper-parameter must be of the same kind.
	Default any
	// Min and Max bound the value, both included; a pair's two values each.
	// They do not apply to the other kinds.
	Min, Max float64
	Doc      string
	// Choices are the words a string may be; nil leaves the check to New32.
	Choices []string
}

// Settings are hyper-parameters of a rule inside another one, such as the base
// rule of SAM.
type Settings map[string]any

// Pair is the value of a hyper-parameter with two numbers, such as betas.
type Pair [2]float64

// Below1 is the largest number below one: the Max of decay rates, which must
// not reach one.
const Below1 = 1 - 0x1p-53

// inf is the Max of hyper-parameters without an upper bound.
var inf = math.Inf(1)

// Range is h's range of values in words, for documents and errors.
func (h Hyper) Range() string {
	switch h.Default.(type) {
	case bool:
		return "true or false"
	case string:
		if h.Choices != nil {
			return "one of " + strings.Join(h.Choices, ", ")
		}
		return "a word"
	case Settings:
		return "hyper-parameters by name"
	}
	s := "any number"
	switch {
	case h.Max == Below1:
		s = fmt.Sprintf("%v or more, below 1", h.Min)
	case !math.IsInf(h.Max, 1) && !math.IsInf(h.Min, -1):
		s = fmt.Sprintf("%v to %v", h.Min, h.Max)
	case !math.IsInf(h.Min, -1):
		s = fmt.Sprintf("%v or more", h.Min)
	}
	if _, ok := h.Default.(Pair); ok {
		s = "two numbers, each " + s
	}
	return s
}

// Values are the hyper-parameters of a rule, complete and checked: every
// declared name is present, in the kind of its default.
type Values map[string]any

// Float returns a number. It panics if the rule declares none of that name.
func (v Values) Float(name string) float64 { return v[name].(float64) }

// Bool returns a boolean. It panics if the rule declares none of that name.
func (v Values) Bool(name string) bool { return v[name].(bool) }

// Pair returns two numbers. It panics if the rule declares no such pair.
func (v Values) Pair(name string) (a, b float64) {
	p := v[name].(Pair)
	return p[0], p[1]
}

// String returns a word. It panics if the rule declares none of that name.
func (v Values) String(name string) string { return v[name].(string) }

// Settings returns hyper-parameters of an inner rule, still to be checked. It
// panics if the rule declares none of that name.
func (v Values) Settings(name string) Settings { return v[name].(Settings) }

// Def defines a rule under a name.
type Def struct {
	Name   string
	Doc    string // one sentence
	Paper  string // where the rule comes from
	Hypers []Hyper
	// New32 and New64 make the rule from checked values. They return an error
	// for combinations of values that make no sense.
	New32 func(Values) (Rule[float32], error)
	New64 func(Values) (Rule[float64], error)
	// LR returns the base learning rate, which is handed to the schedule; nil
	// means the hyper-parameter lr, or 1 where there is none: the schedule is
	// then a multiplier.
	LR func(Values) (float64, error)
}

// BaseLR returns the base learning rate of the rule with the given values.
func (d *Def) BaseLR(v Values) (float64, error) {
	if d.LR != nil {
		return d.LR(v)
	}
	if lr, ok := v["lr"].(float64); ok {
		return lr, nil
	}
	return 1, nil
}

// Errors of this package's look-ups; match them with errors.Is.
var (
	// ErrUnknownRule: no rule has the name.
	ErrUnknownRule = errors.New("unknown update rule")
	// ErrHyper: a hyper-parameter is unknown, of the wrong kind or out of range.
	ErrHyper = errors.New("bad hyper-parameter")
)

// HyperError is a problem of one hyper-parameter. It wraps [ErrHyper].
type HyperError struct {
	Rule, Name string
	Text       string // the whole message
}

// Error implements error.
func (e *HyperError) Error() string { return e.Text }

// Unwrap implements errors.Is.
func (e *HyperError) Unwrap() error { return ErrHyper }

// within turns problems of an inner rule's hyper-parameters into problems of
// the hyper-parameter of rule that holds them.
func within(rule, name string, err error) error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range many.Unwrap() {
			errs = append(errs, within(rule, name, e))
		}
		return errors.Join(errs...)
	}
	text := fmt.Sprintf("%s: %s: %v", rule, name, err)
	if h := (*HyperError)(nil); errors.As(err, &h) {
		name += "." + h.Name
	}
	return &HyperError{rule, name, text}
}

// registry is the one piece of global state: a rule is one file, which
// registers itself in its init, so that adding a rule touches no other file.
var registry = struct {
	sync.RWMutex
	defs map[string]Def
}{defs: map[string]Def{}}

// Register adds a rule. It panics if d is incomplete or its name is taken:
// both are mistakes in the program.
func Register(d Def) {
	registry.Lock()
	defer registry.Unlock()
	if _, taken := registry.defs[d.Name]; taken || d.Name == "" || d.New32 == nil || d.New64 == nil {
		panic(fmt.Sprintf("optim: rule %q is incomplete or registered twice", d.Name))
	}
	for _, h := range d.Hypers {
		if _, err := h.check(h.Default); err != nil {
			panic(fmt.Sprintf("optim: rule %q: default of %v", d.Name, err))
		}
	}
	registry.defs[d.Name] = d
}

// Lookup returns the definition of a rule.
func Lookup(name string) (Def, bool) {
	registry.RLock()
	defer registry.RUnlock()
	d, ok := registry.defs[name]
	return d, ok
}

// Names returns the names of all rules in alphabetical order.
func Names() []string {
	registry.RLock()
	defer registry.RUnlock()
	names := make([]string, 0, len(registry.defs))
	for n := range registry.defs {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// New makes the named rule. hyper may hold numbers of any Go type, booleans,
// and slices of two numbers; what it leaves out takes its default. All
// problems are reported together.
func New[T Float](name string, hyper map[string]any) (Rule[T], error) {
	d, ok := Lookup(name)
	if !ok {
		return nil, fmt.Errorf("%w %q: %s", ErrUnknownRule, name, Suggest(name, Names()))
	}
	v, err := d.Resolve(hyper)
	if err != nil {
		return nil, err
	}
	if f, ok := any(d.New32).(func(Values) (Rule[T], error)); ok {
		return f(v)
	}
	if f, ok := any(d.New64).(func(Values) (Rule[T], error)); ok {
		return f(v)
	}
	return nil, fmt.Errorf("rule %q: no version for elements of type %T", name, T(0))
}

// Resolve checks hyper against the definition and fills in the defaults. All
// problems are joined, in alphabetical order of the names.
func (d *Def) Resolve(hyper map[string]any) (Values, error) {
	v := make(Values, len(d.Hypers))
	known := make([]string, 0, len(d.Hypers))
	for _, h := range d.Hypers {
		v[h.Name] = h.Default
		known = append(known, h.Name)
	}
	given := make([]string, 0, len(hyper))
	for n := range hyper {
		given = append(given, n)
	}
	slices.Sort(given)
	var errs []error
	for _, n := range given {
		i := slices.Index(known, n)
		if i < 0 {
			errs = append(errs, &HyperError{d.Name, n, fmt.Sprintf("%s has no %q: %s", d.Name, n, Suggest(n, known))})
			continue
		}
		x, err := d.Hypers[i].check(hyper[n])
		if err != nil {
			errs = append(errs, &HyperError{d.Name, n, fmt.Sprintf("%s: %v", d.Name, err)})
			continue
		}
		v[n] = x
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return v, nil
}

// check returns x as the kind of h.Default if it is one and is in range.
func (h Hyper) check(x any) (any, error) {
	bad := fmt.Errorf("%s: want %s, got %v", h.Name, h.Range(), x)
	switch h.Default.(type) {
	case bool:
		if b, ok := x.(bool); ok {
			return b, nil
		}
	case float64:
		if f, ok := h.number(x); ok {
			return f, nil
		}
	case Pair:
		if p, ok := h.pair(x); ok {
			return p, nil
		}
	case string:
		if w, ok := x.(string); ok && (h.Choices == nil || slices.Contains(h.Choices, w)) {
			return w, nil
		} else if ok {
			return nil, fmt.Errorf("%s: %s", h.Name, NoneOf(w, h.Choices))
		}
	case Settings:
		switch m := x.(type) {
		case Settings:
			return m, nil
		case map[string]any:
			return Settings(m), nil
		}
	}
	return nil, bad
}

func (h Hyper) pair(x any) (p Pair, ok bool) {
	var list []any
	switch x := x.(type) {
	case Pair:
		list = []any{x[0], x[1]}
	case [2]float64:
		list = []any{x[0], x[1]}
	case []float64:
		for _, f := range x {
			list = append(list, f)
		}
	case []any:
		list = x
	}
	if len(list) != 2 {
		return p, false
	}
	for i, e := range list {
		if p[i], ok = h.number(e); !ok {
			return p, false
		}
	}
	return p, true
}

func (h Hyper) number(x any) (float64, bool) {
	var f float64
	switch x := x.(type) {
	case float64:
		f = x
	case float32:
		f = float64(x)
	case int:
		f = float64(x)
	case int64:
		f = float64(x)
	case uint64:
		f = float64(x)
	default:
		return 0, false
	}
	// NaN fails both comparisons.
	return f, f >= h.Min && f <= h.Max && !math.IsInf(f, 0)
}

// Suggest says which of the known words an unknown one was meant to be, for
// the end of an error message.
func Suggest(word string, known []string) string {
	if best := nearest(word, known); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "want one of " + strings.Join(known, ", ")
}

// NoneOf says that a word is none of those known, and which was meant if one
// is near.
func NoneOf(word string, known []string) string {
	text := fmt.Sprintf("%q is none of %s", word, strings.Join(known, ", "))
	if best := nearest(word, known); best != "" {
		text += fmt.Sprintf(": did you mean %q?", best)
	}
	return text
}

// nearest is the known word that differs least, in whatever case; "" if all
// differ much.
func nearest(word string, known []string) string {
	best, dist := "", len(word)/2+2
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d < dist {
			best, dist = k, d
		}
	}
	return best
}

// editDistance is the number of letters to insert, delete, replace or swap
// with their neighbour to turn a into b.
func editDistance(a, b string) int {
	const limit = 64 // longer words are nobody's misspelling
	if len(a) > limit || len(b) > limit {
		return math.MaxInt
	}
	var d [limit + 1][limit + 1]int
	for i := range len(a) + 1 {
		for j := range len(b) + 1 {
			switch {
			case i == 0:
				d[i][j] = j
			case j == 0:
				d[i][j] = i
			default:
				replace := d[i-1][j-1]
				if a[i-1] != b[j-1] {
					replace++
				}
				d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, replace)
				if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
					d[i][j] = min(d[i][j], d[i-2][j-2]+1)
				}
			}
		}
	}
	return d[len(a)][len(b)]
}
