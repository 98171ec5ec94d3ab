package train

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// write puts a file into a folder of the test and returns its path.
func write(t testing.TB, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func compressed(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func idx(dims []uint32, body ...byte) []byte {
	b := []byte{0, 0, 8, byte(len(dims))}
	for _, d := range dims {
		b = binary.BigEndian.AppendUint32(b, d)
	}
	return append(b, body...)
}

func TestDigits(t *testing.T) {
	train, test, split, err := Load("digits", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	all, err := digits()
	if err != nil {
		t.Fatal(err)
	}
	if all.N != 1797 || all.Dim != 64 || all.Classes != 10 || all.Height != 8 || all.Width != 8 || all.Labels != nil {
		t.Errorf("digits: %d examples of %d features in %d classes, %d×%d", all.N, all.Dim, all.Classes, all.Height, all.Width)
	}
	// The first line of the file is a zero: 0,0,5,13,9,1,0,0,...
	if all.Y[0] != 0 || !slices.Equal(all.X[:8], []float32{0, 0, 5. / 16, 13. / 16, 9. / 16, 1. / 16, 0, 0}) {
		t.Errorf("first example: %d, %v", all.Y[0], all.X[:8])
	}
	if lo, hi := slices.Min(all.X), slices.Max(all.X); lo != 0 || hi != 1 {
		t.Errorf("grey values from %v to %v, want 0 to 1", lo, hi)
	}
	if train.N != len(split.Train) || test.N != len(split.Test) || train.N+test.N != all.N {
		t.Fatalf("parts of %d and %d, split of %d and %d", train.N, test.N, len(split.Train), len(split.Test))
	}
	for i, k := range split.Test {
		if test.Y[i] != all.Y[k] || !slices.Equal(test.X[64*i:64*(i+1)], all.X[64*k:64*(k+1)]) {
			t.Fatalf("test example %d is not example %d", i, k)
		}
	}
}

// The parts are disjoint and complete, and a fifth of each class is in Test.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		y := rapid.SliceOfN(rapid.Int32Range(0, 3), 0, 60).Draw(t, "y")
		seed := rapid.Uint64().Draw(t, "seed")
		s := NewSplit(y, 4, seed)
		both := append(slices.Clone(s.Train), s.Test...)
		slices.Sort(both)
		for i, k := range both {
			if i != k {
				t.Fatalf("parts %v", s)
			}
		}
		if len(both) != len(y) || !slices.IsSorted(s.Train) || !slices.IsSorted(s.Test) {
			t.Fatalf("parts %v of %d examples", s, len(y))
		}
		var total, test [4]int
		for _, c := range y {
			total[c]++
		}
		for _, i := range s.Test {
			test[y[i]]++
		}
		for c := range total {
			if want := int(math.Round(float64(total[c]) / 5)); test[c] != want {
				t.Fatalf("%d of %d examples of class %d, want %d", test[c], total[c], c, want)
			}
		}
	})
	y := make([]int32, 100)
	a, b, c := NewSplit(y, 1, 1), NewSplit(y, 1, 1), NewSplit(y, 1, 2)
	if !slices.Equal(a.Test, b.Test) || slices.Equal(a.Test, c.Test) {
		t.Errorf("seed 1: %v and %v, seed 2: %v", a.Test, b.Test, c.Test)
	}
}

func TestLoadMNIST(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "train-images-idx3-ubyte", idx([]uint32{3, 1, 2}, 0, 255, 51, 0, 0, 102))
	write(t, dir, "train-labels-idx1-ubyte.gz", compressed(t, idx([]uint32{3}, 1, 0, 1)))
	write(t, dir, "t10k-images-idx3-ubyte.gz", compressed(t, idx([]uint32{1, 1, 2}, 255, 255)))
	write(t, dir, "t10k-labels-idx1-ubyte", idx([]uint32{1}, 2))
	for _, name := range []string{"mnist", "fashion-mnist"} {
		train, test, split, err := Load(name, dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		if train.Name != name || train.N != 3 || train.Dim != 2 || train.Height != 1 || train.Width != 2 || split != nil {
			t.Errorf("%s: %+v, split %v", name, train, split)
		}
		if !slices.Equal(train.X, []float32{0, 1, 0.2, 0, 0, 0.4}) || !slices.Equal(train.Y, []int32{1, 0, 1}) ||
			!slices.Equal(test.X, []float32{1, 1}) || !slices.Equal(test.Y, []int32{2}) {
			t.Errorf("%s: %v %v, %v %v", name, train.X, train.Y, test.X, test.Y)
		}
		if train.Classes != 3 || test.Classes != 3 {
			t.Errorf("%s: %d and %d classes, want 3 of both parts", name, train.Classes, test.Classes)
		}
	}
	write(t, dir, "t10k-labels-idx1-ubyte", idx([]uint32{1}, 0))
	if train, test, _, err := Load("mnist", dir, 1); err != nil || train.Classes != 2 || test.Classes != 2 {
		t.Errorf("a test part without the last class: %d and %d classes, %v", train.Classes, test.Classes, err)
	}
	write(t, dir, "t10k-images-idx3-ubyte.gz", idx([]uint32{1, 2, 1}, 255, 255))
	if _, _, _, err := Load("mnist", dir, 1); !errors.Is(err, ErrFormat) {
		t.Errorf("test images of another size: %v", err)
	}
}

