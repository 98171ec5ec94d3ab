package train

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What trains knows nothing of servers, networks or jobs.
func TestDeps(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"tributary/train", "tributary/layout", "tributary/internal/rng"}
	for _, pkg := range strings.Fields(string(out)) {
		if strings.HasPrefix(pkg, "tributary/") && !slices.Contains(allowed, pkg) || strings.HasPrefix(pkg, "net/") && pkg != "net/url" {
			t.Errorf("train depends on %s", pkg)
		}
	}
}
