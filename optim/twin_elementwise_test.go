package optim

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// twinStep is what a twin needs to know of one step of one tensor.
type twinStep struct {
	Values
	in      [NumRoles][]float64
	lr      float64
	wd      float64 // weight decay, 0 in tensors without
	noDecay bool
}

// twinRule makes twins of a rule: start is called once for a tensor, scalars once
// per step, element for every element with its gradient.
type twinRule struct {
	start   func(x *twin, v Values)
	scalars func(x *twin, s *twinStep)
	element func(x *twin, s *twinStep, i int, g float64)
}

// adam2 moves the two moments and returns their corrections.
func (x *twin) adam2(s *twinStep, i int, g float64) (c1, c2 float64) {
	b1, b2 := s.Pair("betas")
	x.m[i] = b1*x.m[i] + (1-b1)*g
	x.v[i] = b2*x.v[i] + (1-b2)*g*g
	return 1 - math.Pow(b1, x.t), 1 - math.Pow(b2, x.t)
}

func sign(x float64) float64 {
	switch {
	case x > 0:
		return 1
	case x < 0:
		return -1
	}
	return 0
}

var twinRules = map[string]twinRule{
	"sgdw": {element: func(x *twin, s *twinStep, i int, g float64) {
		mu, d := s.Float("momentum"), g
		if mu != 0 {
			if x.t == 1 {
				x.u[i] = g
			} else {
				x.u[i] = mu*x.u[i] + (1-s.Float("dampening"))*g
			}
			if d = x.u[i]; s.Bool("nesterov") {
				d = g + mu*x.u[i]
			}
		}
		eta := 1.0
		if s.Float("lr") != 0 {
			eta = s.lr / s.Float("lr")
		}
		x.w[i] = x.w[i] - s.lr*d - eta*s.wd*x.w[i]
	}},
	"nag4": {start: startAtW, element: func(x *twin, s *twinStep, i int, g float64) {
		a, mu, gamma := s.lr, s.Float("mu"), s.Float("gamma")
		x.v[i] = (gamma*x.v[i] + a*mu*x.w[i] - a*g) / (gamma + a*mu)
		x.w[i] = (x.w[i] + a*x.v[i]) / (1 + a)
	}},
	"nag_gs": {
		start: func(x *twin, v Values) { startAtW(x, v); x.q = v.Float("gamma") },
		scalars: func(x *twin, s *twinStep) { // q moves after the step, of which p is gamma
			x.p = x.q
			x.q = (x.p + s.lr*s.Float("mu")) / (1 + s.lr)
		},
		element: func(x *twin, s *twinStep, i int, g float64) {
			a, mu := s.lr, s.Float("mu")
			if x.t > 1 {
				x.v[i] = (x.p*x.v[i] + a*mu*x.w[i] - a*g) / (x.p + a*mu)
			}
			x.w[i] = (x.w[i] + a*x.v[i]) / (1 + a)
		},
	},
	"dot": {element: func(x *twin, s *twinStep, i int, g float64) {
		task, kd := s.Float("momentum")-s.Float("delta"), s.Float("momentum")+s.Float("delta")
		g, gk, keep := g+s.wd*x.w[i], s.in[GradKD][i], 1-s.Float("dampening")
		if x.t == 1 {
			x.u[i], x.v[i] = g, gk
		} else {
			x.u[i], x.v[i] = task*x.u[i]+keep*g, kd*x.v[i]+keep*gk
		}
		x.w[i] = x.w[i] - s.lr*x.u[i] - s.lr*x.v[i]
	}},
	"adagrad": {
		start: func(x *twin, v Values) { fill(x.v, v.Float("initial_accumulator_value")) },
		element: func(x *twin, s *twinStep, i int, g float64) {
			g += s.wd * x.w[i]
			x.v[i] += g * g
			x.w[i] -= s.lr / (1 + (x.t-1)*s.Float("lr_decay")) * g / (math.Sqrt(x.v[i]) + s.Float("eps"))
		},
	},
	"amsgrad": {element: func(x *twin, s *twinStep, i int, g float64) {
		c1, c2 := x.adam2(s, i, g+s.wd*x.w[i])
		x.u[i] = max(x.u[i], x.v[i])
		x.w[i] -= s.lr / c1 * x.m[i] / (math.Sqrt(x.u[i])/math.Sqrt(c2) + s.Float("eps"))
	}},
	"adamw": {element: func(x *twin, s *twinStep, i int, g float64) {
		x.w[i] *= 1 - s.lr*s.wd
		c1, c2 := x.adam2(s, i, g)
		if x.u[i] = max(x.u[i], x.v[i]); !s.Bool("amsgrad") {
			x.u[i] = x.v[i]
		}
		x.w[i] -= s.lr / c1 * x.m[i] / (math.Sqrt(x.u[i])/math.Sqrt(c2) + s.Float("eps"))
	}},
	"adamax": {element: func(x *twin, s *twinStep, i int, g float64) {
		g += s.wd * x.w[i]
		c1, _ := x.adam2(s, i, g)
		_, b2 := s.Pair("betas")
		x.u[i] = max(b2*x.u[i], math.Abs(g)+s.Float("eps"))
		x.w[i] -= s.lr / c1 * x.m[i] / x.u[i]
	}},
	"adamw_paper": {element: func(x *twin, s *twinStep, i int, g float64) {
		c1, c2 := x.adam2(s, i, g)
		old := x.w[i]
		x.w[i] -= s.lr * math.Sqrt(c2) / c1 * x.m[i] / (math.Sqrt(x.v[i]) + s.Float("eps"))
		x.w[i] -= s.lr / s.Float("lr") * s.wd * old
	}},
	"adam_lazy": {element: func(x *twin, s *twinStep, i int, g float64) {
		c1, c2 := x.adam2(s, i, g)
		x.w[i] -= s.lr * math.Sqrt(c2) / c1 * x.m[i] / (math.Sqrt(x.v[i]) + s.Float("eps"))
	}},
	"nadam": {
		scalars: func(x *twin, s *twinStep) { // p is the product of all momenta so far
			x.p = 1
			for k := 1.0; k <= x.t; k++ {
				x.p *= nadamMu(s, k)
			}
		},
		element: func(x *twin, s *twinStep, i int, g float64) {
			g += s.wd * x.w[i]
			_, c2 := x.adam2(s, i, g)
			d := math.Sqrt(x.v[i]/c2) + s.Float("eps")
			now, next := nadamMu(s, x.t), nadamMu(s, x.t+1)
			x.w[i] -= s.lr*(1-now)/(1-x.p)*g/d + s.lr*next/(1-x.p*next)*x.m[i]/d
		},
	},
	"yogi": {
		start: func(x *twin, v Values) { fill(x.v, v.Float("initial_accumulator_value")) },
		element: func(x *twin, s *twinStep, i int, g float64) {
			b1, b2 := s.Pair("betas")
			l1, l2 := s.Float("l1"), s.Float("l2")
			if s.noDecay {
				l1, l2 = 0, 0
			}
			x.m[i] = b1*x.m[i] + (1-b1)*g
			x.v[i] += (1 - b2) * sign(g*g-x.v[i]) * g * g
			a := s.lr * math.Sqrt(1-math.Pow(b2, x.t)) / (1 - math.Pow(b1, x.t)) / (math.Sqrt(x.v[i]) + s.Float("eps"))
			w := x.w[i] - a*x.m[i]
			x.w[i] = sign(w) * max(math.Abs(w)-l1*a, 0) / (1 + l2*a)
		},
	},
	"exadam": {element: func(x *twin, s *twinStep, i int, g float64) {
		b1, b2 := s.Pair("betas")
		eps := s.Float("eps")
		x.w[i] *= 1 - s.lr*s.wd
		c1, c2 := x.adam2(s, i, g)
		m, v := x.m[i], x.v[i]
		d1, d2 := 1+v/(v+eps)*math.Pow(b2, x.t), 1+m*m/(m*m+eps)*math.Pow(b1, x.t)
		x.w[i] -= s.lr * (m/c1*d1 + g/c1*d1) / (math.Sqrt(v/c2*d2) + eps)
	}},
	"lion": {element: func(x *twin, s *twinStep, i int, g float64) {
		b1, b2 := s.Pair("betas")
		x.w[i] *= 1 - s.lr*s.wd
		x.w[i] -= s.lr * sign(b1*x.m[i]+(1-b1)*g)
		x.m[i] = b2*x.m[i] + (1-b2)*g
	}},
	"ftrl": {element: func(x *twin, s *twinStep, i int, g float64) {
		q, l1, l2, beta := -s.Float("lr_power"), s.Float("l1"), s.Float("l2"), s.Float("beta")
		if s.noDecay {
			if l1 = 0; beta > 0 {
				l2 = 0
			}
		}
		z, n := &x.u[i], &x.v[i]
		sigma := (math.Pow(*n+g*g, q) - math.Pow(*n, q)) / s.lr
		*z += g - sigma*x.w[i]
		*n += g * g
		if math.Abs(*z) <= l1 {
			x.w[i] = 0
		} else {
			x.w[i] = (sign(*z)*l1 - *z) / ((beta+math.Sqrt(*n))/s.lr + l2)
		}
	}},
	"schedule_free_adamw": {start: startAtW, scalars: twinScheduleFree, element: func(x *twin, s *twinStep, i int, g float64) {
		b1, b2 := s.Pair("betas")
		lr, inner := twinWarmup(x, s), s.Float("inner_momentum")
		z := &x.v[i]
		if s.Bool("decay_at_z") {
			*z -= lr * s.wd * *z
		} else {
			*z -= lr * s.wd * x.w[i]
		}
		second := &x.sf[1][i]
		*second = b2**second + (1-b2)*g*g
		if inner != 0 {
			m := &x.sf[2][i]
			*m = inner**m + (1-inner)*g
			g = *m / (1 - math.Pow(inner, x.t))
		}
		*z -= lr * g / (math.Sqrt(*second/(1-math.Pow(b2, x.t))) + s.Float("eps"))
		x.scheduleFree(i, b1)
	}},
	"schedule_free_sgd": {start: startAtW, scalars: twinScheduleFree, element: func(x *twin, s *twinStep, i int, g float64) {
		x.v[i] -= twinWarmup(x, s) * (g + s.wd*x.w[i])
		x.scheduleFree(i, s.Float("momentum"))
	}},
	"sophia_g": {element: func(x *twin, s *twinStep, i int, g float64) {
		b1, b2 := s.Pair("betas")
		x.w[i] *= 1 - s.lr*s.wd
		x.m[i] = b1*x.m[i] + (1-b1)*g
		x.w[i] -= s.lr * sign(x.m[i]) * min(math.Abs(x.m[i])/(s.Float("rho")*s.Float("batch_tokens")*x.v[i]+1e-15), 1)
		if q := s.in[HessGrad]; math.Mod(x.t-1, s.Float("hessian_interval")) == 0 {
			x.v[i] = b2*x.v[i] + (1-b2)*q[i]*q[i]
		}
	}},
	"adahessian": {element: func(x *twin, s *twinStep, i int, g float64) {
		b1, b2 := s.Pair("betas")
		power, h := s.Float("hessian_power"), s.in[HessDiag][i]
		x.m[i] = b1*x.m[i] + (1-b1)*g
		x.v[i] = b2*x.v[i] + (1-b2)*h*h
		d := math.Pow(math.Sqrt(x.v[i])/math.Sqrt(1-math.Pow(b2, x.t)), power) + s.Float("eps")
		x.w[i] -= s.lr * (x.m[i]/(1-math.Pow(b1, x.t))/d + s.wd*x.w[i])
	}},
}