func TestMissingData(t *testing.T) {
	dir := t.TempDir()
	for name, hint := range map[string]string{"mnist": "make data", "fashion-mnist": "dataset-fashion-mnist"} {
		_, _, _, err := Load(name, dir, 1)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), hint) || !strings.Contains(err.Error(), dir) {
			t.Errorf("Load(%s): %v", name, err)
		}
	}
	write(t, dir, "train-images-idx3-ubyte", idx([]uint32{1, 1, 1}, 0))
	if _, _, _, err := Load("mnist", dir, 1); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "train-labels-idx1-ubyte") {
		t.Errorf("Load without labels: %v", err)
	}
	for _, name := range []string{"csv", "libsvm"} {
		if _, _, _, err := Load(name, filepath.Join(dir, "none"), 1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load(%s): %v", name, err)
		}
		if _, _, _, err := Load(name, "", 1); err == nil {
			t.Errorf("Load(%s) without a path: no error", name)
		}
	}
	if _, _, _, err := Load("imagenet", "", 1); err == nil || !strings.Contains(err.Error(), "want digits") {
		t.Errorf("unknown name: %v", err)
	}
}

func TestBrokenIDX(t *testing.T) {
	labels := idx([]uint32{2}, 0, 1)
	good := idx([]uint32{2, 1, 1}, 7, 8)
	half := compressed(t, bytes.Repeat(good, 100))
	for _, c := range []struct {
		name           string
		images, labels []byte
		file, want     string // the file at fault and what of it
	}{
		{"empty", nil, labels, "images", "0 bytes, too short for the header of an IDX file"},
		{"text", []byte("<html>not found</html>"), labels, "images", "not an IDX file"},
		{"labels for images", labels, labels, "images", "too short"},
		{"images for labels", good, good, "labels", "IDX type 0x08 with 3 dimensions, want 0x08 with 1"},
		{"floats", append([]byte{0, 0, 13, 3}, good[4:]...), labels, "images", "IDX type 0x0d"},
		{"truncated", good[:len(good)-1], labels, "images", "declares 2 bytes of data and has 1: truncated or damaged"},
		{"trailing", append(slices.Clone(good), 0), labels, "images", "declares 2 bytes of data and has 3"},
		{"no images", idx([]uint32{0, 1, 1}), labels, "images", "dimension 1 is 0"},
		{"claims 16 TB", idx([]uint32{1 << 20, 4096, 4096}, 1), labels, "images", "has 1: truncated"},
		{"overflow", idx([]uint32{1<<32 - 1, 1<<32 - 1, 1<<32 - 1}), labels, "images", "dimension 2 is 4294967295"},
		{"counts differ", idx([]uint32{3, 1, 1}, 7, 8, 9), labels, "labels", "2 labels for the 3 images"},
		{"gzip cut off", half[:len(half)-9], labels, "images", "the compressed file is truncated"},
		{"gzip header only", []byte{0x1f, 0x8b}, labels, "images", "the compressed file is truncated"},
	} {
		dir := t.TempDir()
		_, err := LoadIDX(write(t, dir, "images", c.images), write(t, dir, "labels", c.labels))
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		text := err.Error()
		if !strings.Contains(text, filepath.Join(dir, c.file)+": ") || !strings.Contains(text, c.want) || strings.Contains(text, "\n") {
			t.Errorf("%s: %q\nwant %s and %q", c.name, text, c.file, c.want)
		}
	}
}

