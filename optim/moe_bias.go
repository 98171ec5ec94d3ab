package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "moe_bias",
		Doc:   "balances the experts of a mixture without a loss for it: biases of their scores follow their loads",
		Paper: "Wang et al., 2024, arXiv:2408.15664",
		Hypers: []Hyper{
			rate(1e-3),
		},
		New32: newMoEBias[float32],
		New64: newMoEBias[float64],
	})
}

// moeBias is loss-free balancing. A tensor holds the biases b of the experts of a
// layer; what workers push in place of its gradient is the load c of every expert,
// the number of tokens of the batch that chose it. Then
//
//	bᵢ ← bᵢ + lr·sign(mean(c) − cᵢ)
//
// with the mean over the tensor. Workers choose experts by score plus bias, and
// weight them by the score alone. The rule is for a parameter group of its own.
//
// Loads arrive as means over the ranks, whose rounding must not make a
// difference out of none. Each is off by a few parts in 2²⁴, as is the mean here;
// so loads within a millionth of the mean count as equal to it. Nothing else is
// lost as long as a batch has fewer than a million choices: where n experts have
// N choices in all, n·cᵢ and N are whole numbers, so a load that differs from the
// mean is off by at least 1/n, which is 1/N of the mean. Beyond, the experts taken
// for balanced are so to a millionth.
//
// Pass 0 adds up the loads. Out may be W; other overlaps are not allowed. A NaN in
// c makes NaN of its tensor. Apply does not allocate.
//
// Wang, Gao, Zhao, Sun and Dai, "Auxiliary-Loss-Free Load Balancing Strategy for
// Mixture-of-Experts", 2024, Algorithm 1, arXiv:2408.15664.
type moeBias[T Float] struct{ spec Spec }

// moeEqual is the share of the mean by which a load may differ and still count as
// equal.
const moeEqual = 1e-6

func newMoEBias[T Float](Values) (Rule[T], error) {
	r := &moeBias[T]{elementWise("moe_bias")}
	r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "load", Op: Sum, Over: Tensor}}}, {}}
	return r, nil
}

// Spec implements [Rule].
func (r *moeBias[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *moeBias[T]) Prepare(_ int, k *Step) { k.Coef = append(k.Coef[:0], k.LR) }

// Apply implements [Rule].
func (r *moeBias[T]) Apply(pass int, k *Step, s *Span[T]) {
	n, load := len(s.W), s.G[Grad]
	checkLen(n, len(load))
	if pass == 0 {
		s.Sums[0][0] += vec.Sum(load)
		return
	}
	checkLen(n, len(s.Out))
	mean := s.Tensor.Reduced[0][0][0] / float64(s.Tensor.Info.Len)
	over := load // may be overwritten
	vec.AddConst(over, load, T(-mean))
	vec.SoftThreshold(over, over, T(moeEqual*math.Abs(mean)))
	vec.Sign(over, over)
	vec.SubScaled(s.Out, s.W, T(k.Coef[0]), over)
}
