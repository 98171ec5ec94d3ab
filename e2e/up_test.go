package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tributary/job"
)

// TestUp: the built-in job learns, and leaves the files that it says.
func TestUp(t *testing.T) {
	t.Parallel()
	seeds := 1
	if os.Getenv("TRIBUTARY_LONG") == "1" {
		seeds = 5
	}
	if err := buildPlain(); err != nil {
		t.Fatal(err)
	}
	var accuracies []float64
	for seed := 1; seed <= seeds; seed++ {
		dir := filepath.Join(t.TempDir(), "run")
		p := start(t, "up", filepath.Join(plain, "ps"), "up", "--dir", dir, "--set", fmt.Sprintf("seed=%d", seed))
		out := p.succeeds()
		for _, file := range []string{"model.safetensors", "metrics.jsonl", "curves.png"} {
			if !strings.Contains(out, filepath.Join(dir, file)) {
				t.Errorf("the output does not name %s:\n%s", file, out)
			}
		}
		accuracies = append(accuracies, checkRun(t, dir))
	}
	none(t, patience)
	slices.Sort(accuracies)
	t.Logf("accuracies of %d seeds: %v", seeds, accuracies)
	if median := accuracies[seeds/2]; median < 0.97 {
		t.Errorf("the median accuracy of %d seeds is %v, want 0.97 or more", seeds, median)
	}
}

// TestUpSeeds says in the short suite what it does not measure.
func TestUpSeeds(t *testing.T) {
	long(t, "the median accuracy of `ps up` over 5 seeds (TestUp runs 1)")
}

// checkRun checks the files of a finished run of the digits job and returns its
// accuracy.
func checkRun(t *testing.T, dir string) float64 {
	t.Helper()
	params, shapes, err := readSafetensors(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Error(err)
	}
	if len(params) == 0 || len(shapes) < 2 {
		t.Errorf("the model has %d bytes in tensors %v", len(params), shapes)
	}
	f, err := os.Open(filepath.Join(dir, "curves.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if img, err := png.Decode(f); err != nil || img.Bounds().Dx() < 100 {
		t.Errorf("curves.png: %v", err)
	}
	var summary struct {
		State    string
		Step     uint64
		Accuracy float64
	}
	b, err := os.ReadFile(filepath.Join(dir, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &summary); err != nil || summary.State != "finished" {
		t.Errorf("summary.json: %v, %+v", err, summary)
	}
	losses := map[uint64]bool{}
	eachLine(t, filepath.Join(dir, "metrics.jsonl"), func(line map[string]any) {
		if _, ok := line["loss"]; ok {
			losses[uint64(line["step"].(float64))] = true
		}
	})
	if len(losses) != int(summary.Step) {
		t.Errorf("metrics.jsonl has the losses of %d steps, want %d", len(losses), summary.Step)
	}
	checkSplit(t, dir)
	return summary.Accuracy
}

// checkSplit checks that the log says which examples the model was tested on:
// a fifth of all, and none of those it was trained on.
func checkSplit(t *testing.T, dir string) {
	t.Helper()
	seen, test := map[float64]bool{}, 0
	eachLine(t, filepath.Join(dir, "log.jsonl"), func(line map[string]any) {
		if line["msg"] != "split" {
			return
		}
		test = len(line["test"].([]any))
		for _, part := range []string{"test", "train"} {
			for _, i := range line[part].([]any) {
				if seen[i.(float64)] {
					t.Errorf("example %v stands in the split twice", i)
				}
				seen[i.(float64)] = true
			}
		}
	})
	if len(seen) != 1797 || test < 350 || test > 370 {
		t.Errorf("the log splits %d examples, %d of them for testing; want 1797 and about 360", len(seen), test)
	}
}

func eachLine(t *testing.T, name string, f func(map[string]any)) {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var line map[string]any
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			t.Errorf("%s: %q: %v", name, sc.Text(), err)
			continue
		}
		f(line)
	}
	if err := sc.Err(); err != nil {
		t.Error(err)
	}
}

// upJob is a job for `ps up` that goes on until it is stopped.
func upJob(t *testing.T, sets ...string) *job.Spec {
	t.Helper()
	return smallJob(t, append([]string{"name=up", "steps=1000000", "optimizer.schedule={kind: constant}", "workers=2", "window=1", "batch=8"}, sets...)...)
}

// losses is how many steps the runs in a folder have made, those that were
// rolled back included.
func losses(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "metrics.jsonl"))
	if err != nil {
		return 0
	}
	return strings.Count(string(b), `"loss":`)
}

// running waits until the run in a folder has made some more steps than there
// were.
func running(t *testing.T, p *proc, dir string, were int) {
	t.Helper()
	await(t, patience, func() string { return "no step:\n" + tail(p.output()) }, func() bool {
		if !p.alive() {
			t.Fatalf("it has ended:\n%s", tail(p.output()))
		}
		return losses(dir) >= were+15
	})
}

var stoppedAt = regexp.MustCompile(`stopped after ([0-9]+) of 1000000 updates`)

// stop sends SIGINT to a run, which must end well and say how to go on, and
// returns the step at which it stands.
func stop(t *testing.T, p *proc, dir string) int {
	t.Helper()
	p.signal(syscall.SIGINT)
	out := p.succeeds()
	p.says("stopping at the next step; a second Ctrl-C aborts", 0)
	p.says("go on with     ps up --resume "+dir, 0)
	m := stoppedAt.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("it does not say where it stopped:\n%s", out)
	}
	step, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	none(t, patience)
	return step
}