func TestDecodeCSV(t *testing.T) {
	for _, c := range []struct {
		name, text, label string
		x                 []float32
		y                 []int32
		labels            string
	}{
		{"label last", "1,2,0\n3,4,1\n", "", []float32{1, 2, 3, 4}, []int32{0, 1}, "0 1"},
		{"label first", "0,1,2\n1,3,4", "first", []float32{1, 2, 3, 4}, []int32{0, 1}, "0 1"},
		{"header", "a,b,class\n1,2,0\n3,4,1\n", "last", []float32{1, 2, 3, 4}, []int32{0, 1}, "0 1"},
		{"by name", "a, class,b\n1,0,2\n3,1,4\n", "class", []float32{1, 2, 3, 4}, []int32{0, 1}, "0 1"},
		{"words", "1,2,no\r\n3,4, yes \r\n5,6,no\r\n", "", []float32{1, 2, 3, 4, 5, 6}, []int32{0, 1, 0}, "no yes"},
		{"by number", "1,10\n2,9\n3,-1.5\n4,9.0", "", []float32{1, 2, 3, 4}, []int32{2, 1, 0, 1}, "-1.5 9 10"},
		{"quotes", "\"1\",\"2\",\"a\"\n-3e1,.5,b\n", "", []float32{1, 2, -30, 0.5}, []int32{0, 1}, "a b"},
	} {
		d, err := decodeCSV([]byte(c.text), c.label)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(d.X, c.x) || !slices.Equal(d.Y, c.y) || strings.Join(d.Labels, " ") != c.labels ||
			d.N != len(c.y) || d.Dim != len(c.x)/len(c.y) || d.Classes != len(d.Labels) {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
}

func TestDecodeLibSVM(t *testing.T) {
	d, err := decodeLibSVM([]byte("# comment\n+1 1:0.5 3:2 # more\n\n-1 2:-1\r\n1.0\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d.N != 3 || d.Dim != 3 || !slices.Equal(d.X, []float32{0.5, 0, 2, 0, -1, 0, 0, 0, 0}) ||
		!slices.Equal(d.Y, []int32{1, 0, 1}) || strings.Join(d.Labels, " ") != "-1 1" {
		t.Errorf("%+v", d)
	}
}

func TestBrokenText(t *testing.T) {
	for _, c := range []struct{ kind, label, text, want string }{
		{"csv", "", "", "no lines"},
		{"csv", "", "1\n2\n", "1 columns: want a label and 1 to 1048576 features"},
		{"csv", "", "1,2\n3\n", "record on line 2: wrong number of fields"},
		{"csv", "", "1,a\nx,b\n", `line 2, column 1: "x" is not a finite number`},
		{"csv", "", "1,a\n,b\n", `line 2, column 1: "" is not a finite number`},
		{"csv", "", "1,a\nNaN,b\n", `line 2, column 1: "NaN" is not a finite number`},
		{"csv", "", "1,a\n1e39,b\n", `line 2, column 1: "1e39" is not a finite number`},
		{"csv", "", "1,a\n2,\n", "example 2 has an empty label"},
		{"csv", "", "1,a\n2,a\n", "1 different labels in 2 examples: want 2 to 4096; is this the right column?"},
		{"csv", "", "x,y\n", "0 different labels"},
		{"csv", "kind", "x,y\n1,2\n", `no column "kind" in the first line`},
		{"libsvm", "", "", "no features"},
		{"libsvm", "", "a 1:1\n", `line 1: label "a" is not a whole number`},
		{"libsvm", "", "0.5 1:1\n", `line 1: label "0.5" is not a whole number`},
		{"libsvm", "", "1 0:1\n", `line 1: "0:1": want rising indexes from 1 to 1048576`},
		{"libsvm", "", "1 1:1\n1 2:1 2:1\n", `line 2: "2:1": want rising indexes`},
		{"libsvm", "", "1 99999999999999999999:1\n", "want rising indexes"},
		{"libsvm", "", "1 2\n", `line 1: "2": "" is not a finite number`},
		{"libsvm", "", "1 1048576:1\n0 1:1\n", "2 examples of 1048576 features are too sparse: this reader keeps zeros too"},
	} {
		path := write(t, t.TempDir(), "data", []byte(c.text))
		_, _, _, err := Source{Name: c.kind, Path: path, Label: c.label}.Load(1)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), path+": ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v\nwant %q", c.kind, c.text, err, c.want)
		}
	}
	path := write(t, t.TempDir(), "data", []byte("1,a\n2,b\n"))
	if _, _, _, err := Load("csv", path, 1); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "too few examples") {
		t.Errorf("two examples: %v", err)
	}
}

