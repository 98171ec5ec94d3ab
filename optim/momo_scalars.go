package optim

// momoHyper are the hyper-parameters that MoMo and MoMo-Adam share, without lr.
type momoHyper struct {
	beta, wd, lb   float64
	correct, fstar bool
}

// Indices of the slots of the model that MoMo and MoMo-Adam keep.
const (
	momoLoss  = iota // f, average of the losses
	momoInner        // γ, average of ⟨w, g⟩
	momoBound        // lower bound of the loss
)

// slots are those slots, in that order.
func (h *momoHyper) slots() []Slot {
	return []Slot{{Name: "f", Class: Model}, {Name: "gam", Class: Model}, {Name: "lb", Class: Model, Init: h.lb}}
}

// Indices of the sums over the model. Those of tensors without decay are apart.
const (
	momoWG     = iota // ⟨w, g⟩
	momoWD            // ⟨w, d⟩
	momoDD            // ⟨d, d⟩ in the metric of the rule
	momoWDFree        // the same of tensors without decay
	momoDDFree
	momoSums
)

// spec is the spec of a rule with the given element slots.
func (h *momoHyper) spec(name string, slots ...Slot) Spec {
	spec := elementWise(name, append(slots, h.slots()...)...)
	spec.NeedsLoss = true
	spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "model", Op: Sum, Over: Model, Width: momoSums}}}, {}}
	return spec
}

// smoothing is β of step t. Averages that are not corrected start at the first
// value.
func (h *momoHyper) smoothing(t uint64) float64 {
	if t == 1 && !h.correct {
		return 0
	}
	return h.beta
}

// step is the step size τ from the sums of pass 0; it fills k.Next.
//
// The loss is modelled by max(f + ⟨y, d⟩ − γ, ρ·lb), whose minimum near w is
// sought. At τ = 0 decay alone takes w to w/c, with c = 1 + lr·λ, or c = 1 where
// there is no decay; so the model stands at ⟨w/c, d⟩ and falls by τ·⟨d/c, d⟩.
// With one c for all tensors this is the step of the reference.
func (h *momoHyper) step(k *Step) (tau float64) {
	s := k.Reduced[0][0]
	beta := h.smoothing(k.T)
	f := float64(beta*k.Model[momoLoss]) + float64((1-beta)*k.Loss)
	inner := float64(beta*k.Model[momoInner]) + float64((1-beta)*s[momoWG])
	lb := k.Model[momoBound]
	rho := 1.0
	if h.correct {
		rho = biasCorrection(h.beta, k.T)
	}
	c := 1 + float64(k.LR*h.wd)
	height := f - inner + (s[momoWD]/c + s[momoWDFree])
	slope := s[momoDD]/c + s[momoDDFree]
	if h.fstar && height < float64(rho*lb) {
		lb = max(height/float64(2*rho), h.lb)
	}
	// Without a slope there is nowhere to go.
	if slope != 0 {
		tau = min(k.LR/rho, max(height-float64(rho*lb), 0)/slope)
	}
	if h.fstar {
		wd, dd := s[momoWD]+s[momoWDFree], s[momoDD]+s[momoDDFree]
		lb = max((f-inner+wd-float64(float64(tau*dd)/2))/rho, h.lb)
	}
	k.Next[momoLoss], k.Next[momoInner], k.Next[momoBound] = f, inner, lb
	return tau
}
