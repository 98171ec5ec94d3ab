package job

import (
	"encoding/json"
	"errors"
	"fmt"

	"tributary/layout"
	"tributary/ledger"
)

// Numerics is the version of the bits that this program computes: it changes
// whenever a rule, a reduction or a random number gives other bits for the
// same job. Nodes and workers refuse jobs of another version (C18).
const Numerics = 2

// Record is a job as it stands in the authority: the specification, the
// tensors that follow from it, and where its parts were placed. It is written
// once, by whoever submits the job.
type Record struct {
	Name     string          `json:"name"`
	Numerics int             `json:"numerics"`
	Spec     *Spec           `json:"spec"`
	Tensors  []layout.Tensor `json:"tensors"`
	// Owners has the node of every shard, Coordinator that of the job's
	// coordinator; both are empty before placement.
	Owners      []string `json:"owners,omitempty"`
	Coordinator string   `json:"coordinator,omitempty"`
}

// NewRecord describes a job before placement. tensors are those of the
// built-in model; nil for a model of kind tensors, which lists its own.
func NewRecord(s *Spec, tensors []layout.Tensor) *Record {
	if s.Model.Kind == "tensors" {
		tensors = s.Model.Tensors
	}
	return &Record{Name: s.Name, Numerics: Numerics, Spec: s, Tensors: tensors}
}

// ErrRecord is wrapped by the errors of [DecodeRecord] and [Compile] about
// records that this program cannot have written.
var ErrRecord = errors.New("bad job record")

// maxRecordBytes bounds a record from a peer: a specification, and a name and
// shape for every tensor.
const maxRecordBytes = 8 << 20

// Encode is the record's JSON.
func (r *Record) Encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("job %q: %w", r.Name, err)
	}
	return b, nil
}

// DecodeRecord reads what Encode wrote. It never panics; its memory is bounded
// by a small multiple of len(b).
func DecodeRecord(b []byte) (*Record, error) {
	if len(b) > maxRecordBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrRecord, len(b))
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrRecord, err)
	}
	if r.Spec == nil || r.Spec.Name != r.Name {
		return nil, fmt.Errorf("%w: %q has no specification of that name", ErrRecord, r.Name)
	}
	if r.Numerics != Numerics {
		return nil, fmt.Errorf("%w: job %q has numerics version %d, this program %d: use the version it was submitted with", ErrRecord, r.Name, r.Numerics, Numerics)
	}
	if len(r.Owners) > ledger.MaxShards {
		return nil, fmt.Errorf("%w: %d owners", ErrRecord, len(r.Owners))
	}
	return &r, nil
}
