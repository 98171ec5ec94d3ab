package docs

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"tributary/optim"
)

var quoted = regexp.MustCompile("`([^`]*)`")

// sections are the names in code in the second-order headings of a page.
func sections(page string) (names []string) {
	for _, line := range strings.Split(page, "\n") {
		if strings.HasPrefix(line, "## ") {
			for _, m := range quoted.FindAllStringSubmatch(line, -1) {
				names = append(names, m[1])
			}
		}
	}
	return names
}

// Every rule has a section that says where it differs from its paper, and
// every section with a name in code is about a rule there is.
func TestDivergence(t *testing.T) {
	names := sections(read(t, "divergence.md"))
	for _, rule := range optim.Names() {
		if !slices.Contains(names, rule) {
			t.Errorf("docs/divergence.md has no section `%s`", rule)
		}
	}
	for i, n := range names {
		if _, ok := optim.Lookup(n); !ok {
			t.Errorf("docs/divergence.md has a section `%s`, and optim no such rule", n)
		}
		if slices.Contains(names[:i], n) {
			t.Errorf("docs/divergence.md has two sections `%s`", n)
		}
	}
}

// A check that cannot fail is not a check.
func TestSections(t *testing.T) {
	got := sections("# `page`\n## `a`, `b`\n`c`\n## Others\n### `d`\n")
	if want := []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("sections %q, want %q", got, want)
	}
}