// interrupted stops a run, goes on with it, kills it, goes on again and stops
// it: the model is that of a run of as many steps that nobody interrupted.
func interrupted(t *testing.T, spec *job.Spec, args ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	p := start(t, "up", "ps", append([]string{"up", write(t, spec), "--dir", dir}, args...)...)
	running(t, p, dir, 0)
	step := stop(t, p, dir)

	were := losses(dir)
	p = start(t, "up-killed", "ps", append([]string{"up", "--resume", dir}, args...)...)
	running(t, p, dir, were)
	p.kill() // children are in groups of their own: this is the command alone
	p.exits(patience)
	none(t, patience)

	were = losses(dir)
	p = start(t, "up-resumed", "ps", append([]string{"up", "--resume", dir}, args...)...)
	running(t, p, dir, were)
	short := *spec
	short.Steps = uint64(stop(t, p, dir))
	if short.Steps <= uint64(step) {
		t.Errorf("it stopped at step %d, then at %d", step, short.Steps)
	}
	sameModel(t, dir, &short)
}

// sameModel compares the model of a run in a folder with an undisturbed run.
func sameModel(t *testing.T, dir string, spec *job.Spec) {
	t.Helper()
	params, _, err := readSafetensors(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, &final{params: params}, &final{params: reference(t, spec).params})
}

// TestUpResume: a run that is stopped by a signal, or killed, goes on where it
// was.
func TestUpResume(t *testing.T) {
	t.Parallel()
	interrupted(t, upJob(t))
}

// TestUpResumeRules: so does one whose rule has two phases, compares gradients
// at two versions, or evaluates another point than it trains.
func TestUpResumeRules(t *testing.T) {
	t.Parallel()
	for _, rule := range []string{"sam", "oasis", "schedule_free_sgd"} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			interrupted(t, upJob(t, "name=up-"+strings.ReplaceAll(rule, "_", "-"), "optimizer.rule="+rule, "checkpoint.every=7", "eval.every=3"))
		})
	}
}

// TestUpProcesses: the same with every node and worker as a process of its own,
// of which none is left, however the command ends.
func TestUpProcesses(t *testing.T) {
	t.Parallel()
	interrupted(t, upJob(t, "name=up-processes"), "--processes")

	spec := upJob(t, "name=up-short", "steps=20")
	dir := filepath.Join(t.TempDir(), "run")
	p := start(t, "up-short", "ps", "up", write(t, spec), "--dir", dir, "--processes")
	most := 0
	await(t, patience, say("the run does not end"), func() bool {
		most = max(most, len(processes(t.Name())))
		return !p.alive()
	})
	p.succeeds()
	none(t, patience)
	if want := 1 + spec.Servers + spec.Workers; most != want {
		t.Errorf("%d processes ran, want %d", most, want)
	}
	sameModel(t, dir, spec)
}

// TestUpCutsLost: when the checkpoints of a finished run are gone, it is not
// taken for finished with the initial parameters.
func TestUpCutsLost(t *testing.T) {
	t.Parallel()
	spec := upJob(t, "name=up-lost", "steps=20")
	dir := filepath.Join(t.TempDir(), "run")
	start(t, "up", "ps", "up", write(t, spec), "--dir", dir).succeeds()
	cuts, err := filepath.Glob(filepath.Join(dir, "ps-*", spec.Name, "cut-*"))
	if err != nil || len(cuts) < spec.Shards {
		t.Fatalf("%d files of cuts, want %d or more: %v", len(cuts), spec.Shards, err)
	}
	for _, name := range cuts {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, "up-resumed", "ps", "up", "--resume", dir)
	if code, _ := p.exits(patience); code != 1 {
		t.Errorf("exit code %d, want 1:\n%s", code, p.output())
	}
	p.says("the job halted: the last checkpoint, at step 20, cannot be read", 0)
	none(t, patience)
	sameModel(t, dir, spec) // it is as it was
}

// TestUpAbort: a second signal ends the command at once, even while it waits
// for servers that do not answer.
func TestUpAbort(t *testing.T) {
	t.Parallel()
	spec := upJob(t, "name=up-abort")
	dir := filepath.Join(t.TempDir(), "run")
	p := start(t, "up", "ps", "up", write(t, spec), "--dir", dir, "--processes")
	running(t, p, dir, 0)
	var frozen []found
	for _, x := range processes(t.Name()) {
		if strings.Contains(x.line, " serve ") {
			frozen = append(frozen, x)
			if err := syscall.Kill(x.pid, syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
		}
	}
	p.signal(syscall.SIGINT)
	p.says("a second Ctrl-C aborts", patience)
	begin := time.Now()
	p.signal(syscall.SIGINT)
	if code, _ := p.exits(patience); code != 130 || time.Since(begin) > 5*time.Second {
		t.Errorf("exit code %d after %v, want 130 at once:\n%s", code, time.Since(begin), p.output())
	}
	p.says("aborted", 0)
	for _, x := range frozen {
		if err := syscall.Kill(x.pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	none(t, patience)
}

// TestUpNoBroker: a run that waits for a broker says so and can be ended.
func TestUpNoBroker(t *testing.T) {
	url := nobody(t)
	p := start(t, "up", "ps", "up", "--nats", url, "--dir", filepath.Join(t.TempDir(), "run"))
	if took := p.says("waiting for a broker at "+url, patience); took > soon {
		t.Errorf("says so after %v", took)
	}
	p.signal(syscall.SIGINT)
	if code, _ := p.exits(patience); code != 0 {
		t.Errorf("exit code %d, want 0:\n%s", code, p.output())
	}
}
