package worker

import "testing"

// Clipping, groups and patterns give in a cluster, bit for bit, what one loop
// gives: with passes that meet, and with roles, slots and scalars of rules of
// every kind side by side.
func TestGroups(t *testing.T) {
	for name, c := range map[string][]string{
		"value":    {"adamw", "optimizer.clip.value=0.001"},
		"norms":    {"adamw", "optimizer.clip={value: 0.1, adaptive: 0.05, tensor_norm: 0.5, norm: 0.3}"},
		"two":      {"sam", "optimizer.clip={adaptive: 0.05, norm: 0.3}", "optimizer.hyper={base: adamp}"},
		"rates":    {"adamw", "optimizer.no_decay=['*.bias']", "optimizer.groups=[{match: ['fc2.*'], hyper: {lr: 0.03}}]"},
		"elements": {"sgd", "optimizer.groups=[{match: ['*.bias'], rule: adamw}, {match: ['fc2*'], rule: lion}]"},
		"sums": {"momo", "optimizer.clip={value: 0.1, norm: 0.5}",
			"optimizer.groups=[{match: ['fc1.bias'], rule: lamb}, {match: ['fc1.*'], rule: adamp}, {match: ['fc2.bias'], rule: momo, hyper: {beta: 0.5}}]"},
		"roles":     {"adahessian", "optimizer.groups=[{match: ['fc1.weight'], rule: sophia_g, hyper: {hessian_interval: 3}}, {match: ['*bias'], rule: spider}]"},
		"evaluated": {"schedule_free_adamw", "optimizer.groups=[{match: ['*bias'], hyper: {eps: 0.001}}]", "optimizer.clip.tensor_norm=0.1"},
		"factors":   {"adafactor", "optimizer.groups=[{match: ['fc1.weight'], rule: sgd}]", "optimizer.schedule={kind: cosine}"},
		"rows":      {"adagrad", "model={kind: sparse, hidden: []}", "optimizer.groups=[{match: ['*.bias'], rule: sgd}]", "optimizer.clip.value=0.01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := rulesJob(t, c[0], append([]string{"name=groups-" + name}, c[1:]...)...)
			sameVector(t, inCluster(t, s), plain(t, s))
		})
	}
}
