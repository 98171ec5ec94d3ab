package optim

import (
	"fmt"
	"slices"
	"strings"
)

// hyperNames maps the references' names of hyper-parameters to ours, for all
// rules. A name that is neither here nor in hyperNamesOf fails the replay.
var hyperNames = map[string]string{
	"lr": "lr", "amsgrad": "amsgrad", "sync_perturbation": "sync_perturbation", "momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov", "maximize": "maximize",
	"weight_decay": "weight_decay", "wd_step": "weight_decay", "betas": "betas", "eps": "eps", "epsilon": "eps",
	"initial_accumulator_value": "initial_accumulator_value", "lr_decay": "lr_decay", "momentum_decay": "momentum_decay",
	"hessian_power": "hessian_power", "mu": "mu", "gamma": "gamma", "alpha": "alpha", "beta": "beta",
	"l1_regularization_strength": "l1", "l2_regularization_strength": "l2", "lambda_1": "l1", "lambda_2": "l2", "lr_power": "lr_power",
	"correct_bias": "correct_bias", "delta": "delta", "wd_ratio": "wd_ratio", "max_grad_norm": "max_grad_norm", "always_adapt": "always_adapt",
	"lb": "lb", "bias_correction": "bias_correction", "use_fstar": "use_fstar", "divide": "divide", "is_sqrt": "is_sqrt",
	"rho": "rho", "bs": "batch_tokens", "hessian_interval": "hessian_interval", "switch_eps": "switch_eps",
	"warmup_steps": "warmup_steps", "r": "r", "weight_lr_power": "weight_lr_power", "decay_at_z": "decay_at_z", "inner_momentum": "inner_momentum",
	"eps2": "eps2", "clip_threshold": "clip_threshold", "decay_rate": "decay_rate", "scale_parameter": "scale_parameter",
	"relative_step": "relative_step", "warmup_init": "warmup_init", "adaptive": "adaptive", "eta0": "lr", "base": "base",
}

// hyperNamesOf maps names whose meaning differs in one rule. An empty name
// stands for what follows from the others.
var hyperNamesOf = map[string]map[string]string{
	"adafactor":    {"beta1": "beta1"},
	"oasis":        {"beta2": "beta2"},
	"ag_nonconvex": {"lambda_": "lambda", "a": "a", "penalty": "penalty", "step": "lr", "L": "", "unpenalized": ""},
}

// ruleName is our name of the rule that a golden file replays.
func (g *golden) ruleName() string {
	switch {
	case g.Optimizer == "adamw-amsgrad":
		return "adamw"
	case g.Optimizer == "adam-amsgrad", g.Optimizer == "adam" && g.Hyper["amsgrad"] == true:
		return "amsgrad"
	}
	return g.Optimizer
}

// hyper returns g's hyper-parameters under our names.
func (g *golden) hyper() (map[string]any, error) {
	h, err := mapHyper(g.ruleName(), g.Hyper)
	if err != nil {
		return nil, err
	}
	switch g.Optimizer {
	case "adamw-amsgrad":
		h["amsgrad"] = true
	case "dot": // the reference takes the two rates, the paper their mean and half their difference
		kd, ok := h["momentum_kd"].(float64)
		task, also := h["momentum"].(float64)
		if ok && also {
			delete(h, "momentum_kd")
			h["momentum"], h["delta"] = (task+kd)/2, (kd-task)/2
		}
	case "ag_nonconvex":
		h["penalty"] = strings.ToLower(h["penalty"].(string))
	case "swats":
		// One of the references tests |L−γ| ≤ 1e-8 + ε·|γ|, with the ε of Adam.
		if strings.Contains(g.Reference.Source, "kozistr") {
			h["switch_eps"], h["switch_rel"] = 1e-8, h["eps"]
		}
	}
	return h, nil
}

// mapHyper renames the hyper-parameters of a reference.
func mapHyper(rule string, ref map[string]any) (map[string]any, error) {
	h := map[string]any{}
	betas := []any{0.9, 0.999}
	for name, x := range ref {
		ours, ok := hyperNamesOf[rule][name]
		if !ok {
			ours, ok = hyperNames[name]
		}
		switch {
		case ok && ours == "":
		case name == "amsgrad" && rule != "adamw": // another rule here
			if x == true && rule != "amsgrad" {
				return nil, fmt.Errorf("%s has no amsgrad", rule)
			}
		case ok && x == nil: // none
			if name == "max_grad_norm" {
				h[ours] = 0
			}
		case ok:
			h[ours] = x
		case name == "beta1" || name == "beta2":
			betas[strings.Index("12", name[4:])] = x
			h["betas"] = betas
		case name == "momentum_kd" && rule == "dot":
			h[name] = x
		case name == "base_hyper":
			inner, err := mapHyper(ref["base"].(string), x.(map[string]any))
			if err != nil {
				return nil, err
			}
			h["base_hyper"] = inner
		case rule == "muon" && (name == "muon" || name == "aux_adam"):
			inner, err := mapHyper(rule, x.(map[string]any))
			if err != nil {
				return nil, err
			}
			for k, v := range inner {
				if name == "aux_adam" {
					k = "aux_" + k
				}
				h[k] = v
			}
		default:
			return nil, fmt.Errorf("hyper-parameter %q of the reference has no counterpart", name)
		}
	}
	return h, nil
}

// unpenalized says whether the reference exempts a tensor from its penalty,
// which is what NoDecay says here.
func (g *golden) unpenalized(tensor string) bool {
	list, _ := g.Hyper["unpenalized"].([]any)
	return slices.Contains(list, any(tensor))
}
