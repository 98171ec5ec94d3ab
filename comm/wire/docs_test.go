package wire

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"tributary/optim"
)

const page = "../../docs/protocol.md"

// tables returns the rows of the page's tables as trimmed cells.
func tables(t *testing.T) (rows [][]string) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "| "), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

// wants reports unless some row begins with the given cells.
func wants(t *testing.T, rows [][]string, cells ...string) {
	t.Helper()
	for _, r := range rows {
		if len(r) > len(cells) && reflect.DeepEqual(r[:len(cells)], cells) {
			return
		}
	}
	t.Errorf("docs/protocol.md has no row | %s |", strings.Join(cells, " | "))
}

// constants are the names of the constants of a type in a file of this
// package, in order. Blank ones are "_".
func constants(t *testing.T, file, typ string) (names []string) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		if id, ok := g.Specs[0].(*ast.ValueSpec).Type.(*ast.Ident); !ok || id.Name != typ {
			continue
		}
		for _, s := range g.Specs {
			for _, n := range s.(*ast.ValueSpec).Names {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// Every field of the header stands on the page with its key, name and type, and
// the page lists no others.
func TestFieldsAreDocumented(t *testing.T) {
	rows := tables(t)
	known := map[string]bool{}
	for f := range reflect.TypeFor[Header]().Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("msgpack"), ",")
		known["`"+key+"`"] = true
		wants(t, rows, "`"+key+"`", "`"+f.Name+"`", f.Type.Kind().String())
	}
	for _, r := range rows {
		if len(r) == 5 && (r[2] == "string" || r[2] == "float64" || strings.HasPrefix(r[2], "uint")) && !known[r[0]] {
			t.Errorf("docs/protocol.md has a header field %s, which does not exist", r[0])
		}
	}
}

func TestKindsAreDocumented(t *testing.T) {
	rows := tables(t)
	names := constants(t, "header.go", "Kind")
	if len(names) != int(NumKinds)+1 || names[Metric] != "Metric" {
		t.Fatalf("found the kinds %q", names)
	}
	for n, name := range names[:NumKinds] {
		if name != "_" {
			wants(t, rows, strconv.Itoa(n), "`"+name+"`")
		}
	}
}

func TestCodesAreDocumented(t *testing.T) {
	rows := tables(t)
	names := constants(t, "code.go", "Code")
	if len(names) != int(numCodes)+1 || names[ErrHalted] != "ErrHalted" {
		t.Fatalf("found the codes %q", names)
	}
	for n, name := range names[:numCodes] {
		c := Code(n)
		wants(t, rows, strconv.Itoa(n), c.Error(), "`"+name+"`")
		retry := "no"
		if c.Retry() {
			retry = "yes"
		}
		if c == OK {
			retry = "–"
		}
		for _, r := range rows {
			if len(r) == 5 && r[2] == "`"+name+"`" && r[4] != retry {
				t.Errorf("docs/protocol.md says %q to a retry after %v, want %q", r[4], c, retry)
			}
		}
	}
}

func TestNumbersAreDocumented(t *testing.T) {
	rows := tables(t)
	for _, typ := range []string{"Encoding", "Level"} {
		names := constants(t, "header.go", typ)
		if len(names) == 0 {
			t.Errorf("found no %ss", typ)
		}
		for n, name := range names {
			wants(t, rows, strconv.Itoa(n), "`"+name+"`")
		}
	}
	for r := range optim.NumRoles {
		wants(t, rows, strconv.Itoa(int(r)), "`"+r.String()+"`")
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		fmt.Sprintf("| 0–1 | magic | `%x %x`", magic0, magic1), fmt.Sprintf("| 2 | version | %d |", version),
		fmt.Sprintf("at most %d |", MaxHeaderBytes), fmt.Sprintf("| a header | %d KiB |", MaxHeaderBytes>>10),
		fmt.Sprintf("| a name | %d bytes |", MaxTokenBytes), fmt.Sprintf("| an error's text | %d KiB,", MaxTextBytes>>10),
		fmt.Sprintf("cut at %d bytes", MaxTextBytes),
	} {
		if !strings.Contains(string(text), s) {
			t.Errorf("docs/protocol.md lacks %q", s)
		}
	}
}
