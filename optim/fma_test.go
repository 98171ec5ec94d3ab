package optim

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"strings"
	"testing"
)

// The compiler may fuse a product with the addition that uses it, across
// statements too, unless the product is converted explicitly. So every product
// of floats in this package, in aggregate and in internal/vec must be the
// argument of a conversion, or a factor of another product or quotient (C18).
func TestNoFusedMultiplyAdd(t *testing.T) {
	for _, dir := range []string{".", "../aggregate", "../internal/vec"} {
		bare := bareProducts(t, dir, nil)
		for _, b := range bare {
			t.Error(b + ": product of floats without explicit rounding")
		}
	}
	// The check itself must be able to fail.
	for _, src := range []string{"a*b + c", "c - (a*b)", "-(a * b)", "c + a*b*T(a)"} {
		body := "package p\nfunc f[T ~float32|~float64](a, b, c T) T { return " + src + " }"
		if len(bareProducts(t, "", &body)) == 0 {
			t.Errorf("%s was not noticed", src)
		}
	}
	for _, src := range []string{"T(a*b) + c", "T(a*b*c) - a", "a*b/c + 1", "T(T(a*b)*c) + 1"} {
		body := "package p\nfunc f[T ~float32|~float64](a, b, c T) T { return " + src + " }"
		if b := bareProducts(t, "", &body); len(b) > 0 {
			t.Errorf("%s: %v", src, b)
		}
	}
	body := "package p\nfunc f(a, b float64) float64 { a *= b; return a }"
	if len(bareProducts(t, "", &body)) == 0 {
		t.Error("*= was not noticed")
	}
}

func bareProducts(t *testing.T, dir string, src *string) (found []string) {
	fset := token.NewFileSet()
	var files []*ast.File
	if src != nil {
		f, err := parser.ParseFile(fset, "src.go", *src, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	} else {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(fset, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		if len(files) == 0 {
			t.Fatalf("no Go files in %s", dir)
		}
	}
	// Imports stay unresolved: what comes from them has no type, and a product
	// is caught by its other factor.
	info := types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Error: func(error) {}, Importer: noImports{}}
	_, _ = conf.Check("p", fset, files, &info)
	isFloat := func(e ast.Expr) bool {
		tv := info.Types[e]
		if tv.Type == nil || tv.Value != nil {
			return false
		}
		if _, ok := tv.Type.(*types.TypeParam); ok {
			return true
		}
		b, ok := tv.Type.Underlying().(*types.Basic)
		return ok && b.Info()&types.IsFloat != 0
	}
	for _, f := range files {
		var stack []ast.Node
		ast.Inspect(f, func(n ast.Node) bool {
			if n == nil {
				stack = stack[:len(stack)-1]
				return true
			}
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if n.Op == token.MUL && (isFloat(n.X) || isFloat(n.Y)) && !rounded(stack, info) {
					found = append(found, fset.Position(n.Pos()).String())
				}
			case *ast.AssignStmt:
				if n.Tok == token.MUL_ASSIGN && isFloat(n.Lhs[0]) {
					found = append(found, fset.Position(n.Pos()).String())
				}
			}
			stack = append(stack, n)
			return true
		})
	}
	return found
}

// rounded says whether a product below the nodes of stack is rounded
// before anything can be added to it.
func rounded(stack []ast.Node, info types.Info) bool {
	for i := len(stack) - 1; i >= 0; i-- {
		switch p := stack[i].(type) {
		case *ast.ParenExpr:
			continue
		case *ast.BinaryExpr:
			return p.Op == token.MUL || p.Op == token.QUO
		case *ast.CallExpr:
			return info.Types[p.Fun].IsType()
		default:
			return false
		}
	}
	return false
}

type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }
