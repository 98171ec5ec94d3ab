package faults

// Counts say what happened in a schedule.
type Counts struct {
	Events         uint64 `json:"events"`
	Messages       uint64 `json:"messages"`
	Lost           uint64 `json:"lost"`
	Repeated       uint64 `json:"repeated"`
	Stale          uint64 `json:"stale"` // arrived once more seconds later
	Partitions     uint64 `json:"partitions"`
	Pauses         uint64 `json:"pauses"`
	WorkerCrashes  uint64 `json:"worker_crashes"`
	Leaves         uint64 `json:"leaves"`
	Replaced       uint64 `json:"replaced"` // a second process took a live worker's name
	ServerCrashes  uint64 `json:"server_crashes"`
	Deposed        uint64 `json:"deposed"` // a server went on beside its successor
	CoordRestarts  uint64 `json:"coord_restarts"`
	TornCuts       uint64 `json:"torn_cuts"`
	RottenCuts     uint64 `json:"rotten_cuts"`
	AmbiguousCAS   uint64 `json:"ambiguous_cas"`
	Views          uint64 `json:"views"`
	Timelines      uint64 `json:"timelines"`
	Cuts           uint64 `json:"cuts"`
	Stops          uint64 `json:"stops"`
	Resumed        uint64 `json:"resumed"`
	StatesHanded   uint64 `json:"states_handed"` // ranks that went on elsewhere with their state
	Evaluated      uint64 `json:"evaluated"`     // points of evaluation read and checked
	Audited        uint64 `json:"audited"`       // closes, acknowledgements and parameters checked
	AckedApplied   uint64 `json:"acked_applied"`
	ClosesReplayed uint64 `json:"closes_replayed"` // closes of steps an earlier timeline had closed
}

// add adds the counts of another schedule.
func (c *Counts) add(o *Counts) {
	c.Events += o.Events
	c.Messages += o.Messages
	c.Lost += o.Lost
	c.Repeated += o.Repeated
	c.Stale += o.Stale
	c.Partitions += o.Partitions
	c.Pauses += o.Pauses
	c.WorkerCrashes += o.WorkerCrashes
	c.Leaves += o.Leaves
	c.Replaced += o.Replaced
	c.ServerCrashes += o.ServerCrashes
	c.Deposed += o.Deposed
	c.CoordRestarts += o.CoordRestarts
	c.TornCuts += o.TornCuts
	c.RottenCuts += o.RottenCuts
	c.AmbiguousCAS += o.AmbiguousCAS
	c.Views += o.Views
	c.Timelines += o.Timelines
	c.Cuts += o.Cuts
	c.Stops += o.Stops
	c.Resumed += o.Resumed
	c.StatesHanded += o.StatesHanded
	c.Evaluated += o.Evaluated
	c.Audited += o.Audited
	c.AckedApplied += o.AckedApplied
	c.ClosesReplayed += o.ClosesReplayed
}
