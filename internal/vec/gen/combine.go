package main

import (
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// writeCombine emits combine, dst = Σ wᵢ·inᵢ over k ≥ 1 contributions, or
// combineHalf for contributions in bfloat16. A tile of dst stays in registers
// while the contributions go by. With more set the sum continues from dst;
// otherwise the first product starts it.
func writeCombine(w width, half bool) {
	name, elem, size := "combine"+w.path, "float32", 4
	if half {
		name, elem, size = "combineHalf"+w.path, "uint16", 2
	}
	function(name, "func(dst *float32, n int, in **"+elem+", weights *float32, k int, start int, more int)")
	dst, n := asm.Load(asm.Param("dst"), asm.GP64()), asm.Load(asm.Param("n"), asm.GP64())
	in, weights, k := asm.Load(asm.Param("in"), asm.GP64()), asm.Load(asm.Param("weights"), asm.GP64()), asm.Load(asm.Param("k"), asm.GP64())
	start, more := asm.Load(asm.Param("start"), asm.GP64()), asm.Load(asm.Param("more"), asm.GP64())
	at := asm.GP64()
	asm.XORQ(at, at)
	// The contributions are read from index start, which dst points to.
	src := asm.GP64()
	i, x := asm.GP64(), asm.GP64()
	const unroll = 8
	serial := 0
	product := func(vector int, weight reg.VecVirtual) reg.VecVirtual {
		v := w.vec()
		m := Mem{Base: x, Index: src, Scale: uint8(size), Disp: vector * w.floats() * size}
		prefetch(m, 2048)
		if half {
			asm.VPMOVZXWD(m, v)
			asm.VPSLLD(U8(16), v, v)
			asm.VMULPS(v, weight, v)
			return v
		}
		asm.VMULPS(m, weight, v)
		return v
	}
	tile := func(vectors int) {
		label := name + "_" + string(rune('a'+serial))
		serial++
		asm.MOVQ(start, src)
		asm.ADDQ(at, src)
		asm.XORQ(i, i)
		out := func(v int) Mem { return Mem{Base: dst, Index: at, Scale: 4, Disp: v * w.bytes} }
		acc := make([]reg.VecVirtual, vectors)
		asm.CMPQ(more, U8(0))
		asm.JEQ(LabelRef(label + "_first"))
		for v := range acc {
			acc[v] = w.vec()
			asm.VMOVUPS(out(v), acc[v])
		}
		asm.JMP(LabelRef(label + "_next"))
		asm.Label(label + "_first")
		asm.MOVQ(Mem{Base: in}, x)
		first := w.broadcast(Mem{Base: weights})
		for v := range acc {
			asm.VMOVAPS(product(v, first), acc[v])
		}
		asm.INCQ(i)
		asm.JMP(LabelRef(label + "_test"))
		asm.Label(label + "_next")
		asm.MOVQ(Mem{Base: in, Index: i, Scale: 8}, x)
		weight := w.broadcast(Mem{Base: weights, Index: i, Scale: 4})
		for v := range acc {
			asm.VADDPS(product(v, weight), acc[v], acc[v])
		}
		asm.INCQ(i)
		asm.Label(label + "_test")
		asm.CMPQ(i, k)
		asm.JLT(LabelRef(label + "_next"))
		for v := range acc {
			asm.VMOVUPS(acc[v], out(v))
		}
	}
	left := asm.GP64()
	asm.MOVQ(n, left)
	asm.SUBQ(U32(uint32(unroll*w.floats())), left)
	asm.JLT(LabelRef(name + "_one"))
	asm.Label(name + "_many")
	tile(unroll)
	asm.ADDQ(U32(uint32(unroll*w.floats())), at)
	asm.CMPQ(at, left)
	asm.JLE(LabelRef(name + "_many"))
	asm.Label(name + "_one")
	asm.CMPQ(at, n)
	asm.JGE(LabelRef(name + "_end"))
	tile(1)
	asm.ADDQ(U32(uint32(w.floats())), at)
	asm.JMP(LabelRef(name + "_one"))
	asm.Label(name + "_end")
	asm.VZEROUPPER()
	asm.RET()
}
