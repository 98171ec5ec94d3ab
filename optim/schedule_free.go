package optim

import "tributary/internal/vec"

// scheduleFree is what the two schedule-free rules share: the average x of the
// iterates z, weighted by a power of the rate, and the point y between them
// where gradients are taken. y is what the runner calls the parameters.
//
// With warm-up s, powers r and p, and the scalars M and W of the model,
//
//	lrₜ = lr·min(1, t/s),  M ← max(M, lrₜ),  W ← W + tʳ·Mᵖ,  c = tʳ·Mᵖ/W
//
// the rule moves z, and then
//
//	x ← (1−c)·x + c·z,  y ← β·x + (1−β)·z
//
// As long as all rates were 0, c is 0.
type scheduleFree struct {
	spec                     Spec
	warmup, r, lrPower, beta float64
	wd                       float64
}

// scheduleFreeHypers are the hyper-parameters behind the rates of decay.
func scheduleFreeHypers(decay string) []Hyper {
	return []Hyper{
		number("weight_decay", 0, 0, inf, decay),
		number("warmup_steps", 0, 0, inf, "updates over which the rate rises from 0"),
		number("r", 0, 0, inf, "power of the step number in the weight of an iterate"),
		number("weight_lr_power", 2, 0, inf, "power of the largest rate so far in the weight of an iterate"),
	}
}

func newScheduleFree(name string, v Values, beta float64, slots ...Slot) scheduleFree {
	slots = append([]Slot{{Name: "z", FromParams: true}, {Name: "x", FromParams: true}}, slots...)
	slots = append(slots, Slot{Name: "lr_max", Class: Model}, Slot{Name: "weight_sum", Class: Model})
	r := scheduleFree{elementWise(name, slots...), v.Float("warmup_steps"), v.Float("r"), v.Float("weight_lr_power"), beta, v.Float("weight_decay")}
	r.spec.Eval = "x"
	return r
}

// Spec implements [Rule].
func (r *scheduleFree) Spec() *Spec { return &r.spec }

// prepare returns the rate lrₜ and the weight c, and moves the scalars on.
func (r *scheduleFree) prepare(k *Step) (lr, c float64) {
	lr = k.LR
	if t := float64(k.T); t < r.warmup {
		lr = float64(lr*t) / r.warmup
	}
	top := max(k.Model[0], lr)
	weight := float64(powReal(float64(k.T), r.r) * powReal(top, r.lrPower))
	sum := k.Model[1] + weight
	k.Next[0], k.Next[1] = top, sum
	if sum > 0 {
		c = weight / sum
	}
	return lr, c
}

// scheduleFreeAverage takes the new z into x and puts y between them.
func scheduleFreeAverage[T Float](y, x, z []T, c, beta float64) {
	vec.Axpby(x, T(1-c), x, T(c), z)
	vec.Axpby(y, T(beta), x, T(1-beta), z)
}
