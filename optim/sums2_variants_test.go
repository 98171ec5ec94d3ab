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
		{name: "sam"},
		{name: "sam", hyper: h{"rho": 0, "base": "lamb", "base_hyper": h{"weight_decay": 0.1}}, shrinks: true},
		{name: "sam", hyper: h{"base": "adamp", "base_hyper": h{"delta": 100, "nesterov": true}}},
		{name: "sam", hyper: h{"base": "momo_adam"}},
		{name: "sam", hyper: h{"base": "sgd", "sync_perturbation": false}},
		{name: "sam", hyper: h{"base": "adamp", "base_hyper": h{"delta": 100}, "sync_perturbation": false}},
		{name: "o2nc"},
		{name: "o2nc", hyper: h{"radius": 1e3, "epoch": 2, "seed": 7}},
		{name: "moe_bias"},
		{name: "muon"},
		{name: "muon", hyper: h{"weight_decay": 0.1, "aux_weight_decay": 0.1, "nesterov": false}},
		{name: "muon", hyper: h{"lr": 0, "momentum": 0}},
	}
	ruleVariants = append(ruleVariants, variants...)
	sumVariants = append(sumVariants, variants...)
}
