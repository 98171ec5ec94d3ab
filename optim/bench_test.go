package optim

import (
	"testing"

	"tributary/layout"
)

func BenchmarkApply(b *testing.B) {
	const n = 2048
	info := &layout.Tensor{Name: "x", Shape: []int{n}, Len: n}
	for vi, v := range ruleVariants {
		if v.hyper == nil || v.hyper["momentum"] != nil {
			b.Run(v.name+variantName(v.hyper), func(b *testing.B) {
				rule := newRule[float32](b, vi)
				spec := rule.Spec()
				mk := func() []float32 {
					x := make([]float32, n)
					for i := range x {
						x[i] = 1 + float32(i)/n
					}
					return x
				}
				s := &Span[float32]{Tensor: &TensorState{Info: info, Reduced: [][][]float64{{{1, 1}}}}, W: mk(), Out: mk(), Sums: [][]float64{{0, 0}}}
				s.G[Grad] = mk()
				for range spec.Slots {
					s.Slots = append(s.Slots, mk())
				}
				k := &Step{T: 10, LR: 1e-9}
				rule.Prepare(0, k)
				b.ReportAllocs()
				b.SetBytes(4 * n)
				for b.Loop() {
					for pass := range spec.Phases[0].Passes {
						rule.Apply(pass, k, s)
					}
				}
			})
		}
	}
}

func variantName(h map[string]any) string {
	switch {
	case h["nesterov"] == true:
		return "-nesterov"
	case h["momentum"] != nil:
		return "-momentum"
	}
	return ""
}