func startAtW(x *twin, _ Values) {
	copy(x.v, x.w)
	x.sf = [3][]float64{append([]float64(nil), x.w...), make([]float64, len(x.w)), make([]float64, len(x.w))}
}

func fill(x []float64, to float64) {
	for i := range x {
		x[i] = to
	}
}

func nadamMu(s *twinStep, k float64) float64 {
	b1, _ := s.Pair("betas")
	return b1 * (1 - 0.5*math.Pow(0.96, k*s.Float("momentum_decay")))
}

func twinWarmup(x *twin, s *twinStep) float64 {
	if w := s.Float("warmup_steps"); w > 0 {
		return s.lr * min(1, x.t/w)
	}
	return s.lr
}

// twinScheduleFree keeps the largest rate in p, the sum of weights in q and the
// weight of the coming average in ck.
func twinScheduleFree(x *twin, s *twinStep) {
	x.p = max(x.p, twinWarmup(x, s))
	weight := math.Pow(x.t, s.Float("r")) * math.Pow(x.p, s.Float("weight_lr_power"))
	x.q += weight
	x.ck = weight / x.q
}

// scheduleFree averages: z is v, x is sf[0], y is w.
func (x *twin) scheduleFree(i int, beta float64) {
	x.sf[0][i] = (1-x.ck)*x.sf[0][i] + x.ck*x.v[i]
	x.w[i] = beta*x.sf[0][i] + (1-beta)*x.v[i]
}

