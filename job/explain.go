package job

import (
	"fmt"
	"strings"

	"tributary/layout"
	"tributary/optim"
	"tributary/shard"
)

// Explain says in words how the job runs: the compiled pipeline, how a step
// closes, the passes of its rule, its bound on memory, the level at which a
// push is acknowledged, and what is reproducible bit for bit and why not (C3).
func (p *Pipeline) Explain() string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		lines := strings.Split(fmt.Sprintf(format, args...), "\n")
		for i, l := range lines {
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(&b, "%-14s %s\n", name, l)
		}
	}
	s, l := p.Spec, p.Layout
	row("job", "%s: %d updates, %d ranks served by %d workers at the start", s.Name, p.Steps, p.Ranks, s.Workers)
	row("model", "%d parameters in %d tensors, cut into %d chunks of %d, in %d shards on %d servers", l.P, len(l.Tensors), l.Chunks(), l.ChunkLen, p.Shards, s.Servers)
	row("pipeline", "%s", p.pipeline())
	row("closing", "%s", p.closing())
	row("pushed", "%s", p.pushed())
	row("passes", "%s", p.passes())
	row("memory", "%s", p.memory())
	row("flow", "%d chunks of one rank and step in flight to one shard; new parameters are %s", p.Window, p.handedOut())
	row("acknowledged", "%s", p.level())
	row("checkpoints", "%s", p.checkpoints())
	row("on loss", "%s", p.onLoss())
	row("reproducible", "%s", strings.Join(p.reproducible(), "\n"))
	return b.String()
}

func (p *Pipeline) pipeline() string {
	s := p.Spec
	bad := "stop the job if not"
	if s.OnBad == "null" {
		bad = "count as nothing if not"
	}
	return fmt.Sprintf("decode %s → validate (shape, CRC-32C, finite; %s) → weigh by %s → %s in rank order → %s, %s → publish",
		s.Encoding, bad, s.Aggregate.By, s.Aggregate.Rule, p.Rule.Spec().Name, s.Optimizer.Schedule.Describe())
}

func (p *Pipeline) closing() string {
	why := map[shard.Mode]string{
		shard.Streaming:   "a chunk is applied as soon as every rank has pushed it; element-wise rule, mean by coordinate, ranks that can be recomputed",
		shard.ByReduction: "a step waits for sums over all shards, which close it everywhere or nowhere",
		shard.ByDecision:  "the coordinator decides which ranks a step closes with, because of " + p.whyDecision(),
		shard.Async:       "there are no steps: a contribution is applied when a shard has all of it",
	}[p.Mode]
	return p.Mode.String() + ": " + why
}

func (p *Pipeline) whyDecision() string {
	if p.Spec.OnLoss == Shrink {
		return "on_loss: shrink"
	}
	if p.Spec.Recompute {
		return "a staleness that is not pinned"
	}
	return "recompute: false"
}

func (p *Pipeline) passes() string {
	spec := p.Rule.Spec()
	if spec.Reductions() == 0 && len(spec.Phases) == 1 {
		return "1, without sums over shards"
	}
	var lines []string
	op := map[optim.Op]string{optim.Sum: "sum", optim.Max: "maximum", optim.Gather: "gather"}
	over := map[optim.Class]string{optim.Row: "each row", optim.Column: "each column", optim.Tensor: "each tensor", optim.Model: "the model",
		optim.LastRow: "each row of the last two dimensions", optim.LastColumn: "each column of the last two dimensions"}
	for ph := range spec.Phases {
		prefix, ps := "", spec.Phases[ph].Passes
		if len(spec.Phases) > 1 {
			prefix = fmt.Sprintf("push %d, ", ph+1)
		}
		lines = append(lines, fmt.Sprintf("%s%d", prefix, len(ps)))
		for i, pass := range ps {
			for _, r := range pass.Reduce {
				lines = append(lines, fmt.Sprintf("%spass %d: %s %q over %s, blocks added in global order", prefix, i+1, op[r.Op], r.Name, over[r.Over]))
			}
		}
	}
	return strings.Join(lines, "\n")
}

// pushed says what a contribution carries and what it may be computed at.
func (p *Pipeline) pushed() string {
	spec := p.Rule.Spec()
	var lines []string
	for ph := range spec.Phases {
		var names []string
		for _, r := range spec.Roles(ph, optionalStep(spec)) {
			names = append(names, r.String())
		}
		line := strings.Join(names, ", ") + " at the parameters"
		if ph > 0 {
			line = strings.Join(names, ", ") + " at the point that the shards hand out after the push before, same examples"
		}
		lines = append(lines, line)
	}
	if spec.Perturb > 0 {
		lines[0] = fmt.Sprintf("grad, by each rank at its own point: the parameters + %v·grad/‖grad‖", spec.Perturb)
	}
	if spec.Optional != nil {
		var names []string
		for _, r := range spec.AllRoles() {
			names = append(names, r.String())
		}
		lines = append(lines, "by step, among "+strings.Join(names, ", "))
	}
	if spec.NeedsLoss {
		lines = append(lines, "the loss of the batch, which the rule uses")
	}
	if spec.Eval != "" {
		lines = append(lines, "evaluated and exported: the slot "+spec.Eval+" in place of the parameters")
	}
	if p.Sparse {
		lines = append(lines, "row-sparse contributions are taken: what no rank names keeps parameters and state")
	}
	return strings.Join(lines, "\n")
}

