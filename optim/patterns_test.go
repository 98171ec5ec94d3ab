package optim

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "", false}, {"*", "", true}, {"*", "a.b/c", true}, {"?", "", false}, {"?", "é", true},
		{"*.bias", "fc1.bias", true}, {"*.bias", "encoder.0.fc.bias", true}, {"*.bias", "bias", false}, {"*.bias", "fc.bias2", false},
		{"*norm*", "layer/norm_1.weight", true}, {"*norm*", "norm", true}, {"layer?.w", "layer1.w", true}, {"layer?.w", "layer10.w", false},
		{"a*b*c", "aXbXbXc", true}, {"a*b*c", "aXcXb", false}, {"[ab]", "a", false}, {"[ab]", "[ab]", true}, {"a.b", "aXb", false},
	} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
	if Match(strings.Repeat("*a", 1000)+"b", strings.Repeat("a", 10000)) { // must not take exponential time
		t.Error("matched without its last letter")
	}
}

// Match agrees with a regular expression.
func TestMatchTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringOfN(rapid.RuneFrom([]rune("ab.*?é")), 0, 8, -1).Draw(t, "pattern")
		name := rapid.StringOfN(rapid.RuneFrom([]rune("ab./é")), 0, 10, -1).Draw(t, "name")
		form := regexp.QuoteMeta(pattern)
		form = strings.ReplaceAll(strings.ReplaceAll(form, `\*`, ".*"), `\?`, ".")
		if got, want := Match(pattern, name), regexp.MustCompile("^(?s:"+form+")$").MatchString(name); got != want {
			t.Fatalf("Match(%q, %q) = %v, want %v", pattern, name, got, want)
		}
	})
}
