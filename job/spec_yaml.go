package job

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"tributary/optim"
)

// MaxSpecBytes bounds a job file.
const MaxSpecBytes = 1 << 20

// Parse reads a job file, YAML or JSON, over the defaults. A key that does not
// exist is an error, as is anything [Spec.Validate] finds; all problems are
// reported at once, each with its line, as [Problems].
func Parse(file []byte) (*Spec, error) {
	if len(file) > MaxSpecBytes {
		return nil, Problems{{Text: fmt.Sprintf("%d bytes, want %d at most", len(file), MaxSpecBytes)}}
	}
	root, err := parseNode(file)
	if err != nil {
		return nil, Problems{{Text: err.Error()}}
	}
	s, d := Default(), &decoder{}
	if root != nil {
		d.value(root, reflect.ValueOf(s).Elem(), "")
	}
	bad := make([]string, 0, len(d.problems))
	for _, p := range d.problems {
		bad = append(bad, p.Path)
	}
	var c checker
	s.check(&c)
	for _, p := range c.problems {
		// What could not be read kept its default: one complaint is enough.
		if !slices.ContainsFunc(bad, func(b string) bool { return b == p.Path || strings.HasPrefix(b, p.Path+".") }) {
			p.Line = lineOf(root, p.Path)
			d.problems = append(d.problems, p)
		}
	}
	if len(d.problems) > 0 {
		slices.SortStableFunc(d.problems, func(a, b Problem) int { return a.Line - b.Line })
		return nil, d.problems
	}
	return s, nil
}

// parseNode returns the root of the only document in file, or nil if there is
// none.
func parseNode(file []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(file))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document in the file")
	}
	if len(doc.Content) != 1 || doc.Content[0].Tag == "!!null" {
		return nil, nil
	}
	return doc.Content[0], nil
}

// Set changes one field: "optimizer.hyper.lr=0.01". The value is YAML. It
// does not validate the whole; call [Spec.Validate] after the last Set. A
// refused assignment changes nothing. Another optimizer.rule starts from its own
// defaults: the hyper-parameters given before belonged to the rule before.
func (s *Spec) Set(assignment string) error {
	path, value, ok := strings.Cut(assignment, "=")
	if !ok || path == "" {
		return Problems{{Text: fmt.Sprintf("%q: want key=value, such as optimizer.hyper.lr=0.01", assignment)}}
	}
	if len(assignment) > MaxSpecBytes {
		return Problems{{Text: "too long"}}
	}
	node, err := parseNode([]byte(value))
	if err != nil {
		return Problems{{Path: path, Text: fmt.Sprintf("%q is not YAML: %s", value, strings.TrimPrefix(err.Error(), "line 1: "))}}
	}
	if node == nil {
		node = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
		if strings.TrimSpace(value) == "" { // "data.path=" empties a word
			node = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str"}
		}
	}
	keys := strings.Split(path, ".")
	if len(keys) > 16 {
		return Problems{{Path: path, Text: "no such field"}}
	}
	for _, key := range slices.Backward(keys) {
		k := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}
		node = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{k, node}}
	}
	c := s.clone()
	d := &decoder{}
	rule := c.Optimizer.Rule
	d.value(node, reflect.ValueOf(c).Elem(), "")
	if c.Optimizer.Rule != rule && path == "optimizer.rule" {
		c.Optimizer.Hyper = nil // they were another rule's
		c.Optimizer.Groups = slices.Clone(c.Optimizer.Groups)
		for i := range c.Optimizer.Groups {
			if g := &c.Optimizer.Groups[i]; g.Rule == "" {
				g.Hyper = nil
			}
		}
	}
	if len(d.problems) > 0 {
		for i := range d.problems {
			d.problems[i].Line = 0
		}
		return d.problems
	}
	*s = *c
	return nil
}

// clone copies s and all it points to that Set may change.
func (s *Spec) clone() *Spec {
	c := *s
	if s.Optimizer.Hyper != nil {
		c.Optimizer.Hyper = make(map[string]any, len(s.Optimizer.Hyper))
		for k, v := range s.Optimizer.Hyper {
			c.Optimizer.Hyper[k] = v
		}
	}
	return &c // slices are replaced whole, never written into
}

// Marshal writes s as a job file that [Parse] reads back.
func (s *Spec) Marshal() ([]byte, error) {
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(s); err != nil {
		return nil, fmt.Errorf("job %q: %w", s.Name, err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("job %q: %w", s.Name, err)
	}
	return buf.Bytes(), nil
}

// decoder reads YAML nodes into Go values by their yaml tags. Unlike the
// library it goes on after a problem, and it names the nearest key.
type decoder struct{ problems Problems }

func (d *decoder) bad(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{Line: n.Line, Path: path, Text: fmt.Sprintf(format, args...)})
}

// maxProblems is how many problems are looked for: beyond that the file is
// something else.
const maxProblems = 100

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if len(d.problems) >= maxProblems {
		return
	}
	if n.Kind == yaml.AliasNode {
		d.bad(n, path, "aliases are not supported")
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			d.bad(n, path, "want a single value")
		} else if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			d.bad(n, path, "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	case reflect.Interface:
		if n.Kind == yaml.MappingNode {
			d.settings(n, v, path)
		} else if x, ok := d.any(n, path); ok {
			v.Set(reflect.ValueOf(x))
		}
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.bad(n, path, "want a list of key: value, got %s", describe(n))
		return
	}
	var names []string
	fields := map[string]int{}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if name != "-" {
			names = append(names, name)
			fields[name] = i
		}
	}
	d.pairs(n, path, func(k, x *yaml.Node, sub string) {
		if i, ok := fields[k.Value]; ok {
			d.value(x, v.Field(i), sub)
		} else {
			d.bad(k, sub, "no such field: %s", optim.Suggest(k.Value, names))
		}
	})
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.bad(n, path, "want a list of key: value, got %s", describe(n))
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	d.pairs(n, path, func(k, x *yaml.Node, sub string) {
		e := reflect.New(v.Type().Elem()).Elem()
		if old := v.MapIndex(reflect.ValueOf(k.Value)); old.IsValid() {
			e.Set(old) // Set adds to what is there
		}
		before := len(d.problems)
		d.value(x, e, sub)
		if len(d.problems) == before {
			v.SetMapIndex(reflect.ValueOf(k.Value), e)
		}
	})
	if v.Len() == 0 {
		v.SetZero()
	}
}

