package wire

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Run is a stretch of parameters that a row-sparse contribution names: from Lo
// up to and without Hi, counted from the start of the chunk.
type Run struct{ Lo, Hi int }

// AppendRuns appends the tail of a row-sparse push to dst: how many runs there
// are, for each its start and length, then the values of all runs, which x, the
// numbers of the whole chunk, holds. Runs are ascending and do not touch. It
// returns the tail and the number of values.
func AppendRuns(dst []byte, runs []Run, x []float32) ([]byte, int) {
	n := 0
	for _, r := range runs {
		n += r.Hi - r.Lo
	}
	dst = binary.LittleEndian.AppendUint32(slices.Grow(dst, 4+8*len(runs)+4*n), uint32(len(runs)))
	for _, r := range runs {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(r.Lo))
		dst = binary.LittleEndian.AppendUint32(dst, uint32(r.Hi-r.Lo))
	}
	for _, r := range runs {
		dst = append(dst, Bytes32(x[r.Lo:r.Hi])...)
	}
	return dst, n
}

// DecodeRuns reads what AppendRuns wrote for a chunk of n parameters: the runs
// and the bytes of count values. It never panics; the memory it takes is a small
// multiple of len(tail).
func DecodeRuns(tail []byte, count uint32, n int) (runs []Run, values []byte, err error) {
	if len(tail) < 4 {
		return nil, nil, fmt.Errorf("%d bytes are no runs", len(tail))
	}
	k := uint64(binary.LittleEndian.Uint32(tail))
	if uint64(len(tail)) != 4+8*k+4*uint64(count) {
		return nil, nil, fmt.Errorf("%d runs and %d numbers in %d bytes", k, count, len(tail))
	}
	runs = make([]Run, 0, k)
	end, total := -1, uint64(0)
	for i := range k {
		lo, length := uint64(binary.LittleEndian.Uint32(tail[4+8*i:])), uint64(binary.LittleEndian.Uint32(tail[8+8*i:]))
		if int64(lo) <= int64(end) || length == 0 || lo+length > uint64(n) {
			return nil, nil, fmt.Errorf("run %d, of %d from %d, is empty, touches the one before or leaves the chunk of %d", i, length, lo, n)
		}
		end, total = int(lo+length), total+length
		runs = append(runs, Run{int(lo), end})
	}
	if total != uint64(count) {
		return nil, nil, fmt.Errorf("runs of %d parameters with %d numbers", total, count)
	}
	return runs, tail[4+8*k:], nil
}
