package vec

import (
	"math"
	"unsafe"
)

// The loops below are whole updates of the rules that most jobs use. Package
// optim has the formulas and what the coefficients are. out may be w.

// SGDCoef are the coefficients of gradient descent: g ← Sign·g + Decay·w, and
// the buffer u ← Mu·u + Keep·g. Ahead is the momentum of Nesterov's step.
type SGDCoef[T Float] struct{ Sign, Decay, LR, Mu, Keep, Ahead T }

// SGD is out = w − LR·g.
func SGD[T Float](out, w, g []T, c *SGDCoef[T]) {
	same(len(out), len(w), len(g))
	i := 0
	if short[T]() {
		i = sgd32(f32(out), f32(w), f32(g), (*SGDCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		gi := T(c.Sign*g[i]) + T(c.Decay*w[i])
		out[i] = w[i] - T(c.LR*gi)
	}
}

// SGDMomentum is out = w − LR·u, after u.
func SGDMomentum[T Float](out, w, g, u []T, c *SGDCoef[T]) {
	same(len(out), len(w), len(g), len(u))
	i := 0
	if short[T]() {
		i = sgdMomentum32(f32(out), f32(w), f32(g), f32(u), (*SGDCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		gi := T(c.Sign*g[i]) + T(c.Decay*w[i])
		u[i] = T(c.Mu*u[i]) + T(c.Keep*gi)
		out[i] = w[i] - T(c.LR*u[i])
	}
}

// SGDNesterov is out = w − LR·(g + Ahead·u), after u.
func SGDNesterov[T Float](out, w, g, u []T, c *SGDCoef[T]) {
	same(len(out), len(w), len(g), len(u))
	i := 0
	if short[T]() {
		i = sgdNesterov32(f32(out), f32(w), f32(g), f32(u), (*SGDCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		gi := T(c.Sign*g[i]) + T(c.Decay*w[i])
		u[i] = T(c.Mu*u[i]) + T(c.Keep*gi)
		out[i] = w[i] - T(c.LR*(gi+T(c.Ahead*u[i])))
	}
}

// AdamCoef are the coefficients of Adam and AdamW: m ← B1·m + A1·g,
// v ← B2·v + A2·g², and the step Step·m / (√v·Root + Eps). Decay multiplies w:
// to be added to g in Adam, to stand in its place in AdamW.
type AdamCoef[T Float] struct{ B1, A1, B2, A2, Step, Root, Eps, Decay T }

// Adam is g ← g + Decay·w, m, v, out = w − step; g itself stays.
func Adam[T Float](out, w, g, m, v []T, c *AdamCoef[T]) {
	same(len(out), len(w), len(g), len(m), len(v))
	i := 0
	if short[T]() {
		i = adam32(f32(out), f32(w), f32(g), f32(m), f32(v), (*AdamCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		gi := g[i] + T(c.Decay*w[i])
		out[i] = w[i] - adamStep(gi, &m[i], &v[i], c)
	}
}

// AdamW is m, v, out = w·Decay − step.
func AdamW[T Float](out, w, g, m, v []T, c *AdamCoef[T]) {
	same(len(out), len(w), len(g), len(m), len(v))
	i := 0
	if short[T]() {
		i = adamW32(f32(out), f32(w), f32(g), f32(m), f32(v), (*AdamCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		step := adamStep(g[i], &m[i], &v[i], c)
		out[i] = T(w[i]*c.Decay) - step
	}
}

func adamStep[T Float](g T, m, v *T, c *AdamCoef[T]) T {
	*m = T(c.B1**m) + T(c.A1*g)
	*v = T(c.B2**v) + T(T(c.A2*g)*g)
	root := T(T(math.Sqrt(float64(*v)))*c.Root) + c.Eps
	return T(c.Step**m) / root
}

// YogiCoef are the coefficients of Yogi: m ← B1·m + A1·g,
// v ← v + sign(g² − v)·(A2·g²).
type YogiCoef[T Float] struct{ B1, A1, A2, Step, Eps T }

// Yogi is m, v, out = w − Step·m / (√v + Eps).
func Yogi[T Float](out, w, g, m, v []T, c *YogiCoef[T]) {
	same(len(out), len(w), len(g), len(m), len(v))
	i := 0
	if short[T]() {
		i = yogi32(f32(out), f32(w), f32(g), f32(m), f32(v), (*YogiCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		m[i] = T(c.B1*m[i]) + T(c.A1*g[i])
		square := T(g[i] * g[i])
		v[i] += T(sign(square-v[i]) * T(c.A2*square))
		root := T(math.Sqrt(float64(v[i]))) + c.Eps
		out[i] = w[i] - T(c.Step*m[i])/root
	}
}

// EXAdamCoef are the coefficients of EXAdam: m and v as in Adam,
// d₁ = 1 + P2·v/(v + Eps) and d₂ = 1 + P1·m²/(m² + Eps).
type EXAdamCoef[T Float] struct{ B1, A1, B2, A2, P1, P2, Step, Root, Eps, Decay T }

// EXAdam is m, v, out = Decay·w − Step·(d₁·(m + g)) / (√(d₂·v·Root) + Eps).
func EXAdam[T Float](out, w, g, m, v []T, c *EXAdamCoef[T]) {
	same(len(out), len(w), len(g), len(m), len(v))
	i := 0
	if short[T]() {
		i = eXAdam32(f32(out), f32(w), f32(g), f32(m), f32(v), (*EXAdamCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		gi := g[i]
		mi := T(c.B1*m[i]) + T(c.A1*gi)
		vi := T(c.B2*v[i]) + T(T(c.A2*gi)*gi)
		m[i], v[i] = mi, vi
		square := T(mi * mi)
		d2 := T(c.P1*T(square/(square+c.Eps))) + 1
		root := T(math.Sqrt(float64(T(T(d2*vi)*c.Root)))) + c.Eps
		d1 := T(c.P2*T(vi/(vi+c.Eps))) + 1
		out[i] = T(c.Decay*w[i]) - T(c.Step*T(d1*(mi+gi)))/root
	}
}

// AdagradCoef are the coefficients of Adagrad: g ← g + Decay·w, s ← s + g².
type AdagradCoef[T Float] struct{ Step, Decay, Eps T }

// Adagrad is s, out = w − Step·g / (√s + Eps); g itself stays.
func Adagrad[T Float](out, w, g, s []T, c *AdagradCoef[T]) {
	same(len(out), len(w), len(g), len(s))
	i := 0
	if short[T]() {
		i = adagrad32(f32(out), f32(w), f32(g), f32(s), (*AdagradCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		gi := g[i] + T(c.Decay*w[i])
		s[i] += T(gi * gi)
		root := T(math.Sqrt(float64(s[i]))) + c.Eps
		out[i] = w[i] - T(c.Step*gi)/root
	}
}

// LionCoef are the coefficients of Lion. Step is negative to descend.
type LionCoef[T Float] struct{ B1, A1, B2, A2, Decay, Step T }

// Lion is out = Decay·w + Step·sign(B1·m + A1·g), then m ← B2·m + A2·g.
func Lion[T Float](out, w, g, m []T, c *LionCoef[T]) {
	same(len(out), len(w), len(g), len(m))
	i := 0
	if short[T]() {
		i = lion32(f32(out), f32(w), f32(g), f32(m), (*LionCoef[float32])(unsafe.Pointer(c)))
	}
	for ; i < len(out); i++ {
		u := sign(T(c.B1*m[i]) + T(c.A1*g[i]))
		m[i] = T(c.B2*m[i]) + T(c.A2*g[i])
		out[i] = T(c.Decay*w[i]) + T(c.Step*u)
	}
}
