// Package docs holds the documents. Its tests keep them true to the code where
// a machine can tell.
package docs

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"tributary/comm"
	"tributary/ledger"
)

// pages are the documents by path from here.
func pages(t *testing.T) map[string]string {
	out := map[string]string{}
	for _, pattern := range []string{"*.md", "../*.md"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			out[n] = read(t, n)
		}
	}
	return out
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	fence   = regexp.MustCompile("(?s)\n```.*?\n```")
	link    = regexp.MustCompile(`\[([^\]\[]*)\]\(([^()\s]+)\)`)
	goName  = regexp.MustCompile("^`(?:[A-Za-z_]\\w*\\.)?([A-Za-z_]\\w*)`$")
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
)

// Every relative link leads to a file or folder of this repository, and its
// anchor to a heading there. A link from a Go name leads to a file or folder
// that still has the name.
func TestLinks(t *testing.T) {
	n := 0
	for page, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[2], ":") { // of another site
				continue
			}
			n++
			if err := checkLink(page, m[1], m[2]); err != nil {
				t.Errorf("%s: [%s](%s): %v", page, m[1], m[2], err)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d links found", n)
	}
}

func checkLink(page, text, target string) error {
	path, anchor, _ := strings.Cut(target, "#")
	file := page
	if path != "" {
		file = filepath.Join(filepath.Dir(page), path)
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if strings.HasPrefix(filepath.ToSlash(file), "../..") {
		return errors.New("outside of the repository")
	}
	if info.IsDir() {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if anchor != "" && !anchors(string(b))[anchor] {
		return errors.New("no such heading")
	}
	if m := goName.FindStringSubmatch(text); m != nil && strings.HasSuffix(file, ".go") &&
		!regexp.MustCompile(`\b`+m[1]+`\b`).Match(b) {
		return fmt.Errorf("the file has no %s", m[1])
	}
	return nil
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// anchors are the headings of a page as GitHub names them.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		out[strings.ReplaceAll(strings.ToLower(notInAnchor.ReplaceAllString(m[1], "")), " ", "-")] = true
	}
	return out
}

// A check that cannot fail is not a check.
func TestLinksCanFail(t *testing.T) {
	for _, c := range [][2]string{{"a page", "no-such-page.md"}, {"a part", "jobs.md#no-such-part"}, {"`noSuchName`", "../ledger/ledger.go"}, {"away", "../../.."}} {
		if checkLink("jobs.md", c[0], c[1]) == nil {
			t.Errorf("[%s](%s) was not noticed", c[0], c[1])
		}
	}
	if err := checkLink("jobs.md", "`State.Apply`", "../ledger/ledger.go"); err != nil {
		t.Error(err)
	}
}

func mustHave(t *testing.T, page, text string) {
	t.Helper()
	if !strings.Contains(read(t, page), text) {
		t.Errorf("docs/%s lacks %q", page, text)
	}
}

func TestSubjects(t *testing.T) {
	for _, s := range []string{
		strings.Replace(comm.ShardSubject("JOB", 77, "FROM"), "77", "SHARD", 1), comm.WorkerSubject("JOB", "WORKER"), comm.ParamsSubject("JOB"),
		comm.PeerSubject("JOB"), comm.CoordSubject("JOB", "FROM"), comm.NewsSubject("JOB"),
	} {
		mustHave(t, "protocol.md", "| `"+s+"` |")
	}
}

// Keys of the authority, as package cluster makes them.
func TestKeys(t *testing.T) {
	node := read(t, "../cluster/node.go")
	for form, doc := range map[string]string{
		`nodePrefix = "node."`: "node.NODE", `jobPrefix  = "job."`: "job.JOB", `"log.%s.%010d"`: "log.JOB.NUMBER",
		`"shard.%s.%d"`: "shard.JOB.SHARD", `"worker.%s.%s"`: "worker.JOB.WORKER",
	} {
		if !strings.Contains(node, form) {
			t.Errorf("cluster/node.go no longer has %s; docs/protocol.md must follow", form)
		}
		mustHave(t, "protocol.md", "| `"+doc+"` |")
	}
}

func TestEndpoints(t *testing.T) {
	found := regexp.MustCompile(`\{"(\w+)", n\.\w+\}`).FindAllStringSubmatch(read(t, "../cluster/control.go"), -1)
	if len(found) < 4 {
		t.Fatalf("found the endpoints %q", found)
	}
	for _, m := range found {
		mustHave(t, "protocol.md", "| `"+m[1]+"` |")
	}
}

func TestDecisions(t *testing.T) {
	for f := range reflect.TypeFor[ledger.Decision]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		mustHave(t, "protocol.md", "| `"+name+"` |")
	}
	f, err := parser.ParseFile(token.NewFileSet(), "../ledger/ledger.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(f, func(x ast.Node) bool {
		if s, ok := x.(*ast.ValueSpec); ok && len(s.Values) == 1 {
			if id, ok := s.Type.(*ast.Ident); ok && id.Name == "Kind" {
				n++
				mustHave(t, "protocol.md", "| `"+strings.Trim(s.Values[0].(*ast.BasicLit).Value, `"`)+"` |")
			}
		}
		return true
	})
	if n < 7 {
		t.Errorf("found %d kinds of decision", n)
	}
}

// Every rule has a heading and says how far it is built.
func TestRules(t *testing.T) {
	text := read(t, "consistency.md")
	parts := regexp.MustCompile(`(?m)^## `).Split(text, -1)
	for n := 1; n <= 20; n++ {
		name := fmt.Sprintf("C%d:", n)
		ok := false
		for _, p := range parts {
			ok = ok || strings.HasPrefix(p, name) && regexp.MustCompile(`\*\*(Built|Partly|Not yet)`).MatchString(p)
		}
		if !ok {
			t.Errorf("docs/consistency.md does not say how far %s is built", strings.TrimSuffix(name, ":"))
		}
	}
}
