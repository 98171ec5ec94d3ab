package job

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"tributary/aggregate"
	"tributary/layout"
	"tributary/optim"
)

// Spec describes a job: the YAML file that a user writes and, as JSON, what
// travels to the nodes. docs/jobs.md documents every field. Start from
// [Default] or [Parse]: the zero value is not a valid job.
type Spec struct {
	Name         string     `json:"name" yaml:"name"`
	Model        Model      `json:"model" yaml:"model"`
	Data         Data       `json:"data" yaml:"data"`
	Distill      Distill    `json:"distill" yaml:"distill"`
	Seed         uint64     `json:"seed" yaml:"seed"`
	Ranks        int        `json:"ranks" yaml:"ranks"`
	Workers      int        `json:"workers" yaml:"workers"`
	Servers      int        `json:"servers" yaml:"servers"`
	Shards       int        `json:"shards" yaml:"shards"`
	Chunk        int        `json:"chunk" yaml:"chunk"`
	Batch        int        `json:"batch" yaml:"batch"`
	Steps        uint64     `json:"steps" yaml:"steps"`
	Optimizer    Optimizer  `json:"optimizer" yaml:"optimizer"`
	Aggregate    Aggregate  `json:"aggregate" yaml:"aggregate"`
	Staleness    int        `json:"staleness" yaml:"staleness"`
	Pinned       bool       `json:"pinned" yaml:"pinned"`
	OnLoss       OnLoss     `json:"on_loss" yaml:"on_loss"`
	Recompute    bool       `json:"recompute" yaml:"recompute"`
	RankState    bool       `json:"rank_state" yaml:"rank_state"`
	OnBad        string     `json:"on_bad" yaml:"on_bad"`
	Checkpoint   Checkpoint `json:"checkpoint" yaml:"checkpoint"`
	Eval         Evaluation `json:"eval" yaml:"eval"`
	Level        string     `json:"level" yaml:"level"`
	Encoding     Encoding   `json:"encoding" yaml:"encoding"`
	Window       int        `json:"window" yaml:"window"`
	MemoryBudget Bytes      `json:"memory_budget" yaml:"memory_budget"`
	Timeouts     Timeouts   `json:"timeouts" yaml:"timeouts"`
}

// Encoding is how contributions travel.
type Encoding string

// The encodings: float32 as computed, or rounded to bfloat16, which halves the
// bytes of a push.
const (
	F32  Encoding = "f32"
	BF16 Encoding = "bf16"
)

// Model says what is trained: a built-in model, or a list of tensors for
// workers that bring their own.
type Model struct {
	Kind     string          `json:"kind" yaml:"kind"`
	Hidden   []int           `json:"hidden,omitempty" yaml:"hidden,omitempty"`
	Channels []int           `json:"channels,omitempty" yaml:"channels,omitempty"`
	Tensors  []layout.Tensor `json:"tensors,omitempty" yaml:"tensors,omitempty"`
}

// Data says what built-in models are trained on.
type Data struct {
	Name  string `json:"name" yaml:"name"`
	Path  string `json:"path,omitempty" yaml:"path,omitempty"`
	Label string `json:"label,omitempty" yaml:"label,omitempty"`
}

// Distill says whose scores the workers of a built-in model distil, for rules
// that take the gradient of a distillation loss.
type Distill struct {
	Teacher     string  `json:"teacher" yaml:"teacher"` // safetensors file on the workers' machines; empty: none
	Kind        string  `json:"kind" yaml:"kind"`       // of the teacher's model, with its layers
	Hidden      []int   `json:"hidden,omitempty" yaml:"hidden,omitempty"`
	Channels    []int   `json:"channels,omitempty" yaml:"channels,omitempty"`
	Temperature float64 `json:"temperature" yaml:"temperature"`
	Weight      float64 `json:"weight" yaml:"weight"`
}

// Optimizer is the update rule with its hyper-parameters and schedule, what is
// done to gradients before, and which tensors are treated otherwise.
type Optimizer struct {
	Rule     string             `json:"rule" yaml:"rule"`
	Hyper    map[string]any     `json:"hyper,omitempty" yaml:"hyper,omitempty"`
	Schedule optim.ScheduleSpec `json:"schedule" yaml:"schedule"`
	Clip     optim.ClipSpec     `json:"clip" yaml:"clip"`
	NoDecay  []string           `json:"no_decay,omitempty" yaml:"no_decay,omitempty"` // patterns of tensors
	Groups   []Group            `json:"groups,omitempty" yaml:"groups,omitempty"`
}

// Aggregate says how the contributions of a step become one.
type Aggregate struct {
	Rule string `json:"rule" yaml:"rule"`
	By   string `json:"by" yaml:"by"`
}

// Checkpoint says when cuts are taken and how many are kept.
type Checkpoint struct {
	Every uint64 `json:"every" yaml:"every"`
	Keep  int    `json:"keep" yaml:"keep"`
}

// Evaluation says when the model is evaluated.
type Evaluation struct {
	Every uint64 `json:"every" yaml:"every"`
}

// Timeouts are the waits of a job.
type Timeouts struct {
	Worker Duration `json:"worker" yaml:"worker"`
	Start  Duration `json:"start" yaml:"start"`
	Retry  Duration `json:"retry" yaml:"retry"`
}

