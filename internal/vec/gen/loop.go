package main

import (
	"fmt"
	"strings"

	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// kernel is an element-wise loop, described once for both widths.
type kernel struct {
	name    string
	slices  string   // of float32, the first of them written; "h:" marks bfloat16
	scalars string   // float32 arguments
	coef    string   // fields of the struct of coefficients, in order, if there is one
	fused   string   // name of that struct
	bits    []uint32 // constants
	unroll  int      // vectors in an iteration; 0 means 4
	body    func(l *loop)
}

// names are the arguments that are slices, without marks.
func (k *kernel) names() []string { return strings.Fields(strings.ReplaceAll(k.slices, "h:", "")) }

// isHalf says whether a slice has elements of 16 bits.
func (k *kernel) isHalf(slice string) bool {
	for _, s := range strings.Fields(k.slices) {
		if s == "h:"+slice {
			return true
		}
	}
	return false
}

// loop is a kernel being written at one width. Its methods are arithmetic on
// vectors, each rounded as the scalar operation is; none is fused.
type loop struct {
	width
	k      *kernel
	base   map[string]reg.Register
	at     reg.Register // index of the element
	vector int          // number of the vector within the iteration
	consts map[string]reg.VecVirtual
	bits   map[uint32]reg.VecVirtual
}

// write emits the kernel's function.
func (k *kernel) write(w width) {
	name := k.name + w.path
	params := make([]string, 0, 12)
	for _, s := range k.names() {
		elem := "*float32"
		if k.isHalf(s) {
			elem = "*uint16"
		}
		params = append(params, s+" "+elem)
	}
	params = append(params, "n int")
	for _, s := range strings.Fields(k.scalars) {
		params = append(params, s+" float32")
	}
	if k.coef != "" {
		params = append(params, "coef *float32")
	}
	function(name, "func("+strings.Join(params, ", ")+")")
	l := &loop{width: w, k: k, base: map[string]reg.Register{}, consts: map[string]reg.VecVirtual{}, bits: map[uint32]reg.VecVirtual{}}
	for _, s := range k.names() {
		l.base[s] = asm.Load(asm.Param(s), asm.GP64())
	}
	n := asm.Load(asm.Param("n"), asm.GP64())
	for _, s := range strings.Fields(k.scalars) {
		a, err := asm.Param(s).Resolve()
		if err != nil {
			panic(err)
		}
		l.consts[s] = w.broadcast(a.Addr)
	}
	if k.coef != "" {
		c := asm.Load(asm.Param("coef"), asm.GP64())
		for i, s := range strings.Fields(k.coef) {
			l.consts[s] = w.broadcast(Mem{Base: c, Disp: 4 * i})
		}
	}
	l.at = asm.GP64()
	asm.XORQ(l.at, l.at)
	for _, c := range k.bits {
		l.bits[c] = w.pattern(c)
	}
	unroll := k.unroll
	if unroll == 0 {
		unroll = 4
	}
	blocks(name, n, l.at, w.floats(), unroll, func(v int) {
		l.vector = v
		k.body(l)
	})
	asm.VZEROUPPER()
	asm.RET()
}

// blocks writes a loop over n elements from index at, which takes several
// vectors at a time, and another that takes one. n is a multiple of a vector.
func blocks(name string, n, at reg.Register, floats, unroll int, body func(vector int)) {
	if unroll > 1 {
		left := asm.GP64()
		asm.MOVQ(n, left)
		asm.SUBQ(U32(uint32(unroll*floats)), left)
		asm.JLT(LabelRef(name + "_one"))
		asm.Label(name + "_many")
		for v := range unroll {
			body(v)
		}
		asm.ADDQ(U32(uint32(unroll*floats)), at)
		asm.CMPQ(at, left)
		asm.JLE(LabelRef(name + "_many"))
	}
	asm.Label(name + "_one")
	asm.CMPQ(at, n)
	asm.JGE(LabelRef(name + "_end"))
	body(0)
	asm.ADDQ(U32(uint32(floats)), at)
	asm.JMP(LabelRef(name + "_one"))
	asm.Label(name + "_end")
}

func (l *loop) mem(slice string, size int) Mem {
	b, ok := l.base[slice]
	if !ok {
		panic(fmt.Sprintf("%s has no slice %s", l.k.name, slice))
	}
	return Mem{Base: b, Index: l.at, Scale: uint8(size), Disp: l.vector * l.floats() * size}
}

// ld loads a vector of a slice.
func (l *loop) ld(slice string) reg.VecVirtual {
	v := l.vec()
	if l.k.isHalf(slice) {
		asm.VPMOVZXWD(l.mem(slice, 2), v)
		asm.VPSLLD(U8(16), v, v)
		return v
	}
	m := l.mem(slice, 4)
	if l.k.fused != "" {
		prefetch(m, 1024)
	}
	asm.VMOVUPS(m, v)
	return v
}

// st stores a vector to a slice.
func (l *loop) st(slice string, v reg.VecVirtual) { asm.VMOVUPS(v, l.mem(slice, 4)) }

// c is a scalar argument or coefficient in all lanes.
func (l *loop) c(name string) reg.VecVirtual {
	v, ok := l.consts[name]
	if !ok {
		panic(fmt.Sprintf("%s has no scalar %s", l.k.name, name))
	}
	return v
}

// pat is one of the kernel's constants in all lanes.
func (l *loop) pat(bits uint32) reg.VecVirtual {
	v, ok := l.bits[bits]
	if !ok {
		panic(fmt.Sprintf("%s has no constant %#x", l.k.name, bits))
	}
	return v
}

func (l *loop) op(f func(...Op), x, y Op) reg.VecVirtual {
	v := l.vec()
	f(y, x, v)
	return v
}

func (l *loop) add(x, y Op) reg.VecVirtual { return l.op(asm.VADDPS, x, y) }
func (l *loop) sub(x, y Op) reg.VecVirtual { return l.op(asm.VSUBPS, x, y) }
func (l *loop) mul(x, y Op) reg.VecVirtual { return l.op(asm.VMULPS, x, y) }
func (l *loop) div(x, y Op) reg.VecVirtual { return l.op(asm.VDIVPS, x, y) }

// max is x where x > y, else y; min is x where x < y, else y.
func (l *loop) max(x, y Op) reg.VecVirtual { return l.op(asm.VMAXPS, x, y) }
func (l *loop) min(x, y Op) reg.VecVirtual { return l.op(asm.VMINPS, x, y) }

func (l *loop) sqrt(x Op) reg.VecVirtual {
	v := l.vec()
	asm.VSQRTPS(x, v)
	return v
}

func (l *loop) abs(x Op) reg.VecVirtual { return l.and(x, l.pat(magnitude)) }

// sign is −1, +0 or 1, and NaN of NaN.
func (l *loop) sign(x Op) reg.VecVirtual {
	zero := l.pat(0)
	v := l.choose(x, unordered, x, x, zero)
	v = l.choose(x, less, zero, l.pat(minusOne), v)
	return l.choose(x, greater, zero, l.pat(one), v)
}

// ema is a·x + b·y, and emaSquare a·x + (b·y)·y, of scalars a and b.
func (l *loop) ema(a string, x Op, b string, y Op) reg.VecVirtual {
	return l.add(l.mul(l.c(a), x), l.mul(l.c(b), y))
}

func (l *loop) emaSquare(a string, x Op, b string, y Op) reg.VecVirtual {
	return l.add(l.mul(l.c(a), x), l.mul(l.mul(l.c(b), y), y))
}

// sgdGradient is the gradient with its sign and weight decay.
func (l *loop) sgdGradient(w Op) reg.VecVirtual {
	return l.add(l.mul(l.c("Sign"), l.ld("grad")), l.mul(l.c("Decay"), w))
}

// adamStep brings both moments up to date and is what Adam subtracts.
func (l *loop) adamStep(g Op) reg.VecVirtual {
	m := l.ema("B1", l.ld("m"), "A1", g)
	v := l.emaSquare("B2", l.ld("v"), "A2", g)
	l.st("m", m)
	l.st("v", v)
	root := l.add(l.mul(l.sqrt(v), l.c("Root")), l.c("Eps"))
	return l.div(l.mul(l.c("Step"), m), root)
}

func (l *loop) addInt(x, y Op) reg.VecVirtual { return l.op(asm.VPADDD, x, y) }

func (l *loop) shiftRight(x Op, by uint8) reg.VecVirtual {
	v := l.vec()
	asm.VPSRLD(U8(by), x, v)
	return v
}
