package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// planted are the faults that build tags put into the shard, one line each, how
// many seeds are enough to find them, and the promise that is then broken.
var planted = []struct {
	tag    string
	seeds  uint64
	broken string
}{
	{"bug_count", 40, `^shard \d+ closed step \d+ of chunk \d+ with \d+ of \d+ ranks$`},
	{"bug_ack", 20, `^shard \d+ acknowledged rank \d+, step \d+, chunk \d+ as applied, but it is not in the model$`},
	{"bug_timeline", 400, `^shard \d+ counted a contribution of timeline \d+ in timeline \d+ \(rank \d+, step \d+\)$`},
}

// TestPlanted builds this package's tests with each planted fault and requires
// that the simulation finds it, for the right reason.
func TestPlanted(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED with -short: the planted faults are not looked for")
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("SKIPPED: the planted faults are not looked for without the go command: %v", err)
	}
	for _, p := range planted {
		t.Run(p.tag, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), tool, "test", "-count=1", "-run", "^TestPlantedHelper$", "-v", "-tags", p.tag, ".")
			cmd.Env = append(os.Environ(), fmt.Sprintf("FAULT_PLANTED=%d", p.seeds), "FAULT_WANT="+p.broken)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			found := faultsIn(t, string(out))
			right := regexp.MustCompile(p.broken)
			for _, r := range found {
				if right.MatchString(r.Fault) {
					t.Logf("seed %d of %d: %s", r.Seed, p.seeds, r.Fault)
					return
				}
			}
			t.Errorf("not found in %d seeds; what was found instead: %+v", p.seeds, found)
		})
	}
}

const helperPrefix = "RESULT "

func faultsIn(t *testing.T, out string) (rs []Result) {
	for line := range strings.Lines(out) {
		if text, ok := strings.CutPrefix(line, helperPrefix); ok {
			var r Result
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			rs = append(rs, r)
		}
	}
	return rs
}

// TestPlantedHelper is the process that TestPlanted starts: it prints what the
// first seeds break, until one breaks what is wanted.
func TestPlantedHelper(t *testing.T) {
	n, err := strconv.ParseUint(os.Getenv("FAULT_PLANTED"), 10, 64)
	if err != nil {
		t.Skip("runs as a part of TestPlanted")
	}
	want := regexp.MustCompile(os.Getenv("FAULT_WANT"))
	for seed, found := uint64(1), false; seed <= n && !found; seed++ {
		if r := disturbed(seed); !r.OK {
			found = want.MatchString(r.Fault)
			line, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println(helperPrefix + string(line))
		}
	}
}

// disturbed is Run without the undisturbed run, so that a planted fault must
// show in the schedule's own audits.
func disturbed(seed uint64) Result {
	p := NewPlan(seed)
	w, err := newWorld(p, nil, nil)
	if err != nil {
		return Result{Seed: seed, Fault: err.Error()}
	}
	w.begin()
	w.run()
	if w.fault == "" {
		w.audit.end()
	}
	return Result{Seed: seed, Fault: w.fault, OK: w.fault == ""}
}