// Default is a small complete job; a job file changes what it names.
func Default() *Spec {
	return &Spec{
		Name:         "job",
		Model:        Model{Kind: "softmax"},
		Data:         Data{Name: "digits"},
		Distill:      Distill{Kind: "mlp", Temperature: 4, Weight: 1},
		Seed:         1,
		Workers:      2,
		Servers:      1,
		Batch:        32,
		Steps:        300,
		Optimizer:    Optimizer{Rule: "adamw", Schedule: optim.ScheduleSpec{Kind: "constant"}},
		Aggregate:    Aggregate{Rule: "mean", By: "examples"},
		OnLoss:       Reassign,
		Recompute:    true,
		OnBad:        "halt",
		Checkpoint:   Checkpoint{Every: 100, Keep: 2},
		Eval:         Evaluation{Every: 100},
		Level:        "applied",
		Encoding:     F32,
		MemoryBudget: 2 << 30,
		Timeouts:     Timeouts{Worker: Duration(2 * time.Second), Start: Duration(time.Minute), Retry: Duration(200 * time.Millisecond)},
	}
}

// RankCount is the number of ranks: Ranks, or one per worker.
func (s *Spec) RankCount() int {
	if s.Ranks > 0 {
		return s.Ranks
	}
	return s.Workers
}

// ShardCount is the number of shards asked for: Shards, or 8 per server. A
// model with fewer chunks has fewer ([layout.Layout.Shards]).
func (s *Spec) ShardCount() int {
	if s.Shards > 0 {
		return s.Shards
	}
	return shardsPerServer * s.Servers
}

const shardsPerServer = 8

// NewRule makes the update rule, with its groups and clipping.
func (s *Spec) NewRule() (optim.Rule[float32], error) {
	var errs []error
	rule := s.Optimizer.rule(func(path string, err error) { errs = append(errs, fmt.Errorf("%s: %w", path, err)) })
	return rule, errors.Join(errs...)
}

// BaseLR is the learning rate handed to the schedule: that of the default group.
func (s *Spec) BaseLR() (float64, error) { return baseLR(s.Optimizer.Rule, s.Optimizer.Hyper) }

// NewSchedule makes the learning-rate schedule.
func (s *Spec) NewSchedule() (optim.Schedule, error) {
	lr, err := s.BaseLR()
	if err != nil {
		return nil, err
	}
	return s.Optimizer.Schedule.New(lr, s.updates())
}

// updates is how many updates the schedule spans: asynchronous jobs make one
// per rank and step.
func (s *Spec) updates() uint64 {
	n := uint64(max(1, s.RankCount()))
	if s.Staleness >= 0 || s.Steps > math.MaxUint64/n {
		return s.Steps
	}
	return s.Steps * n
}

// NewAggregate makes the aggregation rule.
func (s *Spec) NewAggregate() (aggregate.Rule[float32], error) {
	return aggregate.New[float32](s.Aggregate.Rule, map[string]any{"by": s.Aggregate.By})
}

// Duration is a time span, written as in "2s" or "1m30s".
type Duration time.Duration

var _ encoding.TextUnmarshaler = (*Duration)(nil)

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	x, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("want a duration such as 500ms, 2s or 1m30s, got %q", b)
	}
	*d = Duration(x)
	return nil
}

// Bytes is an amount of memory, written as a number with or without a unit:
// B, kB, MB, GB, TB or KiB, MiB, GiB, TiB.
type Bytes int64

var units = []struct {
	name string
	n    int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

// MarshalText implements encoding.TextMarshaler, with the largest binary unit
// that loses nothing.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String is b with its unit.
func (b Bytes) String() string {
	for _, u := range units[:4] {
		if b != 0 && int64(b)%u.n == 0 {
			return strconv.FormatInt(int64(b)/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	bad := fmt.Errorf("want an amount of memory such as 512MiB or 2GiB, got %q", text)
	s, unit := string(text), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			s, unit = strings.TrimSpace(rest), u.n
			break
		}
	}
	x, err := strconv.ParseFloat(s, 64)
	if x *= float64(unit); err != nil || !(x >= 0 && x < 1<<62) {
		return bad
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		*b = Bytes(n * unit) // exact also above 2^53
		return nil
	}
	*b = Bytes(math.Round(x))
	return nil
}

// Problem is one thing that is wrong with a job file.
type Problem struct {
	Line int    // in the file; 0 if unknown
	Path string // of the field, such as "optimizer.hyper.lr"
	Text string
}

// String is the problem on one line.
func (p Problem) String() string {
	s := p.Text
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Line > 0 {
		s = fmt.Sprintf("line %d: %s", p.Line, s)
	}
	return strings.ReplaceAll(s, "\n", " ")
}

// Problems are all that is wrong with a job file, one per line.
type Problems []Problem

// Error implements error.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.Is(err, ErrSpec) true.
func (Problems) Unwrap() error { return ErrSpec }

// ErrSpec is wrapped by every error of [Parse], [Spec.Set] and [Spec.Validate].
var ErrSpec = errors.New("bad job file")
