package optim

import "fmt"

// elementWise is the spec of a rule with one phase of a single pass, which
// needs gradients and nothing else.
func elementWise(name string, slots ...Slot) Spec {
	return Spec{Name: name, Slots: slots, Phases: []Phase{{Needs: []Role{Grad}, Passes: []Pass{{}}}}}
}

// adamHypers are the hyper-parameters of Adam and its relatives with the
// given defaults.
func adamHypers(lr, eps, wd float64, decay string) []Hyper {
	return []Hyper{
		rate(lr),
		pair("betas", 0.9, 0.999, "decay rates of the two moments"),
		number("eps", eps, 0, inf, "added to the root of the second moment"),
		number("weight_decay", wd, 0, inf, decay),
	}
}

// adamHyper are the values of adamHypers, without lr.
type adamHyper struct{ b1, b2, eps, wd float64 }

func adamValues(v Values) (h adamHyper) {
	h.b1, h.b2 = v.Pair("betas")
	h.eps, h.wd = v.Float("eps"), v.Float("weight_decay")
	return h
}

// moments are the slots of Adam and its relatives.
func moments() []Slot { return []Slot{{Name: "m"}, {Name: "v"}} }

// checkLen panics unless all lengths are n. Re-slicing alone would not notice
// a slice that is too long, or too short with room behind it.
func checkLen(n int, lens ...int) {
	for _, l := range lens {
		if l != n {
			panic(fmt.Sprintf("optim: slices of %d and %d elements in one span", n, l))
		}
	}
}

// tile is how many elements a rule works on at a time: a few arrays of that
// length stay in the first-level cache and on the stack.
const tile = 512