// pairs calls f for each key of a mapping, refusing what is not a word and
// what comes twice.
func (d *decoder) pairs(n *yaml.Node, path string, f func(k, x *yaml.Node, sub string)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content) && len(d.problems) < maxProblems; i += 2 {
		k, x := n.Content[i], n.Content[i+1]
		sub := k.Value
		if path != "" {
			sub = path + "." + k.Value
		}
		if first, twice := seen[k.Value]; twice {
			d.bad(k, sub, "stands here twice, first in line %d", first)
			continue
		}
		if k.Kind != yaml.ScalarNode {
			d.bad(k, path, "want a word as key, got %s", describe(k))
			continue
		}
		seen[k.Value] = k.Line
		f(k, x, sub)
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		v.SetZero()
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.bad(n, path, "want a list, got %s", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, x := range n.Content {
		d.value(x, out.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	if len(n.Content) == 0 {
		out = reflect.Zero(v.Type()) // as if it were absent, so that it reads back equal
	}
	v.Set(out)
}

// settings reads hyper-parameters inside hyper-parameters over those that v
// holds, which are copied: they may be shared.
func (d *decoder) settings(n *yaml.Node, v reflect.Value, path string) {
	if strings.Count(path, ".") > maxNested {
		d.bad(n, path, "nested too deep")
		return
	}
	old, ok := v.Interface().(map[string]any)
	if !ok && !v.IsNil() {
		d.bad(n, path, "want a number, true or false, or a list of numbers, got %s", describe(n))
		return
	}
	m := maps.Clone(old)
	before := len(d.problems)
	d.mapping(n, reflect.ValueOf(&m).Elem(), path)
	if m == nil {
		m = map[string]any{} // no null in JSON
	}
	if len(d.problems) == before {
		v.Set(reflect.ValueOf(m))
	}
}

// maxNested bounds the keys before one that has settings for its value.
const maxNested = 8

// any reads a number, a boolean, a word or a list of these.
func (d *decoder) any(n *yaml.Node, path string) (any, bool) {
	switch {
	case n.Kind == yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, x := range n.Content {
			sub := fmt.Sprintf("%s[%d]", path, i)
			if x.Kind != yaml.ScalarNode {
				d.bad(x, sub, "want a single value, got %s", describe(x))
				return nil, false
			}
			e, ok := d.any(x, sub)
			if !ok {
				return nil, false
			}
			list = append(list, e)
		}
		return list, true
	case n.Kind == yaml.ScalarNode && (n.Tag == "!!int" || n.Tag == "!!float"):
		// One kind of number, so that JSON and YAML read alike.
		var f float64
		if err := n.Decode(&f); err == nil {
			return f, true
		}
	case n.Kind == yaml.ScalarNode && n.Tag == "!!bool":
		var b bool
		if err := n.Decode(&b); err == nil {
			return b, true
		}
	case n.Kind == yaml.ScalarNode && n.Tag == "!!str":
		return n.Value, true
	}
	d.bad(n, path, "want a number, true or false, or a list of numbers, got %s", describe(n))
	return nil, false
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	want, ok := "", false
	switch v.Kind() {
	case reflect.String:
		if n.Kind == yaml.ScalarNode && n.Value == "null" { // `on_bad: null` means the word
			v.SetString("null")
			return
		}
		want, ok = "a word", n.Tag == "!!str"
	case reflect.Bool:
		want, ok = "true or false", n.Tag == "!!bool"
	case reflect.Int:
		want, ok = "a whole number", n.Tag == "!!int"
	case reflect.Uint64:
		want, ok = "a whole number, 0 or more", n.Tag == "!!int"
	case reflect.Float64:
		want, ok = "a number", n.Tag == "!!int" || n.Tag == "!!float"
	default:
		panic("job: no way to read a field of kind " + v.Kind().String())
	}
	if n.Kind != yaml.ScalarNode || !ok || n.Decode(v.Addr().Interface()) != nil {
		d.bad(n, path, "want %s, got %s", want, describe(n))
	}
}

// describe is n in a few words.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a list of key: value"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.Tag == "!!null" {
		return "nothing"
	}
	return strconv.Quote(n.Value[:min(len(n.Value), 40)])
}

// lineOf is the line of the field at path, or of the innermost part of the
// path that the file has; 0 if it has none.
func lineOf(n *yaml.Node, path string) int {
	line := 0
	for key := range strings.SplitSeq(path, ".") {
		key, index, isItem := strings.Cut(key, "[")
		var next *yaml.Node
		for i := 0; n != nil && n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				line, next = n.Content[i].Line, n.Content[i+1]
			}
		}
		if i, err := strconv.Atoi(strings.TrimSuffix(index, "]")); isItem && err == nil && next != nil && i < len(next.Content) {
			next = next.Content[i]
			line = next.Line
		}
		n = next
	}
	return line
}
