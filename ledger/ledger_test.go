package ledger

import (
	"bytes"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var kinds = []Kind{Begin, View, Close, Cut, Stop, Finish, Halt}

func drawDecision(t *rapid.T, n uint64) *Decision {
	d := &Decision{N: n, Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Timeline: rapid.Uint64Range(0, 4).Draw(t, "timeline"),
		Step: rapid.Uint64Range(0, 9).Draw(t, "step"), Nonce: rapid.Uint64().Draw(t, "nonce"), Reason: rapid.String().Draw(t, "reason"),
		Paused: rapid.Bool().Draw(t, "paused"), CutTimeline: rapid.Uint64Range(0, 4).Draw(t, "cut"), View: rapid.Uint64Range(0, 9).Draw(t, "view")}
	for range rapid.IntRange(0, 4).Draw(t, "ranks") {
		d.Ranks = append(d.Ranks, Member{rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "worker"), rapid.Uint64Range(0, 2).Draw(t, "inc")})
		if rapid.Bool().Draw(t, "has out") {
			d.Out = append(d.Out, rapid.Bool().Draw(t, "out"))
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "epochs") {
		d.Epochs = append(d.Epochs, rapid.Uint64().Draw(t, "epoch"))
	}
	return d
}

// What is encoded decodes to the same decision.
func TestEncodeDecode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDecision(t, rapid.Uint64Min(1).Draw(t, "n"))
		got, err := Decode(d.Encode())
		if err != nil || !reflect.DeepEqual(got, d) && !strings.ContainsRune(d.Reason, '\ufffd') {
			t.Fatalf("Decode(Encode(%+v)) = %+v, %v", d, got, err)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	many := func(item string, n int) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	for name, text := range map[string]string{
		"nothing":         ``,
		"null":            `null`,
		"no number":       `{"kind":"stop"}`,
		"negative":        `{"n":-1}`,
		"fraction":        `{"n":1.5}`,
		"another kind":    `{"n":1,"kind":7}`,
		"half":            `{"n":1,"kind":"st`,
		"two":             `{"n":1}{"n":2}`,
		"more outs":       `{"n":1,"ranks":[{}],"out":[true,false]}`,
		"too many ranks":  `{"n":1,"ranks":[` + many(`{}`, MaxRanks+1) + `]}`,
		"too many shards": `{"n":1,"epochs":[` + many(`0`, MaxShards+1) + `]}`,
		"too long":        `{"n":1,"reason":"` + strings.Repeat("x", maxDecisionBytes) + `"}`,
		"deep":            strings.Repeat("[", 1<<19),
	} {
		if d, err := Decode([]byte(text)); !errors.Is(err, ErrDecision) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	if d, err := Decode([]byte(`{"n":1,"ranks":[` + many(`{}`, MaxRanks) + `]}`)); err != nil || len(d.Ranks) != MaxRanks {
		t.Errorf("as many ranks as there may be: %v", err)
	}
}

// Memory is bounded by a small multiple of what is read.
func TestDecodeMemory(t *testing.T) {
	b := []byte(`{"n":1,"ranks":[` + strings.TrimSuffix(strings.Repeat("{},", maxDecisionBytes/3-20), ",") + `]}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Decode(b); !errors.Is(err, ErrDecision) {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 100*uint64(len(b)) {
		t.Errorf("%d bytes read allocated %d", len(b), used)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add((&Decision{N: 3, Kind: View, View: 2, Ranks: []Member{{"w", 1}, {}}, Out: []bool{false, true}}).Encode())
	f.Add((&Decision{N: 1, Kind: Begin, Timeline: 1, Epochs: []uint64{1, 2}}).Encode())
	f.Add([]byte(`{"n":18446744073709551615,"out":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrDecision) {
				t.Fatal(err)
			}
			return
		}
		again, err := Decode(d.Encode())
		if err != nil || !bytes.Equal(again.Encode(), d.Encode()) {
			t.Fatalf("%q decodes to %+v, which encodes to %q: %v", b, d, d.Encode(), err)
		}
		s := State{N: d.N - 1, Ranks: []Member{{"w", 1}}, Since: []uint64{1}, Cuts: []CutID{{1, 2}}}
		if !s.Apply(d) {
			t.Fatal("not applied")
		}
		for r := range len(s.Ranks) + 2 {
			s.Member(r)
			s.In(r)
		}
		s.Member(-1)
		s.Newest()
	})
}

// Decisions apply in order and once; whoever applies the same ones is in the
// same state; what is out of order changes nothing.
func TestApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ds []*Decision
		for n := range rapid.Uint64Range(1, 12).Draw(t, "decisions") {
			ds = append(ds, drawDecision(t, n+1))
		}
		var a, b State
		for _, d := range ds {
			if !a.Apply(d) {
				t.Fatalf("decision %d after %d", d.N, a.N)
			}
		}
		for b.N < a.N {
			was := b
			was.Cuts, was.Since = slices.Clone(b.Cuts), slices.Clone(b.Since)
			d := ds[rapid.IntRange(0, len(ds)-1).Draw(t, "which")]
			applied := b.Apply(d)
			if applied != (d.N == was.N+1) || !applied && !reflect.DeepEqual(b, was) {
				t.Fatalf("decision %d after %d: applied %v", d.N, was.N, applied)
			}
		}
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v and %+v after the same decisions", a, b)
		}
	})
}