// Every variant of an elementwise rule agrees with its twin on any input.
func TestElementwiseTwins(t *testing.T) {
	tested := map[string]bool{}
	for _, v := range ruleVariants {
		if rule, ok := twinRules[v.name]; ok {
			tested[v.name] = true
			t.Run(v.String(), func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { checkElementwiseTwin(t, v, rule) }) })
		}
	}
	if len(tested) != len(twinRules) {
		t.Errorf("%d of %d twins have variants", len(tested), len(twinRules))
	}
}

func checkElementwiseTwin(t *rapid.T, v ruleVariant, tr twinRule) {
	d, _ := Lookup(v.name)
	values, err := d.Resolve(v.hyper)
	if err != nil {
		t.Fatal(err)
	}
	l := testModel(t, 4)
	vector := rapid.SliceOfN(rapid.Float64Range(-2, 2), l.P, l.P)
	w := vector.Draw(t, "w")
	r := NewRunner(newRule[float64](t, v), l, w, RunnerOptions{Shards: 2})
	twins := make([]*twin, len(l.Tensors))
	for i, ti := range l.Tensors {
		x := &twin{w: append([]float64(nil), w[ti.Offset:ti.Offset+ti.Len]...)}
		x.u, x.m, x.v = make([]float64, ti.Len), make([]float64, ti.Len), make([]float64, ti.Len)
		if tr.start != nil {
			tr.start(x, values)
		}
		twins[i] = x
	}
	for step := range 4 {
		first, second := vector.Draw(t, "grad"), vector.Draw(t, "other")
		lr := 0.1 / float64(step+1)
		in := feed(r.spec, 0, r.T()+1, lr, func(role Role) []float64 {
			if role == Grad {
				return first
			}
			return second
		})
		r.Phase(0, in)
		got := r.Params()
		for i, ti := range l.Tensors {
			if ti.Buffer {
				continue
			}
			x := twins[i]
			x.t++
			s := &twinStep{Values: values, lr: lr, noDecay: ti.NoDecay}
			if wd, ok := values["weight_decay"].(float64); ok && !ti.NoDecay {
				s.wd = wd
			}
			for role, g := range in.G {
				if g != nil {
					s.in[role] = g[ti.Offset : ti.Offset+ti.Len]
				}
			}
			if tr.scalars != nil {
				tr.scalars(x, s)
			}
			for j := range x.w {
				tr.element(x, s, j, s.in[Grad][j])
				if y, want := got[ti.Offset+j], x.w[j]; !(math.Abs(y-want) <= 1e-10*max(1, math.Abs(want))) {
					t.Fatalf("step %d, %s[%d] = %v, want %v", step+1, ti.Name, j, y, want)
				}
			}
		}
	}
}
