package main

import (
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The reductions continue from the lanes they are given. n is a multiple of a
// vector of float32 at the widest, so that every call begins at lane 0.

// writeSum emits dot, Σ x·y in eight lanes of float64, or sum, Σ x.
func writeSum(w width, dot bool) {
	name, sig := "sum"+w.path, "func(x *float32, n int, lanes *float64)"
	if dot {
		name, sig = "dot"+w.path, "func(x, y *float32, n int, lanes *float64)"
	}
	function(name, sig)
	x := asm.Load(asm.Param("x"), asm.GP64())
	var y reg.Register
	if dot {
		y = asm.Load(asm.Param("y"), asm.GP64())
	}
	n, lanes := asm.Load(asm.Param("n"), asm.GP64()), asm.Load(asm.Param("lanes"), asm.GP64())
	acc := w.sums()
	for i, a := range acc {
		asm.VMOVUPD(Mem{Base: lanes, Disp: i * w.bytes}, a)
	}
	at := asm.GP64()
	asm.XORQ(at, at)
	per := w.bytes / 8 // float64 in a vector
	blocks(name, n, at, 8, 2, func(vector int) {
		for i, a := range acc {
			v := w.vec()
			disp := 4 * (8*vector + i*per)
			asm.VCVTPS2PD(Mem{Base: x, Index: at, Scale: 4, Disp: disp}, v)
			if dot {
				u := w.vec()
				asm.VCVTPS2PD(Mem{Base: y, Index: at, Scale: 4, Disp: disp}, u)
				asm.VMULPD(u, v, v)
			}
			asm.VADDPD(v, a, a)
		}
	})
	for i, a := range acc {
		asm.VMOVUPD(a, Mem{Base: lanes, Disp: i * w.bytes})
	}
	asm.VZEROUPPER()
	asm.RET()
}

// writeTop emits maxAbs: in every lane the greatest |x| as bits. Bits of
// numbers without sign are in the order of the numbers, and those of NaN are
// above all others.
func writeTop(w width) {
	name := "maxAbs" + w.path
	function(name, "func(x *float32, n int, lanes *uint32)")
	x, n, lanes := asm.Load(asm.Param("x"), asm.GP64()), asm.Load(asm.Param("n"), asm.GP64()), asm.Load(asm.Param("lanes"), asm.GP64())
	mask, top := w.pattern(magnitude), w.vec()
	asm.VMOVUPS(Mem{Base: lanes}, top)
	at := asm.GP64()
	asm.XORQ(at, at)
	blocks(name, n, at, w.floats(), 4, func(vector int) {
		v := w.vec()
		asm.VMOVUPS(Mem{Base: x, Index: at, Scale: 4, Disp: vector * w.bytes}, v)
		asm.VPMAXSD(w.and(v, mask), top, top)
	})
	asm.VMOVUPS(top, Mem{Base: lanes})
	asm.VZEROUPPER()
	asm.RET()
}

// writeCount emits countPositive: in every lane how many x·y are above 0.
func writeCount(w width) {
	name := "countPositive" + w.path
	function(name, "func(x, y *float32, n int, lanes *uint32)")
	x, y := asm.Load(asm.Param("x"), asm.GP64()), asm.Load(asm.Param("y"), asm.GP64())
	n, lanes := asm.Load(asm.Param("n"), asm.GP64()), asm.Load(asm.Param("lanes"), asm.GP64())
	zero, unit, counts := w.pattern(0), w.pattern(1), w.vec()
	asm.VMOVUPS(Mem{Base: lanes}, counts)
	at := asm.GP64()
	asm.XORQ(at, at)
	blocks(name, n, at, w.floats(), 4, func(vector int) {
		v := w.vec()
		asm.VMOVUPS(Mem{Base: x, Index: at, Scale: 4, Disp: vector * w.bytes}, v)
		asm.VMULPS(Mem{Base: y, Index: at, Scale: 4, Disp: vector * w.bytes}, v, v)
		w.count(counts, v, greater, zero, unit)
	})
	asm.VMOVUPS(counts, Mem{Base: lanes})
	asm.VZEROUPPER()
	asm.RET()
}

// writeSquares emits addSquares, dst = dst + x² in float64.
func writeSquares(w width) {
	name := "addSquares" + w.path
	function(name, "func(dst *float64, x *float32, n int)")
	dst, x := asm.Load(asm.Param("dst"), asm.GP64()), asm.Load(asm.Param("x"), asm.GP64())
	n := asm.Load(asm.Param("n"), asm.GP64())
	at := asm.GP64()
	asm.XORQ(at, at)
	per := w.bytes / 8 // float64 in a vector
	blocks(name, n, at, 8, 2, func(vector int) {
		for lane := 0; lane < 8; lane += per {
			out := Mem{Base: dst, Index: at, Scale: 8, Disp: 8 * (8*vector + lane)}
			v := w.vec()
			asm.VCVTPS2PD(Mem{Base: x, Index: at, Scale: 4, Disp: 4 * (8*vector + lane)}, v)
			asm.VMULPD(v, v, v)
			asm.VADDPD(out, v, v)
			asm.VMOVUPD(v, out)
		}
	})
	asm.VZEROUPPER()
	asm.RET()
}
