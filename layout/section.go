package layout

// Section is a named piece of a snapshot. Pieces of parameters and of
// element slots are keyed by their global range of parameters, never by shard,
// so that a snapshot can be restored onto any number of shards. Exactly one of
// F32, F64 and Raw is set.
type Section struct {
	// Name is "params", "slot/<slot>", "tensor/<tensor>/<slot>",
	// "model/<slot>", "rank/<rank>" or "applied".
	Name string
	Range
	F32 []float32
	F64 []float64
	Raw []byte
}
