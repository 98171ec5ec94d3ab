package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"tributary/layout"
	"tributary/ledger"
)

func sample() []layout.Section {
	return []layout.Section{
		{Name: "params", Range: layout.Range{Lo: 4, Hi: 7}, F32: []float32{1, -2, 3.5}},
		{Name: "model/lam", F64: []float64{0.1}},
		{Name: "rank/3", Raw: []byte("state")},
	}
}

func TestRoundTrip(t *testing.T) {
	got, err := Decode(Encode(sample()))
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Fatalf("Decode(Encode(x)) = %v, %v; want x", got, err)
	}
}

// Every single damaged or missing byte is found.
func TestDamage(t *testing.T) {
	whole := Encode(sample())
	for i := range whole {
		b := append([]byte(nil), whole...)
		b[i] ^= 0x40
		if _, err := Decode(b); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d damaged: err = %v", i, err)
		}
		if _, err := Decode(whole[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut off at %d: err = %v", i, err)
		}
	}
}

func TestDir(t *testing.T) {
	d := Dir{Path: filepath.Join(t.TempDir(), "job")}
	a, b := ledger.CutID{Timeline: 1, Step: 10}, ledger.CutID{Timeline: 1, Step: 20}
	for _, id := range []ledger.CutID{a, b} {
		if err := d.Save(2, id, sample()); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Retain(2, func(id ledger.CutID) bool { return id == a }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load(2, a); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a removed cut: %v", err)
	}
	if got, err := d.Load(2, b); err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("Load = %v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Path, ".*")); len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(sample()))
	f.Add([]byte(magic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err == nil && !reflect.DeepEqual(Encode(s), b) && len(s) > 0 {
			t.Fatalf("decoded bytes do not encode back")
		}
	})
}
