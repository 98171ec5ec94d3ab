package train

import "math"

// Scores implements [Model].
func (m *network) Scores(params, x []float32, n int, out []float32) {
	want("scores", len(out), n*m.classes)
	m.run(dual{v: params}, x, n, nil, func(lo, hi int, scores, _ dual) {
		copy(out[lo*m.classes:hi*m.classes], scores.v)
	})
}

// SampleLabels implements [Model].
func (m *network) SampleLabels(params, x []float32, n int, u func(i int) float64, y []int32) {
	want("labels", len(y), n)
	m.run(dual{v: params}, x, n, nil, func(lo, hi int, scores, _ dual) {
		for i := lo; i < hi; i++ {
			y[i] = sample(scores.v[(i-lo)*m.classes:(i-lo+1)*m.classes], u(i))
		}
	})
}

// sample is the inverse of the distribution function of softmax(z) at u in
// [0, 1): the first class up to which the probabilities sum to more than u. If
// there is none, as with a NaN score, it is the likeliest class.
func sample(z []float32, u float64) int32 {
	best, sum := partition(z, 1)
	upTo, bound := 0.0, float64(u*sum)
	for j, v := range z {
		if upTo += math.Exp(float64(v) - float64(z[best])); upTo > bound {
			return int32(j)
		}
	}
	return int32(best)
}
