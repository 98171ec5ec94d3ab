package cli

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
)

// gcPercent lets the heap grow to five times what lives before it is collected.
// Messages of a megabyte are garbage at once; at Go's default of 100 a process
// with a small model would collect hundreds of times a second, which costs a
// third of its throughput.
const gcPercent = 400

// tuneMemory sets the collector's pace, and as its soft limit three quarters of
// the memory there is. GOGC and GOMEMLIMIT in the environment come first.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		if n := memory(); n > 0 {
			debug.SetMemoryLimit(n / 4 * 3)
		}
	}
}

// memory is what this process may use, in bytes: that of its control group or
// of the machine. 0 means unknown.
func memory() int64 {
	limit := int64(0)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range bytes.Lines(b) {
			if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == "MemTotal:" {
				if n, err := strconv.ParseInt(string(f[1]), 10, 64); err == nil {
					limit = n << 10
				}
			}
		}
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil { // "max" is no number: no limit
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64); err == nil && (limit == 0 || n < limit) {
			limit = n
		}
	}
	return limit
}