// optionalStep is a step that no period singles out.
func optionalStep(*optim.Spec) uint64 { return 2 }

func (p *Pipeline) memory() string {
	versions := shard.Versions(p.Mode, p.Spec.Staleness, p.Rule.Spec())
	state := 0 // elements
	for i := range p.Rule.Spec().Slots {
		sl := &p.Rule.Spec().Slots[i]
		if sl.By == nil && sl.Elements() {
			state += p.Layout.P
			continue
		}
		for ti := range p.Layout.Tensors {
			t := &p.Layout.Tensors[ti]
			if in := sl.In(t); sl.Elements() && !t.Buffer && in != nil && in.Class == optim.Element {
				state += t.Len
			}
		}
	}
	return fmt.Sprintf("%v of contributions at most on one server (budget %v)\n%v of parameters (%d versions) and %v of optimizer state over all servers",
		Bytes(p.Staged), p.Spec.MemoryBudget, Bytes(bytesF32*p.Layout.P*versions), versions, Bytes(bytesF32*state))
}

func (p *Pipeline) handedOut() string {
	if p.Broadcast {
		return "broadcast"
	}
	return "pulled chunk by chunk, first chunk first"
}

func (p *Pipeline) level() string {
	if p.Spec.Level == "durable" {
		return "durable: when the step is in a recorded checkpoint"
	}
	return "applied: when it is in the model that the owner of the shard holds in memory (one replica); durable later, when a checkpoint is recorded"
}

func (p *Pipeline) checkpoints() string {
	c := p.Spec.Checkpoint
	if c.Every == 0 {
		return "only at the end: a server that dies takes the job back to its start"
	}
	return fmt.Sprintf("every %d steps without stopping, %d kept; a server that dies takes the job back to the newest", c.Every, c.Keep)
}

func (p *Pipeline) onLoss() string {
	switch p.Spec.OnLoss {
	case Wait:
		return "wait: the job waits until the lost worker is back"
	case Shrink:
		return "shrink: steps close without the ranks of a lost worker until another one takes them"
	}
	return "reassign: others take over the ranks of a lost worker and compute the open step again"
}

// reproducible lists what fixes the bits of the result and what does not.
func (p *Pipeline) reproducible() []string {
	s := p.Spec
	var why []string
	if p.Mode == shard.Async {
		why = append(why, "no: asynchronous updates are applied as they come")
	}
	if s.Staleness > 0 && !s.Pinned {
		why = append(why, "no: a rank may compute on any of the last versions (pinned: true would fix which)")
	}
	if s.OnLoss == Shrink {
		why = append(why, "while no worker is lost; with a loss the steps it missed lack its ranks")
	}
	if !s.Recompute {
		why = append(why, "as far as workers push the same bits again after a loss (recompute: false says they may not)")
	}
	if len(why) == 0 {
		why = append(why, "yes, bit for bit: for any number of shards, servers and workers, any order of arrival, retries and crashes")
	}
	return append(why, fmt.Sprintf("server side, numerics version %d; the bits depend on ranks (%d), batch, seed and chunk length (%d)", Numerics, p.Ranks, p.Layout.ChunkLen),
		"gradients of the built-in models: the same on machines whose processors have the same vector instructions")
}

// Tensors lists the model's tensors, one per line, with the shards they lie in
// and how the optimizer tells them apart.
func (p *Pipeline) Tensors() string {
	var b strings.Builder
	shards := p.Layout.Shards(p.Shards)
	for i := range p.Layout.Tensors {
		t := &p.Layout.Tensors[i]
		lo, hi := t.Offset/p.Layout.ChunkLen, (t.Offset+t.Len-1)/p.Layout.ChunkLen
		how := ""
		switch {
		case t.Buffer:
			how = ", not trained"
		case t.NoDecay:
			how = ", no decay"
		}
		if t.Group > 0 {
			how += fmt.Sprintf(", optimizer.groups[%d]", t.Group-1)
		}
		fmt.Fprintf(&b, "%-24s %-16s %9d parameters in shards %d to %d%s\n", t.Name, fmt.Sprint(t.Shape), t.Len, holder(shards, lo), holder(shards, hi), how)
	}
	return b.String()
}

func holder(shards []layout.Range, chunk int) int {
	for k, r := range shards {
		if chunk < r.Hi {
			return k
		}
	}
	return len(shards) - 1
}
