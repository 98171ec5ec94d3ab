package vec

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"
)

// Path is a way to compute what this package computes. All paths give the same
// bits, except for the sign and payload of a NaN.
type Path uint8

// The paths, each needing more of the processor than the one before. Elements
// of 64 bits always take the portable one.
const (
	Portable Path = iota
	AVX2
	AVX512
)

var pathNames = []string{"portable", "avx2", "avx512"}

// String is the name of the path, as in the environment.
func (p Path) String() string { return pathNames[p] }

// environment is the variable that may name the path to take instead of the
// best one.
const environment = "TRIBUTARY_VEC"

// active is the path taken. It changes in tests only.
var active = choosePath(os.Getenv(environment), best(), func(problem string) { fmt.Fprintln(os.Stderr, problem) })

// Active is the path that loops over float32 take in this process.
func Active() Path { return active }

// choosePath is the path to take if name is asked for and the processor is
// capable of top and all paths below.
func choosePath(name string, top Path, complain func(string)) Path {
	if name == "" {
		return top
	}
	p := Path(max(slices.Index(pathNames, name), 0))
	switch {
	case p == Portable && name != pathNames[Portable]:
		complain(fmt.Sprintf("%s=%s: want one of %s; taking %s", environment, name, strings.Join(pathNames, ", "), Portable))
	case p > top:
		complain(fmt.Sprintf("%s=%s: this processor cannot; taking %s", environment, name, Portable))
		p = Portable
	}
	return p
}

// block is how many elements the assembly, which cannot be pre-empted, sees at
// a time.
const block = 1 << 16

// widest is the number of float32 in the widest vector.
const widest = 16

// whole is how many of n elements fill whole vectors; 0 on the portable path.
func whole(n int) int {
	switch active {
	case AVX512:
		return n &^ 15
	case AVX2:
		return n &^ 7
	}
	return 0
}

// short says whether T has the size of a float32.
func short[T Float]() bool {
	var x T
	return unsafe.Sizeof(x) == 4
}

// f32 views x as float32 if T is short.
func f32[T Float](x []T) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(x))), len(x))
}
