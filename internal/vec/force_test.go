package vec

import "testing"

// force takes path p until the test ends. Tests that use it do not run in
// parallel.
func force(t testing.TB, p Path) {
	old := active
	active = p
	t.Cleanup(func() { active = old })
}

// assembly are the paths of this processor beside the portable one.
func assembly(t testing.TB) []Path {
	var ps []Path
	for _, p := range []Path{AVX2, AVX512} {
		if p > best() {
			t.Logf("NOT TESTED: this processor has no %v", p)
			continue
		}
		ps = append(ps, p)
	}
	if len(ps) == 0 {
		t.Skip("this processor has nothing but the portable path")
	}
	return ps
}
