package job

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// The words of a job file.
var (
	modelKinds = []string{"softmax", "mlp", "cnn", "sparse", "tensors"}
	dataNames  = []string{"digits", "mnist", "fashion-mnist", "csv", "libsvm", "none"}
	onLosses   = []string{string(Reassign), string(Wait), string(Shrink)}
	onBads     = []string{"halt", "null"}
	levels     = []string{"applied", "durable"}
	encodings  = []string{string(F32), string(BF16)}
)

// Limits of a job file.
const (
	maxStaleness = 1 << 10
	maxWindow    = 1 << 10
	maxBatch     = 1 << 24
	maxWidth     = 1 << 20 // units of a layer
	maxLayers    = 64
	maxSteps     = 1 << 50
	maxGroups    = 64
	maxPatterns  = 1 << 10 // of one list
	minBeats     = 6       // retries in timeouts.worker: one lost heartbeat must not cost a worker its ranks
)

// A name is part of subjects, keys and file names.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// Validate checks everything that can be checked without data or a cluster.
// The error, if any, is a [Problems] with all that was found.
func (s *Spec) Validate() error {
	c := &checker{}
	s.check(c)
	if len(c.problems) > 0 {
		return c.problems
	}
	return nil
}

// checker collects problems by path.
type checker struct{ problems Problems }

