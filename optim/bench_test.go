package optim

import (
	"fmt"
	"testing"
)

// BenchmarkApply measures every pass of a step over one span of 2048 elements:
// a matrix, because some rules treat vectors in another way.
func BenchmarkApply(b *testing.B) {
	for _, v := range ruleVariants {
		bed := newBed(b, newRule[float32](b, v), 10, 32, 64)
		bed.k.LR = 1e-9
		n := 0
		bed.run(func(pass func(), _ bool) {
			name := v.String()
			if len(bed.spec.Phases) > 1 || len(bed.spec.Phases[0].Passes) > 1 {
				name += fmt.Sprintf("/pass%d", n)
			}
			n++
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(4 * bed.l.P))
				for b.Loop() {
					pass()
				}
			})
			pass() // also if no benchmark was asked for
		})
	}
}
