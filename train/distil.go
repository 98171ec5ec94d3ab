package train

import (
	"fmt"
	"math"
)

// GradSoft implements [Model].
func (m *network) GradSoft(params, x, targets []float32, temperature float64, n int, grad []float32) (loss float64) {
	want("elements of the gradient", len(grad), m.params)
	want("scores of the teacher", len(targets), n*m.classes)
	if !(temperature > 0) || math.IsInf(temperature, 1) {
		panic(fmt.Sprintf("train: temperature %v", temperature))
	}
	clear(grad)
	m.run(dual{v: params}, x, n, grad, func(lo, hi int, scores, by dual) {
		loss += softCrossEntropy(scores.v, targets[lo*m.classes:hi*m.classes], m.classes, temperature, by.v, 1/float64(n))
	})
	return loss / math.Max(1, float64(n))
}

// softCrossEntropy returns the sum of T²·KL(p ‖ q) over the rows of scores and
// targets, where p = softmax(targets/T) and q = softmax(scores/T), and
// overwrites by with scale times its gradient by the scores, scale·T·(q − p).
// Sums are float64. A class of p = 0 counts 0, however unlikely it is in q.
func softCrossEntropy(scores, targets []float32, classes int, t float64, by []float32, scale float64) (loss float64) {
	for at := 0; at < len(scores); at += classes {
		z, to, d := scores[at:at+classes], targets[at:at+classes], by[at:at+classes]
		zBest, zSum := partition(z, t)
		toBest, toSum := partition(to, t)
		shift := math.Log(zSum) - math.Log(toSum)
		divergence := 0.0
		for j := range z {
			a, b := (float64(to[j])-float64(to[toBest]))/t, (float64(z[j])-float64(z[zBest]))/t
			p, q := math.Exp(a)/toSum, math.Exp(b)/zSum
			if p != 0 {
				divergence += float64(p * (a - b + shift))
			}
			d[j] = float32(scale * t * (q - p))
		}
		loss += float64(t * t * divergence)
	}
	return loss
}
