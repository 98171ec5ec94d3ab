package optim

import "errors"

// Schedule gives the learning rate of update t, counted from 1. It is a pure
// function: the owner of a shard evaluates it once per step and the value
// travels in the log. Between 1 and the length of the job and beyond it is a
// number from 0 to the base rate; it does not allocate.
type Schedule func(t uint64) float64

// ScheduleSpec describes a schedule in a job file. Zero means absent
// throughout: the default, or what Kind leaves no choice about.
//
// With the base rate lr, W = Warmup, and N updates after the warm-up (Over, or
// all that the job has left), the rate of update t is, with s = t − 1 − W counted
// like the epochs of PyTorch's schedulers,
//
//	t ≤ W  start·(f + (1−f)·t/W)     f = WarmupFrom, start = rate at s = 0
//	t > W  by Kind:
//
//	constant         lr·Factor for s < Over, then lr
//	step             lr·Factor^⌊s/Every⌋, or lr·Factor^(number of Milestones ≤ s)
//	exponential      lr·Factor^(s/Every)
//	cosine           Min + (lr−Min)·(1+cos(π·s/N))/2
//	cosine_restarts  the same with s and N of the period that s falls into;
//	                 period i = 0, 1, … has Every·Growthⁱ updates
//	linear           lr·(From + (To−From)·s/N)
//	polynomial       Min + (lr−Min)·(1−s/N)^Power
//	inverse_sqrt     lr·√(max(W,1)/t), which continues the warm-up to start = lr
//	one_cycle        from lr/Div up to lr at s = Rise·N − 1, from there down to
//	                 lr/Div/FinalDiv at s = N − 1; along a cosine or straight (Shape)
//	wsd              lr, and over the last Decay = D of the N updates, with
//	                 x = (s−N+D)/D, Min + (lr−Min)·d: d is 1−x, (1+cos πx)/2 or 1−√x
//	                 for Shape linear, cosine or sqrt; exponential is lr·(Min/lr)ˣ
//	stages           the Stages one after the other, each with its own t from 1
//	product          lr · the product of the Product, each with base rate 1
//
// step, exponential and inverse_sqrt do not fall below Min. After the last
// update the rate stays: at the end value of a curve that has one, else where
// the last update left it.
//
// PyTorch's StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR,
// CosineAnnealingWarmRestarts, LinearLR, PolynomialLR, ConstantLR, OneCycleLR,
// SequentialLR and ChainedScheduler; Loshchilov and Hutter, arXiv:1608.03983,
// equation 5 (cosines); Vaswani et al., arXiv:1706.03762, equation 3
// (inverse_sqrt); Smith and Topin, arXiv:1708.07120 (one_cycle); Hu et al.,
// arXiv:2404.06395, section 4 (wsd), with the shape sqrt of Hägele et al.,
// arXiv:2405.18392. docs/divergence.md says where we differ.
type ScheduleSpec struct {
	Kind       string         `json:"kind,omitempty" yaml:"kind"`                         // one of ScheduleKinds; empty means constant
	Warmup     uint64         `json:"warmup,omitempty" yaml:"warmup"`                     // updates in which the rate rises to its start
	WarmupFrom float64        `json:"warmup_from,omitempty" yaml:"warmup_from,omitempty"` // share of the start that the rise begins with, 0 to 1
	Min        float64        `json:"min,omitempty" yaml:"min"`                           // lowest rate, 0 to the base rate; in a product a share of it
	Over       uint64         `json:"over,omitempty" yaml:"over,omitempty"`               // updates after the warm-up; default all
	Every      uint64         `json:"every,omitempty" yaml:"every,omitempty"`             // updates of a step or of the first period
	Milestones []uint64       `json:"milestones,omitempty" yaml:"milestones,omitempty"`   // updates after the warm-up, rising
	Factor     float64        `json:"factor,omitempty" yaml:"factor,omitempty"`           // above 0, to 1; default 0.1 for steps, 1 for a constant
	Growth     uint64         `json:"growth,omitempty" yaml:"growth,omitempty"`           // of periods; default 1
	From       float64        `json:"from,omitempty" yaml:"from,omitempty"`               // share of the base rate, above 0, to 1; default 1
	To         float64        `json:"to,omitempty" yaml:"to,omitempty"`                   // share of the base rate, 0 to 1
	Power      float64        `json:"power,omitempty" yaml:"power,omitempty"`             // above 0; default 1
	Rise       float64        `json:"rise,omitempty" yaml:"rise,omitempty"`               // share of the updates, above 0, to 1; default 0.3
	Div        float64        `json:"div,omitempty" yaml:"div,omitempty"`                 // 1 or more; default 25
	FinalDiv   float64        `json:"final_div,omitempty" yaml:"final_div,omitempty"`     // 1 or more; default 10⁴
	Decay      uint64         `json:"decay,omitempty" yaml:"decay,omitempty"`             // updates; default a tenth
	Shape      string         `json:"shape,omitempty" yaml:"shape,omitempty"`             // default cosine for one_cycle, linear for wsd
	Stages     []ScheduleSpec `json:"stages,omitempty" yaml:"stages,omitempty"`
	Product    []ScheduleSpec `json:"product,omitempty" yaml:"product,omitempty"`
	Length     uint64         `json:"length,omitempty" yaml:"length,omitempty"` // of a stage, in updates; default for the last one: the rest
}

// ScheduleKinds are the names a [ScheduleSpec] knows.
var ScheduleKinds = []string{"constant", "step", "exponential", "cosine", "cosine_restarts", "linear", "polynomial", "inverse_sqrt", "one_cycle", "wsd", "stages", "product"}

// The shapes of kinds that have a choice; the first is the default.
var (
	oneCycleShapes = []string{"cosine", "linear"}
	wsdShapes      = []string{"linear", "cosine", "sqrt", "exponential"}
)

// Limits of a schedule.
const (
	maxBaseRate      = 1e100 // far from where a product with a step number overflows
	maxScheduleParts = 64    // of one list of stages or factors
	maxScheduleDepth = 4     // of stages in products in stages
)

// ErrSchedule is wrapped by every error of [ScheduleSpec.New].
var ErrSchedule = errors.New("bad schedule")

// ScheduleError is a problem of one field of a schedule. It wraps [ErrSchedule].
type ScheduleError struct {
	Field string // such as stages[1].min; empty for the base rate
	Text  string
}

// Error implements error.
func (e *ScheduleError) Error() string {
	if e.Field == "" {
		return e.Text
	}
	return e.Field + ": " + e.Text
}

// Unwrap implements errors.Is.
func (e *ScheduleError) Unwrap() error { return ErrSchedule }

// New makes the schedule with base rate lr for a job of total updates. The
// error joins a [ScheduleError] for every problem.
func (s ScheduleSpec) New(lr float64, total uint64) (Schedule, error) {
	c := &scheduleCheck{}
	if !(lr >= 0 && lr <= maxBaseRate) {
		c.bad("", "base rate %v, want 0 to %v", lr, maxBaseRate)
	}
	c.length("", &s)
	c.spec("", &s, lr, total, maxScheduleDepth)
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	at := s.curve(lr, total).at
	return func(t uint64) float64 { return at(max(t, 1) - 1) }, nil
}
