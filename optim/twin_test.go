package optim

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// twin is a second implementation of the rules, written from their formulas
// one scalar at a time and with math.Pow: slow, and hard to get wrong.
type twin struct {
	w, u, m, v []float64
	t          float64
	p, q, ck   float64 // scalars, as the rule needs them
	sf         [3][]float64
}

func (x *twin) sgd(v Values, lr float64, g []float64, noDecay bool) {
	mu, wd := v.Float("momentum"), v.Float("weight_decay")
	if noDecay {
		wd = 0
	}
	x.t++
	for i, gi := range g {
		if v.Bool("maximize") {
			gi = -gi
		}
		gi += wd * x.w[i]
		if mu != 0 {
			if x.t == 1 {
				x.u[i] = gi
			} else {
				x.u[i] = mu*x.u[i] + (1-v.Float("dampening"))*gi
			}
			if v.Bool("nesterov") {
				gi += mu * x.u[i]
			} else {
				gi = x.u[i]
			}
		}
		x.w[i] -= lr * gi
	}
}

func (x *twin) adam(name string, v Values, lr float64, g []float64, noDecay bool) {
	b1, b2 := v.Pair("betas")
	eps, wd := v.Float("eps"), v.Float("weight_decay")
	if noDecay {
		wd = 0
	}
	x.t++
	c1, c2 := 1-math.Pow(b1, x.t), 1-math.Pow(b2, x.t)
	u := make([]float64, len(g))
	ww, uu := 0.0, 0.0
	for i, gi := range g {
		if name == "adam" {
			gi += wd * x.w[i]
		}
		x.m[i] = b1*x.m[i] + (1-b1)*gi
		x.v[i] = b2*x.v[i] + (1-b2)*gi*gi
		switch name {
		case "adam":
			x.w[i] -= lr / c1 * x.m[i] / (math.Sqrt(x.v[i])/math.Sqrt(c2) + eps)
		case "adamw":
			x.w[i] *= 1 - lr*wd
			x.w[i] -= lr / c1 * x.m[i] / (math.Sqrt(x.v[i])/math.Sqrt(c2) + eps)
		case "lamb":
			u[i] = x.m[i]/c1/(math.Sqrt(x.v[i]/c2)+eps) + wd*x.w[i]
			ww, uu = ww+x.w[i]*x.w[i], uu+u[i]*u[i]
		}
	}
	if name == "lamb" {
		r := 1.0
		if ww > 0 && uu > 0 {
			r = math.Sqrt(ww) / math.Sqrt(uu)
		}
		for i := range u {
			x.w[i] -= lr * r * u[i]
		}
	}
}

func TestTwin(t *testing.T) {
	for _, name := range []string{"sgd", "adam", "adamw", "lamb"} {
		t.Run(name, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { checkTwin(t, name) }) })
	}
}

func checkTwin(t *rapid.T, name string) {
	hyper := map[string]any{"weight_decay": rapid.SampledFrom([]float64{0, 0.3}).Draw(t, "wd")}
	if name == "sgd" {
		hyper["momentum"] = rapid.SampledFrom([]float64{0, 0.5, 0.9}).Draw(t, "momentum")
		hyper["maximize"] = rapid.Bool().Draw(t, "maximize")
		if hyper["momentum"] != 0.0 && rapid.Bool().Draw(t, "nesterov") {
			hyper["nesterov"] = true
		} else {
			hyper["dampening"] = rapid.SampledFrom([]float64{0, 0.3, 1}).Draw(t, "dampening")
		}
	} else {
		beta := rapid.SampledFrom([]float64{0, 0.5, 0.9, 0.99})
		hyper["betas"] = []any{beta.Draw(t, "b1"), beta.Draw(t, "b2")}
		hyper["eps"] = rapid.SampledFrom([]float64{1e-8, 1e-3, 1}).Draw(t, "eps")
	}
	rule, err := New[float64](name, hyper)
	if err != nil {
		t.Fatal(err)
	}
	d, _ := Lookup(name)
	v, err := d.Resolve(hyper)
	if err != nil {
		t.Fatal(err)
	}
	l := testModel(t, 4)
	vec := rapid.SliceOfN(rapid.Float64Range(-2, 2), l.P, l.P)
	w := vec.Draw(t, "w")
	r := NewRunner(rule, l, w, RunnerOptions{Shards: 2})
	twins := make([]*twin, len(l.Tensors))
	for i, ti := range l.Tensors {
		n := ti.Len
		twins[i] = &twin{w: append([]float64(nil), w[ti.Offset:ti.Offset+n]...), u: make([]float64, n), m: make([]float64, n), v: make([]float64, n)}
	}
	for step := range 4 {
		g, lr := vec.Draw(t, "g"), 0.1/float64(step+1)
		in := Input[float64]{LR: lr}
		in.G[Grad] = g
		r.Step(in)
		got := r.Params()
		for i, ti := range l.Tensors {
			gi := g[ti.Offset : ti.Offset+ti.Len]
			switch {
			case ti.Buffer:
			case name == "sgd":
				twins[i].sgd(v, lr, gi, ti.NoDecay)
			default:
				twins[i].adam(name, v, lr, gi, ti.NoDecay)
			}
			for j, want := range twins[i].w {
				if x := got[ti.Offset+j]; math.Abs(x-want) > 1e-11*max(1, math.Abs(want)) {
					t.Fatalf("%s %v: step %d, %s[%d] = %v, want %v", name, hyper, step+1, ti.Name, j, x, want)
				}
			}
		}
	}
}
