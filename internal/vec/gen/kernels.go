package main

// Constants as 32 bits.
const (
	magnitude = 0x7fffffff
	one       = 0x3f800000
	minusOne  = 0xbf800000
)

var forSign = []uint32{0, one, minusOne}

// kernels are the element-wise loops. Each does what the Go function of the
// same name does, in the same order.
var kernels = []*kernel{
	{name: "add", slices: "dst x y", body: func(l *loop) { l.st("dst", l.add(l.ld("x"), l.ld("y"))) }},
	{name: "sub", slices: "dst x y", body: func(l *loop) { l.st("dst", l.sub(l.ld("x"), l.ld("y"))) }},
	{name: "mul", slices: "dst x y", body: func(l *loop) { l.st("dst", l.mul(l.ld("x"), l.ld("y"))) }},
	{name: "div", slices: "dst x y", body: func(l *loop) { l.st("dst", l.div(l.ld("x"), l.ld("y"))) }},
	{name: "max", slices: "dst x y", body: func(l *loop) { l.st("dst", l.max(l.ld("x"), l.ld("y"))) }},
	{name: "maxConst", slices: "dst x", scalars: "c", body: func(l *loop) { l.st("dst", l.max(l.c("c"), l.ld("x"))) }},
	{name: "minConst", slices: "dst x", scalars: "c", body: func(l *loop) { l.st("dst", l.min(l.c("c"), l.ld("x"))) }},
	{name: "scale", slices: "dst x", scalars: "a", body: func(l *loop) { l.st("dst", l.mul(l.c("a"), l.ld("x"))) }},
	{name: "addConst", slices: "dst x", scalars: "a", body: func(l *loop) { l.st("dst", l.add(l.ld("x"), l.c("a"))) }},
	{name: "addScaled", slices: "dst x y", scalars: "a", body: func(l *loop) {
		l.st("dst", l.add(l.ld("x"), l.mul(l.c("a"), l.ld("y"))))
	}},
	{name: "subScaled", slices: "dst x y", scalars: "a", body: func(l *loop) {
		l.st("dst", l.sub(l.ld("x"), l.mul(l.c("a"), l.ld("y"))))
	}},
	{name: "axpby", slices: "dst x y", scalars: "a b", body: func(l *loop) {
		l.st("dst", l.ema("a", l.ld("x"), "b", l.ld("y")))
	}},
	{name: "axpbySquare", slices: "dst x y", scalars: "a b", body: func(l *loop) {
		l.st("dst", l.emaSquare("a", l.ld("x"), "b", l.ld("y")))
	}},
	{name: "mulAdd", slices: "dst x y z", body: func(l *loop) {
		l.st("dst", l.add(l.ld("x"), l.mul(l.ld("y"), l.ld("z"))))
	}},
	{name: "subQuotient", slices: "dst x y z", scalars: "a", body: func(l *loop) {
		l.st("dst", l.sub(l.ld("x"), l.div(l.mul(l.c("a"), l.ld("y")), l.ld("z"))))
	}},
	{name: "sqrt", slices: "dst x", body: func(l *loop) { l.st("dst", l.sqrt(l.ld("x"))) }},
	{name: "rootScaled", slices: "dst x", scalars: "a c", body: func(l *loop) {
		l.st("dst", l.add(l.mul(l.sqrt(l.ld("x")), l.c("a")), l.c("c")))
	}},
	{name: "rootOfScaled", slices: "dst x", scalars: "a c", body: func(l *loop) {
		l.st("dst", l.add(l.sqrt(l.mul(l.ld("x"), l.c("a"))), l.c("c")))
	}},
	{name: "abs", slices: "dst x", bits: []uint32{magnitude}, body: func(l *loop) { l.st("dst", l.abs(l.ld("x"))) }},
	{name: "sign", slices: "dst x", bits: forSign, body: func(l *loop) { l.st("dst", l.sign(l.ld("x"))) }},
	{name: "choose", slices: "dst c x y", bits: []uint32{0}, body: func(l *loop) {
		l.st("dst", l.choose(l.ld("c"), greater, l.pat(0), l.ld("x"), l.ld("y")))
	}},
	{name: "softThreshold", slices: "dst x", scalars: "c", bits: []uint32{0}, body: func(l *loop) {
		x, c, zero := l.ld("x"), l.c("c"), l.pat(0)
		v := l.choose(x, unordered, x, x, zero)
		v = l.choose(x, less, l.sub(zero, c), l.add(x, c), v)
		l.st("dst", l.choose(x, greater, c, l.sub(x, c), v))
	}},
	{name: "scaleAddConst", slices: "dst x", scalars: "a c", body: func(l *loop) {
		l.st("dst", l.add(l.mul(l.c("a"), l.ld("x")), l.c("c")))
	}},
	{name: "clamp", slices: "dst x", scalars: "lo hi", body: func(l *loop) {
		l.st("dst", l.max(l.c("lo"), l.min(l.c("hi"), l.ld("x"))))
	}},
	{name: "saturate", slices: "dst x", scalars: "c", body: func(l *loop) {
		x := l.ld("x")
		l.st("dst", l.div(x, l.add(x, l.c("c"))))
	}},
	{name: "decodeHalf", slices: "dst h:x", body: func(l *loop) { l.st("dst", l.ld("x")) }},
	{name: "encodeHalf", slices: "h:dst x", bits: []uint32{0x7fff, 1, 0x40}, body: func(l *loop) {
		x := l.ld("x")
		high := l.shiftRight(x, 16)
		nearest := l.shiftRight(l.addInt(l.addInt(x, l.pat(0x7fff)), l.and(high, l.pat(1))), 16)
		l.narrow(l.choose(x, unordered, x, l.or(high, l.pat(0x40)), nearest), l.mem("dst", 2))
	}},

	{name: "sgd", fused: "SGDCoef", slices: "out w grad", coef: sgdCoef, body: func(l *loop) {
		w := l.ld("w")
		l.st("out", l.sub(w, l.mul(l.c("LR"), l.sgdGradient(w))))
	}},
	{name: "sgdMomentum", fused: "SGDCoef", slices: "out w grad u", coef: sgdCoef, unroll: 2, body: func(l *loop) {
		w := l.ld("w")
		u := l.ema("Mu", l.ld("u"), "Keep", l.sgdGradient(w))
		l.st("u", u)
		l.st("out", l.sub(w, l.mul(l.c("LR"), u)))
	}},
	{name: "sgdNesterov", fused: "SGDCoef", slices: "out w grad u", coef: sgdCoef, unroll: 2, body: func(l *loop) {
		w := l.ld("w")
		g := l.sgdGradient(w)
		u := l.ema("Mu", l.ld("u"), "Keep", g)
		l.st("u", u)
		ahead := l.add(g, l.mul(l.c("Ahead"), u))
		l.st("out", l.sub(w, l.mul(l.c("LR"), ahead)))
	}},
	{name: "adam", fused: "AdamCoef", slices: "out w grad m v", coef: adamCoef, unroll: 2, body: func(l *loop) {
		w := l.ld("w")
		g := l.add(l.ld("grad"), l.mul(l.c("Decay"), w))
		l.st("out", l.sub(w, l.adamStep(g)))
	}},
	{name: "adamW", fused: "AdamCoef", slices: "out w grad m v", coef: adamCoef, unroll: 2, body: func(l *loop) {
		step := l.adamStep(l.ld("grad"))
		l.st("out", l.sub(l.mul(l.ld("w"), l.c("Decay")), step))
	}},
	{name: "yogi", fused: "YogiCoef", slices: "out w grad m v", coef: "B1 A1 A2 Step Eps", bits: forSign, unroll: 2, body: func(l *loop) {
		g, v := l.ld("grad"), l.ld("v")
		m := l.ema("B1", l.ld("m"), "A1", g)
		l.st("m", m)
		square := l.mul(g, g)
		v = l.add(v, l.mul(l.sign(l.sub(square, v)), l.mul(l.c("A2"), square)))
		l.st("v", v)
		root := l.add(l.sqrt(v), l.c("Eps"))
		l.st("out", l.sub(l.ld("w"), l.div(l.mul(l.c("Step"), m), root)))
	}},
	{name: "eXAdam", fused: "EXAdamCoef", slices: "out w grad m v", coef: exadamCoef, bits: []uint32{one}, body: func(l *loop) {
		g := l.ld("grad")
		m := l.ema("B1", l.ld("m"), "A1", g)
		l.st("m", m)
		v := l.emaSquare("B2", l.ld("v"), "A2", g)
		l.st("v", v)
		eps := l.c("Eps")
		d := l.mul(m, m)
		d = l.add(l.mul(l.c("P1"), l.div(d, l.add(d, eps))), l.pat(one))
		d = l.add(l.sqrt(l.mul(l.mul(d, v), l.c("Root"))), eps)
		num := l.add(l.mul(l.c("P2"), l.div(v, l.add(v, eps))), l.pat(one))
		num = l.mul(num, l.add(m, g))
		l.st("out", l.sub(l.mul(l.c("Decay"), l.ld("w")), l.div(l.mul(l.c("Step"), num), d)))
	}},
	{name: "adagrad", fused: "AdagradCoef", slices: "out w grad s", coef: "Step Decay Eps", unroll: 2, body: func(l *loop) {
		w := l.ld("w")
		g := l.add(l.ld("grad"), l.mul(l.c("Decay"), w))
		s := l.add(l.ld("s"), l.mul(g, g))
		l.st("s", s)
		root := l.add(l.sqrt(s), l.c("Eps"))
		l.st("out", l.sub(w, l.div(l.mul(l.c("Step"), g), root)))
	}},
	{name: "lion", fused: "LionCoef", slices: "out w grad m", coef: "B1 A1 B2 A2 Decay Step", bits: forSign, unroll: 2, body: func(l *loop) {
		g, m := l.ld("grad"), l.ld("m")
		u := l.sign(l.ema("B1", m, "A1", g))
		l.st("m", l.ema("B2", m, "A2", g))
		l.st("out", l.add(l.mul(l.c("Decay"), l.ld("w")), l.mul(l.c("Step"), u)))
	}},
}

const (
	sgdCoef  = "Sign Decay LR Mu Keep Ahead"
	adamCoef = "B1 A1 B2 A2 Step Root Eps Decay"

	exadamCoef = "B1 A1 B2 A2 P1 P2 Step Root Eps Decay"
)