func (c *checker) bad(path, format string, args ...any) {
	if len(c.problems) >= maxProblems {
		return
	}
	c.problems = append(c.problems, Problem{Path: path, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) word(path, x string, known []string) {
	if !slices.Contains(known, x) {
		c.bad(path, "%s", optim.NoneOf(x, known))
	}
}

func (c *checker) between(path string, x, lo, hi int) {
	if x < lo || x > hi {
		c.bad(path, "got %d, want %d to %d", x, lo, hi)
	}
}

func (c *checker) steps(path string, x, lo uint64) {
	if x < lo || x > maxSteps {
		c.bad(path, "got %d, want %d to %d", x, lo, uint64(maxSteps))
	}
}

// errors adds every line of err.
func (c *checker) errors(path string, err error) {
	if err == nil {
		return
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok && len(j.Unwrap()) > 0 && strings.Contains(err.Error(), "\n") {
		for _, e := range j.Unwrap() {
			c.errors(path, e)
		}
		return
	}
	if h := (*optim.HyperError)(nil); errors.As(err, &h) {
		path += "." + h.Name
	}
	if e := (*optim.ScheduleError)(nil); errors.As(err, &e) && e.Field != "" {
		c.bad(path+"."+e.Field, "%s", e.Text)
		return
	}
	c.bad(path, "%v", err)
}

func (s *Spec) check(c *checker) {
	if !nameForm.MatchString(s.Name) {
		c.bad("name", "%q: want up to 63 small letters, digits, - and _, the first a letter or digit", s.Name)
	}
	s.checkModel(c)
	s.checkData(c)
	c.between("ranks", s.Ranks, 0, ledger.MaxRanks)
	c.between("workers", s.Workers, 1, ledger.MaxRanks)
	c.between("servers", s.Servers, 1, ledger.MaxShards/shardsPerServer)
	c.between("shards", s.Shards, 0, ledger.MaxShards)
	c.between("chunk", s.Chunk, 0, layout.MaxChunkLen)
	c.between("batch", s.Batch, 1, maxBatch)
	c.steps("steps", s.Steps, 1)
	rule := s.checkOptimizer(c)
	_, err := s.NewAggregate()
	c.errors("aggregate", err)
	c.between("staleness", s.Staleness, -1, maxStaleness)
	if s.Pinned && s.Staleness <= 0 {
		c.bad("pinned", "needs a staleness above 0")
	}
	if rule != nil && s.Staleness != 0 {
		s.checkStale(c, rule.Spec())
	}
	c.word("on_loss", string(s.OnLoss), onLosses)
	if rule != nil && rule.Spec().Reductions() > 0 && (s.OnLoss == Shrink || !s.Recompute) {
		c.bad("optimizer.rule", "%s needs sums over all shards, which close a step with all its ranks: it does not go with on_loss: shrink or recompute: false", rule.Spec().Name)
	}
	if s.Staleness < 0 && s.OnLoss == Shrink {
		c.bad("on_loss", "shrink has no meaning without steps (staleness: -1)")
	}
	c.word("on_bad", s.OnBad, onBads)
	c.steps("checkpoint.every", s.Checkpoint.Every, 0)
	c.between("checkpoint.keep", s.Checkpoint.Keep, 1, 1000)
	c.steps("eval.every", s.Eval.Every, 0)
	s.checkDistill(c, rule)
	c.word("level", s.Level, levels)
	c.word("encoding", string(s.Encoding), encodings)
	if s.Level == "durable" && s.Checkpoint.Every == 0 {
		c.bad("level", "durable needs checkpoint.every above 0: a push is durable once it is in a recorded checkpoint")
	}
	c.between("window", s.Window, 0, maxWindow)
	if s.MemoryBudget < 1<<20 {
		c.bad("memory_budget", "got %v, want 1MiB or more", s.MemoryBudget)
	}
	for _, t := range []struct {
		path string
		d    Duration
	}{{"timeouts.worker", s.Timeouts.Worker}, {"timeouts.start", s.Timeouts.Start}, {"timeouts.retry", s.Timeouts.Retry}} {
		if t.d <= 0 {
			c.bad(t.path, "got %v, want more than 0s", time.Duration(t.d))
		}
	}
	if w, r := s.Timeouts.Worker, s.Timeouts.Retry; r > 0 && w > 0 && w < minBeats*r {
		c.bad("timeouts.worker", "want at least %d times timeouts.retry: workers say that they live every 3 times timeouts.retry", minBeats)
	}
}

// checkStale says why a rule does not go with the staleness, one reason at most.
func (s *Spec) checkStale(c *checker, r *optim.Spec) {
	switch {
	case len(r.Phases) > 1:
		c.bad("staleness", "got %d, but %s pushes twice per update, at points that follow from each other: want 0", s.Staleness, r.Name)
	case r.History() > 0:
		c.bad("staleness", "got %d, but %s compares gradients at two neighbouring versions: want 0", s.Staleness, r.Name)
	case r.Reductions() > 0 && s.Staleness < 0:
		c.bad("staleness", "-1 (asynchronous) does not go with %s, which needs sums over all shards: choose 0 or more, or another rule", r.Name)
	case r.Reductions() > 0 && s.unpinned():
		c.bad("pinned", "%s needs sums over all shards, which close a step with all its ranks: with a staleness it needs pinned: true", r.Name)
	case r.Optional != nil && s.Staleness < 0 && len(s.Optimizer.Groups) > 0:
		// A group takes such a tensor by the number of the update, a rank sends it
		// by the number of its own step, and the two need never meet.
		c.bad("staleness", "-1 (asynchronous) does not go with groups of rules that ask for a tensor in some steps only: choose 0 or more, or one rule")
	}
}

func (s *Spec) checkModel(c *checker) {
	m := &s.Model
	c.layers("model", m.Kind, m.Hidden, m.Channels, modelKinds)
	switch {
	case m.Kind == "tensors":
		if _, err := layout.New(m.Tensors, 0); err != nil {
			c.errors("model.tensors", err)
		}
	case len(m.Tensors) > 0 && slices.Contains(modelKinds, m.Kind):
		c.bad("model.tensors", "has no meaning for kind %s", m.Kind)
	}
}

// layers checks the kind of a network with its layers.
func (c *checker) layers(path, kind string, hidden, channels []int, kinds []string) {
	c.word(path+".kind", kind, kinds)
	list := func(path string, xs []int, with ...string) {
		if len(xs) > 0 && slices.Contains(kinds, kind) && !slices.Contains(with, kind) {
			c.bad(path, "has no meaning for kind %s", kind)
		}
		if len(xs) > maxLayers {
			c.bad(path, "%d layers, want %d at most", len(xs), maxLayers)
		}
		for i, x := range xs {
			c.between(fmt.Sprintf("%s[%d]", path, i), x, 1, maxWidth)
		}
	}
	list(path+".hidden", hidden, "mlp", "cnn")
	list(path+".channels", channels, "cnn")
}

func (s *Spec) checkDistill(c *checker, rule optim.Rule[float32]) {
	d := &s.Distill
	wants := rule != nil && s.Model.Kind != "tensors" && slices.Contains(rule.Spec().AllRoles(), optim.GradKD)
	switch {
	case wants && d.Teacher == "":
		c.bad("distill.teacher", "%s takes the gradient of a distillation loss: want the safetensors file of a trained model", rule.Spec().Name)
	case !wants && d.Teacher != "":
		c.bad("distill.teacher", "has no meaning for the rule %s, or for a model of tensors", s.Optimizer.Rule)
	case !wants:
		return
	}
	c.layers("distill", d.Kind, d.Hidden, d.Channels, modelKinds[:len(modelKinds)-1])
	if d.Teacher != "" && d.Kind == "mlp" && len(d.Hidden) == 0 {
		c.bad("distill.hidden", "an mlp has hidden layers: want the widths of the teacher's, such as [128]")
	}
	if !(d.Temperature > 0) || math.IsInf(d.Temperature, 0) {
		c.bad("distill.temperature", "got %v, want a number above 0", d.Temperature)
	}
	if !(d.Weight >= 0) || math.IsInf(d.Weight, 0) {
		c.bad("distill.weight", "got %v, want 0 or more", d.Weight)
	}
}

func (s *Spec) checkData(c *checker) {
	d := &s.Data
	c.word("data.name", d.Name, dataNames)
	file := d.Name == "csv" || d.Name == "libsvm"
	switch {
	case s.Model.Kind == "tensors" && d.Name != "none":
		c.bad("data.name", "workers of a model of tensors bring their own data: want none")
	case s.Model.Kind != "tensors" && d.Name == "none":
		c.bad("data.name", "a built-in model needs data: want one of %s", strings.Join(dataNames[:len(dataNames)-1], ", "))
	}
	if file && d.Path == "" {
		c.bad("data.path", "%s needs the path of a file", d.Name)
	}
	if d.Path != "" && (d.Name == "digits" || d.Name == "none") {
		c.bad("data.path", "has no meaning for %s", d.Name)
	}
	if d.Label != "" && d.Name != "csv" {
		c.bad("data.label", "has no meaning for %s", d.Name)
	}
}

func (s *Spec) checkOptimizer(c *checker) optim.Rule[float32] {
	rule := s.Optimizer.rule(c.errors)
	s.checkPatterns(c)
	if rule != nil {
		_, err := s.NewSchedule()
		c.errors("optimizer.schedule", err)
	}
	return rule
}
