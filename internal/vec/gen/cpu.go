package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// width is a vector width. What differs between AVX2 and AVX-512 is in this
// file and nowhere else.
type width struct {
	path  string // as the constant of package vec
	bytes int
}

var widths = []width{{"AVX2", 32}, {"AVX512", 64}}

// floats is the number of float32 in a vector.
func (w width) floats() int { return w.bytes / 4 }

func (w width) wide() bool { return w.bytes == 64 }

// vec is a new virtual register.
func (w width) vec() reg.VecVirtual {
	if w.wide() {
		return asm.ZMM()
	}
	return asm.YMM()
}

// broadcast fills a register with a float32.
func (w width) broadcast(m Op) reg.VecVirtual {
	v := w.vec()
	asm.VBROADCASTSS(m, v)
	return v
}

// pattern fills a register with 32 bits.
func (w width) pattern(bits uint32) reg.VecVirtual {
	v := w.vec()
	if bits == 0 {
		if w.wide() {
			asm.VPXORD(v, v, v)
		} else {
			asm.VPXOR(v, v, v)
		}
		return v
	}
	r, x := asm.GP32(), asm.XMM()
	asm.MOVL(U32(bits), r)
	asm.VMOVD(r, x)
	asm.VPBROADCASTD(x, v)
	return v
}

// and, or are bit by bit.
func (w width) and(x, y Op) reg.VecVirtual {
	v := w.vec()
	if w.wide() {
		asm.VPANDD(x, y, v)
	} else {
		asm.VPAND(x, y, v)
	}
	return v
}

func (w width) or(x, y Op) reg.VecVirtual {
	v := w.vec()
	if w.wide() {
		asm.VPORD(x, y, v)
	} else {
		asm.VPOR(x, y, v)
	}
	return v
}

// predicate is how a comparison is made; a NaN is neither greater nor less.
type predicate uint8

const (
	less      predicate = 0x11
	unordered predicate = 0x03
	greater   predicate = 0x1e
)

// choose is a where x p y, else b.
func (w width) choose(x Op, p predicate, y, a, b Op) reg.VecVirtual {
	v := w.vec()
	if w.wide() {
		k := asm.K()
		asm.VCMPPS(U8(p), y, x, k)
		asm.VBLENDMPS(a, b, k, v)
		return v
	}
	mask := w.vec()
	asm.VCMPPS(U8(p), y, x, mask)
	asm.VBLENDVPS(mask, a, b, v)
	return v
}

// count adds 1 to each 32-bit lane of acc where x p y.
func (w width) count(acc, x Op, p predicate, y, one Op) {
	if w.wide() {
		k := asm.K()
		asm.VCMPPS(U8(p), y, x, k)
		asm.VPADDD(one, acc, k, acc)
		return
	}
	mask := w.vec()
	asm.VCMPPS(U8(p), y, x, mask)
	asm.VPSUBD(mask, acc, acc)
}

// narrow stores the 32-bit lanes of v, all below 2¹⁶, as 16 bits each.
func (w width) narrow(v reg.VecVirtual, m Mem) {
	if w.wide() {
		asm.VPMOVDW(v, m)
		return
	}
	high, packed := asm.XMM(), asm.XMM()
	asm.VEXTRACTI128(U8(1), v, high)
	asm.VPACKUSDW(high, v.AsX(), packed)
	asm.VMOVDQU(packed, m)
}

// sums is the register, or the pair of registers, that hold eight float64.
func (w width) sums() []reg.VecVirtual {
	if w.wide() {
		return []reg.VecVirtual{asm.ZMM()}
	}
	return []reg.VecVirtual{asm.YMM(), asm.YMM()}
}

// function begins a function without a frame, which keeps none of its pointers.
func function(name, signature string) {
	asm.Function(name)
	asm.Attributes(attr.NOSPLIT)
	asm.SignatureExpr(signature)
	asm.Pragma("noescape")
}

// prefetch asks for the memory so many bytes after m, once for a line. The
// processor foresees loads in sequence by itself, but only within a page of
// 4 KiB; many short runs of many slices, as in a shard's spans, gain a tenth.
func prefetch(m Mem, ahead int) {
	const line = 64
	if m.Disp%line == 0 {
		m.Disp += ahead
		asm.PREFETCHT0(m)
	}
}
