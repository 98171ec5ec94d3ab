package train

import "math"

// partition returns the index of the greatest score, the first one if there
// are several, and Σ exp((z − z[best])/temperature), which cannot overflow.
func partition(z []float32, temperature float64) (best int, sum float64) {
	for j, v := range z {
		if v > z[best] {
			best = j
		}
	}
	for _, v := range z {
		sum += math.Exp((float64(v) - float64(z[best])) / temperature)
	}
	return best, sum
}

// crossEntropy returns the sum of −ln softmax(scores)[label] over the rows of
// scores, and how many rows have their greatest score, the first one if there
// are several, at the label. Unless by is nil it overwrites by with scale
// times the gradient of the sum, scale·(softmax(scores) − onehot(label)).
// Sums are float64. A NaN score makes the loss NaN.
func crossEntropy(scores []float32, labels []int32, classes int, by []float32, scale float64) (loss float64, correct int) {
	for i, label := range labels {
		z := scores[i*classes : (i+1)*classes]
		best, sum := partition(z, 1)
		if best == int(label) {
			correct++
		}
		top := float64(z[best])
		loss += math.Log(sum) + top - float64(z[label])
		if by == nil {
			continue
		}
		d := by[i*classes : (i+1)*classes]
		for j, v := range z {
			d[j] = float32(scale * math.Exp(float64(v)-top) / sum)
		}
		d[label] = float32(scale * (math.Exp(float64(z[label])-top)/sum - 1))
	}
	return loss, correct
}

// softmaxAlong overwrites by with scale times the derivative of the softmax
// p of each row of scores z, which is that of the cross-entropy's gradient:
//
//	R{p} = p ∘ (R{z} − ⟨p, R{z}⟩)
func softmaxAlong(scores dual, classes int, by []float32, scale float64) {
	for at := 0; at < len(scores.v); at += classes {
		z, rz, d := scores.v[at:at+classes], scores.r[at:at+classes], by[at:at+classes]
		best, sum := partition(z, 1)
		p := func(j int) float64 { return math.Exp(float64(z[j])-float64(z[best])) / sum }
		mean := 0.0
		for j, r := range rz {
			mean += float64(p(j) * float64(r))
		}
		for j, r := range rz {
			d[j] = float32(scale * p(j) * (float64(r) - mean))
		}
	}
}
