package optim

func init() {
	type h = map[string]any
	variants := []ruleVariant{
		{name: "swats"},
		{name: "swats", hyper: h{"weight_decay": 0.1}},
		// Any estimate will do: the switch comes at the second step.
		{name: "swats", hyper: h{"weight_decay": 0.1, "betas": []any{0.5, 0.5}, "switch_eps": 1e30, "switch_rel": 1}},
		{name: "oasis"},
		{name: "oasis", hyper: h{"beta2": 0.5, "alpha": 1, "lr": 0.5}},
		{name: "oasis", hyper: h{"lr": 0}},
		{name: "oasis", hyper: h{"adaptive": false}},
		// The concave part takes back what the pull to 0 does to large parameters.
		{name: "ag_nonconvex", drifts: true},
		{name: "ag_nonconvex", hyper: h{"penalty": "mcp", "lambda": 20}, shrinks: true},
		{name: "ag_nonconvex", hyper: h{"lambda": 20}, shrinks: true},
		{name: "ag_nonconvex", hyper: h{"lambda": 0}},
	}
	ruleVariants = append(ruleVariants, variants...)
	sumVariants = append(sumVariants, variants...)
}
