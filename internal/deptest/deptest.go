// Package deptest guards the arrows between packages. A guard is a test inside
// the package it guards, so that a change of what the package depends on is
// never answered from the test cache.
package deptest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "tributary/"

// Ours fails if the package under test depends, directly or not, on a package
// of this module that is not among allowed (named without the module), beside
// itself.
func Ours(t *testing.T, allowed ...string) {
	t.Helper()
	deps := list(t, "-deps", ".")
	self := deps[len(deps)-1] // go list names a package after all that it depends on
	for _, p := range deps {
		if name, ours := strings.CutPrefix(p, module); ours && p != self && !slices.Contains(allowed, name) {
			t.Errorf("%s depends on %s", self, p)
		}
	}
}

// outside are packages of the standard library that reach the network, disk,
// processes or a log.
var outside = []string{"log", "net", "os", "syscall"}

// Pure fails unless the package under test is one of functions and state
// machines: it neither imports nor, save through others' imports allowed in
// formats, depends on what reaches the outside, and it reads no clock, draws
// no unseeded numbers and starts no goroutine. Of third parties it may import
// only those allowed.
func Pure(t *testing.T, thirdParty ...string) {
	t.Helper()
	for _, p := range list(t, "-f", `{{join .Imports "\n"}}`, ".") {
		root, _, _ := strings.Cut(p, "/")
		switch {
		case slices.Contains(outside, root):
			t.Errorf("import of %s", p)
		case strings.Contains(root, ".") && !slices.Contains(thirdParty, p):
			t.Errorf("import of %s", p)
		}
	}
	// Anything may depend on os, which fmt imports, but nothing on a network.
	for _, p := range list(t, "-deps", ".") {
		if p == "net" || p == "log/slog" || strings.HasPrefix(p, "net/") && p != "net/url" {
			t.Errorf("dependency on %s", p)
		}
	}
	Timeless(t, sources(t)...)
}

// impure are functions whose results depend on more than their arguments.
var impure = map[string][]string{
	"time":         {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"},
	"math/rand":    nil, // nil: all
	"math/rand/v2": nil,
	"crypto/rand":  nil,
}

// Timeless fails if one of the named files of the package under test reads a
// clock, draws unseeded numbers, or starts a goroutine.
func Timeless(t *testing.T, files ...string) {
	t.Helper()
	for _, name := range files {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		named := map[string]string{} // what the file calls a package → its path
		for _, im := range f.Imports {
			path, _ := strconv.Unquote(im.Path.Value)
			as := strings.TrimSuffix(path, "/v2")
			as = as[strings.LastIndex(as, "/")+1:]
			if im.Name != nil {
				as = im.Name.Name
			}
			named[as] = path
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%v: a goroutine", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if !ok {
					break
				}
				if names, bad := impure[named[x.Name]]; bad && (names == nil || slices.Contains(names, n.Sel.Name)) {
					t.Errorf("%v: %s.%s", fset.Position(n.Pos()), x.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
}

// sources are the files of the package under test, without tests.
func sources(t *testing.T) []string {
	t.Helper()
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		if n := f.Name(); strings.HasSuffix(n, ".go") && !strings.HasSuffix(n, "_test.go") {
			names = append(names, n)
		}
	}
	return names
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}
