package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"tributary/optim"
)

var update = flag.Bool("update", false, "rewrite the table of docs/rules.md")

// docs/rules.md says of every rule what the rule says of itself.
func TestRulesPage(t *testing.T) {
	const page, begin, end = "../../docs/rules.md", " -->\n", "<!-- end -->"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	at := strings.Index(text, "<!-- table:")
	from := at + strings.Index(text[at:], begin) + len(begin)
	to := strings.Index(text, end)
	var table strings.Builder
	table.WriteString("\n| rule | | pushed | passes | state | takes rows |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, name := range optim.Names() {
		x, err := describeRule(name)
		if err != nil {
			t.Fatal(err)
		}
		rows := ""
		if x.RowSparse {
			rows = "yes"
		}
		bytes := fmt.Sprint(x.MatrixBytes)
		if x.MatrixBytes != x.VectorBytes {
			bytes = fmt.Sprintf("%d, vectors %d", x.MatrixBytes, x.VectorBytes)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s | %s | %s |\n", name, x.Doc, strings.Join(x.pushes(), "; then "), x.passes(), bytes, rows)
	}
	table.WriteString("\n")
	if text[from:to] == table.String() {
		return
	}
	if !*update {
		t.Fatalf("the table of docs/rules.md is not that of the rules: run go test ./cmd/ps -run TestRulesPage -update, and look at what changed")
	}
	if err := os.WriteFile(page, []byte(text[:from]+table.String()+text[to:]), 0o644); err != nil {
		t.Fatal(err)
	}
}