// apply makes a state by its decisions, numbered in order.
func apply(t *testing.T, s *State, ds ...Decision) *State {
	t.Helper()
	for i := range ds {
		ds[i].N = s.N + 1
		if !s.Apply(&ds[i]) {
			t.Fatalf("decision %+v not applied", ds[i])
		}
	}
	return s
}

func TestTimelines(t *testing.T) {
	s := apply(t, &State{}, Decision{Kind: Begin, Timeline: 1, Epochs: []uint64{4, 5}},
		Decision{Kind: Cut, Timeline: 1, Step: 10}, Decision{Kind: Cut, Timeline: 1, Step: 20}, Decision{Kind: Cut, Timeline: 1, Step: 30},
		Decision{Kind: Stop, Step: 30, Reason: "asked to"})
	if !s.Stopped || s.StopAt != 30 || s.Reason != "asked to" || s.Newest() != (CutID{1, 30}) {
		t.Errorf("stopped: %+v", s)
	}
	apply(t, s, Decision{Kind: Begin, Timeline: 2, CutTimeline: 1, Step: 20, Paused: true})
	if !s.Stopped || s.StopAt != 20 || s.Reason != "asked to" || s.Newest() != (CutID{1, 20}) || s.Base != s.Newest() || len(s.Cuts) != 2 {
		t.Errorf("paused at an older cut: %+v", s)
	}
	apply(t, s, Decision{Kind: Halt, Reason: "disk full"})
	if !s.Halted || s.Reason != "disk full" {
		t.Errorf("halted: %+v", s)
	}
	apply(t, s, Decision{Kind: Begin, Timeline: 3})
	if s.Stopped || s.Halted || s.Reason != "" || s.StopAt != 0 || len(s.Cuts) != 0 || s.Newest() != (CutID{}) || s.Timeline != 3 {
		t.Errorf("from the start again: %+v", s)
	}
	apply(t, s, Decision{Kind: Finish})
	if !s.Finished {
		t.Errorf("finished: %+v", s)
	}
}

// Since says in which view a rank came to its member, as the set counts it.
func TestSince(t *testing.T) {
	a, b := Member{"a", 1}, Member{"b", 1}
	s := apply(t, &State{}, Decision{Kind: View, View: 1, Ranks: []Member{a, b, a}})
	for _, v := range []struct {
		ranks []Member
		out   []bool
		since []uint64
	}{
		{[]Member{a, a, a}, nil, []uint64{1, 2, 1}},
		{[]Member{a, a, {}}, []bool{false, false, true}, []uint64{1, 2, 3}},
		{[]Member{a, a, a}, nil, []uint64{1, 2, 4}},
		{[]Member{{"a", 2}, a, a}, nil, []uint64{5, 2, 4}},
		{[]Member{{"a", 2}, a, a}, []bool{false, true}, []uint64{5, 6, 4}},
	} {
		apply(t, s, Decision{Kind: View, View: s.View + 1, Ranks: v.ranks, Out: v.out})
		if !slices.Equal(s.Since, v.since) {
			t.Errorf("view %d: since %v, want %v", s.View, s.Since, v.since)
		}
	}
	if m, ok := s.Member(0); !ok || m != (Member{"a", 2}) {
		t.Errorf("rank 0: %+v, %v", m, ok)
	}
	if _, ok := s.Member(3); ok || !s.In(3) || s.In(1) {
		t.Error("a rank beyond the view, or one that is out")
	}
}

// A cut can be removed when newer recorded ones are kept; one that may yet be
// recorded never.
func TestObsolete(t *testing.T) {
	s := apply(t, &State{}, Decision{Kind: Begin, Timeline: 2})
	if s.Obsolete(CutID{1, 5}, 1) {
		t.Error("obsolete although no cut is recorded")
	}
	for step := uint64(10); step <= 40; step += 10 {
		apply(t, s, Decision{Kind: Cut, Timeline: 2, Step: step})
	}
	for _, c := range []struct {
		id   CutID
		keep int
		want bool
	}{
		{CutID{2, 40}, 1, false}, {CutID{2, 30}, 1, true}, {CutID{2, 30}, 2, false}, {CutID{2, 20}, 2, true}, {CutID{2, 10}, 9, false},
		{CutID{2, 40}, 0, false}, {CutID{2, 30}, -1, true}, {CutID{2, 35}, 3, true}, {CutID{2, 50}, 1, false}, {CutID{1, 50}, 4, true}, {CutID{3, 1}, 1, false},
	} {
		if got := s.Obsolete(c.id, c.keep); got != c.want {
			t.Errorf("Obsolete(%v, %d) = %v, want %v", c.id, c.keep, got, c.want)
		}
	}
}
