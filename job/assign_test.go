package job

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary/ledger"
)

func drawAlive(t *rapid.T, name string) []ledger.Member {
	var ms []ledger.Member
	for i := range 5 {
		if rapid.Bool().Draw(t, name) {
			ms = append(ms, ledger.Member{Worker: fmt.Sprint("w", i), Incarnation: rapid.Uint64Range(1, 3).Draw(t, "inc")})
		}
	}
	return ms
}

func byWorker(alive []ledger.Member, w string) (ledger.Member, bool) {
	i := slices.IndexFunc(alive, func(m ledger.Member) bool { return m.Worker == w })
	if i < 0 {
		return ledger.Member{}, false
	}
	return alive[i], true
}

func loads(ranks, alive []ledger.Member) (lo, hi int) {
	lo = len(ranks)
	for _, a := range alive {
		n := 0
		for _, r := range ranks {
			if r == a {
				n++
			}
		}
		lo, hi = min(lo, n), max(hi, n)
	}
	return lo, hi
}

// Through any coming and going: every rank has one holder, who lives, in its
// newest incarnation; the work is even; ranks stay where they may; and the
// answer is a function of sets.
func TestAssignProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom([]OnLoss{Reassign, Wait, Shrink}).Draw(t, "policy")
		ranks, outs := make([]ledger.Member, rapid.IntRange(1, 9).Draw(t, "ranks")), []bool(nil)
		for range rapid.IntRange(1, 6).Draw(t, "views") {
			alive := drawAlive(t, "alive")
			prev := slices.Clone(ranks)
			ranks, outs = Assign(prev, alive, policy)
			mixed := rapid.Permutation(alive).Draw(t, "mixed")
			again, outAgain := Assign(prev, mixed, policy)
			if !slices.Equal(again, ranks) || !slices.Equal(outAgain, outs) {
				t.Fatalf("%v gives %v %v, %v gives %v %v", alive, ranks, outs, mixed, again, outAgain)
			}
			if x, o := Assign(ranks, alive, policy); !slices.Equal(x, ranks) || !slices.Equal(o, outs) {
				t.Fatalf("%v %v becomes %v %v for no reason", ranks, outs, x, o)
			}
			if len(ranks) != len(prev) || outs != nil && len(outs) != len(ranks) {
				t.Fatalf("%d ranks, %d outs of %d", len(ranks), len(outs), len(prev))
			}
			if len(alive) > 0 {
				checkView(t, policy, prev, ranks, outs, alive)
			}
		}
	})
}

func checkView(t *rapid.T, policy OnLoss, prev, ranks []ledger.Member, outs []bool, alive []ledger.Member) {
	lost, moved := 0, 0
	for r, m := range ranks {
		now, lives := byWorker(alive, m.Worker)
		out := outs != nil && outs[r]
		was, wasLives := byWorker(alive, prev[r].Worker)
		switch {
		case out && (policy != Shrink || m != ledger.Member{}):
			t.Fatalf("rank %d is out with %v under %s", r, m, policy)
		case out:
			lost++
		case !lives && policy == Wait && m == prev[r] && m.Worker != "":
			lost++ // waits for its worker
		case !lives || m != now:
			t.Fatalf("rank %d with %v, alive %v", r, m, alive)
		}
		if wasLives && !out && m != was {
			moved++
		}
		if policy == Shrink && wasLives && m != was {
			t.Fatalf("under shrink rank %d moved from %v to %v", r, was, m)
		}
		if policy == Wait && prev[r].Worker != "" && !wasLives && m != prev[r] {
			t.Fatalf("under wait rank %d of %v went to %v", r, prev[r], m)
		}
	}
	lo, hi := loads(ranks, alive)
	if policy != Shrink && hi-lo > 1 {
		t.Fatalf("%v: loads from %d to %d", ranks, lo, hi)
	}
	if policy == Shrink && lost > 0 && lo == 0 {
		t.Fatalf("%v: a worker serves nothing while %d ranks are out", ranks, lost)
	}
	// No more moves than evenness asks for.
	if lowest := len(ranks) / len(alive); policy == Reassign && moved > 0 {
		held := 0
		for _, a := range alive {
			n := 0
			for _, m := range prev {
				if m.Worker == a.Worker {
					n++
				}
			}
			held += max(0, n-lowest)
		}
		if moved > held {
			t.Fatalf("%v to %v: %d moves, %d would do", prev, ranks, moved, held)
		}
	}
}

func TestAssign(t *testing.T) {
	m := func(names ...string) (ms []ledger.Member) {
		for _, n := range names {
			if n == "" {
				ms = append(ms, ledger.Member{})
				continue
			}
			ms = append(ms, ledger.Member{Worker: n, Incarnation: 1})
		}
		return ms
	}
	for _, c := range []struct {
		name        string
		policy      OnLoss
		prev, alive []ledger.Member
		want        []ledger.Member
		out         []bool
	}{
		{"start", Reassign, m("", "", "", ""), m("b", "a"), m("a", "b", "a", "b"), nil},
		{"start, shrink", Shrink, m("", "", ""), m("a", "b"), m("a", "b", "a"), nil},
		{"start, more workers than ranks", Reassign, m(""), m("b", "a"), m("a"), nil},
		{"loss", Reassign, m("a", "b", "a", "b"), m("a", "c"), m("a", "c", "a", "c"), nil},
		{"loss, nobody idle", Reassign, m("a", "b", "c"), m("a", "c"), m("a", "a", "c"), nil},
		{"loss, wait", Wait, m("a", "b"), m("a"), m("a", "b"), nil},
		{"loss, wait, with a new one", Wait, m("a", "b"), m("a", "c"), m("a", "b"), nil},
		{"loss, shrink", Shrink, m("a", "b", "c"), m("a", "c"), m("a", "", "c"), []bool{false, true, false}},
		{"back, shrink", Shrink, m("a", "", "c"), m("a", "b", "c"), m("a", "b", "c"), nil},
		{"all that it had comes back, shrink", Shrink, m("a", "", "a", ""), m("a", "b"), m("a", "b", "a", "b"), nil},
		{"no more than others have, shrink", Shrink, m("a", "", "", ""), m("a", "b"), m("a", "b", "", ""), []bool{false, false, true, true}},
		{"all lost, shrink", Shrink, m("a", "b"), m("c"), m("c", "c"), nil},
		{"join", Reassign, m("a", "a", "a", "a"), m("a", "b"), m("a", "a", "b", "b"), nil},
		{"nobody", Reassign, m("a", "b"), nil, m("a", "b"), nil},
	} {
		got, out := Assign(c.prev, c.alive, c.policy)
		if !slices.Equal(got, c.want) || !slices.Equal(out, c.out) {
			t.Errorf("%s: %v %v, want %v %v", c.name, got, out, c.want, c.out)
		}
	}
	got, _ := Assign(m("a", "b"), []ledger.Member{{Worker: "a", Incarnation: 2}, {Worker: "b", Incarnation: 1}}, Reassign)
	if got[0].Incarnation != 2 || got[1].Incarnation != 1 {
		t.Errorf("a new incarnation: %v", got)
	}
}
