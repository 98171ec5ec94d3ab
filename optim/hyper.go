package optim

// Makers of hyper-parameters, so that a rule lists them one per line.

// rate is the base learning rate.
func rate(def float64) Hyper {
	return Hyper{Name: "lr", Default: def, Max: inf, Doc: "base learning rate, handed to the schedule"}
}

// number is a number from lo to hi.
func number(name string, def, lo, hi float64, doc string) Hyper {
	return Hyper{Name: name, Default: def, Min: lo, Max: hi, Doc: doc}
}

// pair is two decay rates.
func pair(name string, a, b float64, doc string) Hyper {
	return Hyper{Name: name, Default: Pair{a, b}, Max: Below1, Doc: doc}
}

func flag(name string, def bool, doc string) Hyper {
	return Hyper{Name: name, Default: def, Doc: doc}
}

// word is one of choices; nil choices leave the check to the rule.
func word(name, def string, choices []string, doc string) Hyper {
	return Hyper{Name: name, Default: def, Choices: choices, Doc: doc}
}

// settings are hyper-parameters of an inner rule.
func settings(name, doc string) Hyper {
	return Hyper{Name: name, Default: Settings{}, Doc: doc}
}