// Features are scaled by what the training part says, and only by that.
func TestRescale(t *testing.T) {
	text := ""
	for i := range 50 {
		text += string(rune('a'+i%2)) + "," + []string{"-30", "10"}[i/2%2] + ",7," + []string{"5", "6", "7"}[i%3] + "\n"
	}
	path := write(t, t.TempDir(), "data.csv.gz", compressed(t, []byte(text)))
	train, test, split, err := Source{Name: "csv", Path: path, Label: "first"}.Load(3)
	if err != nil || len(split.Test) != 10 || train.Dim != 3 || train.Name != "data.csv.gz" {
		t.Fatalf("Load: %+v, %v", split, err)
	}
	check := func(d *Dataset, indices []int) {
		for k, i := range indices {
			want := []float32{float32(i / 2 % 2), 0, float32(i%3) / 2}
			if got := d.X[3*k : 3*k+3]; !slices.Equal(got, want) {
				t.Errorf("example %d: %v, want %v", i, got, want)
			}
		}
	}
	check(train, split.Train)
	check(test, split.Test)

	a := &Dataset{X: []float32{0, 4}, N: 2, Dim: 1}
	b := &Dataset{X: []float32{6, -2}, N: 2, Dim: 1}
	if rescale(a, b); !slices.Equal(a.X, []float32{0, 1}) || !slices.Equal(b.X, []float32{1.5, -0.5}) {
		t.Errorf("rescale: %v and %v", a.X, b.X)
	}
	a = &Dataset{X: []float32{-math.MaxFloat32, math.MaxFloat32}, N: 2, Dim: 1}
	if rescale(a, b); !slices.Equal(a.X, []float32{0, 1}) {
		t.Errorf("rescale of the widest range: %v", a.X)
	}
}

// whole checks what every decoder promises, whatever its input.
func whole(t *testing.T, d *Dataset, input int) {
	if d.N < 1 || d.Dim < 1 || len(d.X) != d.N*d.Dim || len(d.Y) != d.N {
		t.Fatalf("%d×%d examples, %d values, %d labels", d.N, d.Dim, len(d.X), len(d.Y))
	}
	if len(d.X) > max(1<<16, 64*input) {
		t.Fatalf("%d values from %d bytes", len(d.X), input)
	}
	for _, c := range d.Y {
		if c < 0 || int(c) >= d.Classes {
			t.Fatalf("class %d of %d", c, d.Classes)
		}
	}
	for _, v := range d.X {
		if v-v != 0 {
			t.Fatalf("value %v", v)
		}
	}
}

func FuzzDecodeIDX(f *testing.F) {
	f.Add(idx([]uint32{2, 1, 1}, 7, 8))
	f.Add(idx([]uint32{2}, 7, 8))
	f.Add(idx([]uint32{1 << 31, 4096, 4096}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if y, err := decodeLabels(b); err == nil && len(y) != len(b)-8 {
			t.Fatalf("%d labels from %d bytes", len(y), len(b))
		}
		if d, err := decodeImages(b); err == nil {
			d.Y, d.Classes = make([]int32, d.N), 1
			whole(t, d, len(b))
		}
	})
}

func FuzzDecodeCSV(f *testing.F) {
	f.Add([]byte("a,b,c\n1,2,x\n3,4,y\n"), "")
	f.Add([]byte("0,1\n1,3\n"), "first")
	f.Add([]byte("k,v\n1,3\n2,\"4\n"), "k")
	f.Fuzz(func(t *testing.T, b []byte, label string) {
		if d, err := decodeCSV(b, label); err == nil {
			whole(t, d, len(b))
		}
	})
}

func FuzzDecodeLibSVM(f *testing.F) {
	f.Add([]byte("1 1:1 3:-.5\n0 2:1 # c\n"))
	f.Add([]byte("1 1048576:1\n0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := decodeLibSVM(b); err == nil {
			whole(t, d, len(b))
		}
	})
}

// Compressed or not, readFile gives the content back or an error of one line.
func FuzzDecompress(f *testing.F) {
	f.Add(compressed(f, []byte("1,2\n")))
	f.Add([]byte("1,2\n"))
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decompress(bytes.NewReader(b))
		if err == nil && (len(b) < 2 || b[0] != 0x1f || b[1] != 0x8b) && !bytes.Equal(got, b) {
			t.Fatalf("%d bytes from %d", len(got), len(b))
		}
	})
}
