package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"tributary/job"
)

// TestMistakes: what people get wrong is told on as many lines as there are
// mistakes, with what to do about it; 1 for what fails, 2 for what cannot be
// read.
func TestMistakes(t *testing.T) {
	t.Parallel()
	file := writeText(t, `name: mine
model: {kind: mlp, hiden: [16]}
steps: 0
staleness: -7
optimizer: {rule: adamw, hyper: {weight_deca: 0.1}}
bacth: 32
`)
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"every problem of a job file", []string{"explain", file}, 1, []string{
			file + ": line 2: model.hiden: no such field: did you mean \"hidden\"?", file + ": line 3: steps: got 0", file + ": line 4: staleness: got -7",
			"line 5: optimizer.hyper.weight_deca", "did you mean \"weight_decay\"?", file + ": line 6: bacth: no such field: did you mean \"batch\"?"}},
		{"the same when it is submitted", []string{"submit", file}, 1, []string{"line 2: model.hiden", "line 6: bacth"}},
		{"the same when it is run", []string{"up", file}, 1, []string{"line 2: model.hiden", "line 6: bacth"}},
		{"misspelt rule", []string{"up", "--set", "optimizer.rule=adamm"}, 1, []string{"optimizer.rule", "adam"}},
		{"misspelt rule to explain", []string{"rules", "adma"}, 1, []string{`unknown update rule "adma": did you mean "adam"?`}},
		{"a pattern that matches nothing", []string{"up", "--set", "optimizer.no_decay=['*.bais']"}, 1, []string{`optimizer.no_decay[0]: "*.bais" matches no tensor`, "fc1.bias"}},
		{"misspelt bound", []string{"up", "--set", "optimizer.clip.nrom=1"}, 1, []string{"optimizer.clip.nrom", "did you mean \"norm\"?"}},
		{"rules", []string{"rules", "lamb"}, 0, []string{"trust ratio", "sum \"norms\" over each tensor (2 values)", "arXiv:1904.00962"}},
		{"misspelt hyper-parameter in --set", []string{"up", "--set", "optimizer.hyper.lrr=0.1"}, 1, []string{"optimizer.hyper.lrr", "did you mean \"lr\"?"}},
		{"two mistakes in --set", []string{"up", "--set", "stepz=1", "--set", "seed=x"}, 1, []string{"stepz: no such field: did you mean \"steps\"?", "seed: want a whole number"}},
		{"no such file", []string{"up", "nosuch.yaml"}, 1, []string{"nosuch.yaml: no such file"}},
		{"unknown flag", []string{"up", "--stepz", "1"}, 2, []string{"unknown flag --stepz", "ps --help"}},
		{"unknown command", []string{"upp"}, 2, []string{"upp", "ps --help"}},
		{"no job named", []string{"status"}, 2, []string{"<job>", "ps --help"}},
		{"help", []string{"--help"}, 0, []string{"Usage: ps <command>", "broker"}},
		{"print", []string{"up", "--print", "--set", "seed=9"}, 0, []string{"seed: 9", "rule: adamw"}},
		{"resume and more", []string{"up", "--resume", ".", "--set", "seed=9"}, 1, []string{"--resume takes the job from its folder"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, "ps", "ps", c.args...)
			code, _ := p.exits(patience)
			out := p.output()
			if code != c.code {
				t.Errorf("ps %s: exit code %d, want %d", strings.Join(c.args, " "), code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("ps %s does not say %q:\n%s", strings.Join(c.args, " "), want, out)
				}
			}
			if c.code == 1 {
				for line := range strings.Lines(out) {
					if !strings.HasPrefix(line, "ps: ") {
						t.Errorf("a line of an error does not begin with the program: %q", line)
					}
				}
			}
		})
	}
}

// TestClusterMistakes: mistakes that only a running cluster can tell.
func TestClusterMistakes(t *testing.T) {
	t.Parallel()
	r := newRig(t, smallJob(t, "name=mistakes", "steps=1000000", "servers=1", "workers=1"))
	first := r.worker("w1")
	r.atStep(3)
	fails := func(name, bin string, args []string, want string) {
		t.Helper()
		p := start(t, name, bin, append(args, "--nats", r.url)...)
		if code, _ := p.exits(patience); code != 1 || !strings.Contains(p.output(), want) {
			t.Errorf("%s %s: exit code %d, want 1 and %q:\n%s", bin, strings.Join(args, " "), code, want, p.output())
		}
	}
	fails("status", "ps", []string{"status", "nosuch"}, `no such job: "nosuch"`)
	fails("stop", "ps", []string{"stop", "nosuch"}, `no such job: "nosuch"`)
	fails("model", "ps", []string{"model", "mistakes", "--no-eval"}, "the job is running: wait until it ends, or stop it")
	fails("resume", "ps", []string{"resume", "mistakes"}, "the job is neither stopped nor halted")
	fails("another job", "ps", []string{"submit", write(t, smallJob(t, "name=mistakes", "steps=7", "servers=1"))}, "another job of this name exists")
	fails("up beside servers", "ps", []string{"up", "--set", "name=other", "--dir", filepath.Join(t.TempDir(), "run")}, "has servers already (ps-1), and ps up brings its own")
	fails("name in use", "worker", []string{"run", "--job", "mistakes", "--name", "w1", "--wait", "2s"}, `another live process is worker "w1"; stop it, choose another name, or replace it`)
	if !first.alive() {
		t.Error("the first worker has ended")
	}
	fails("bad name", "worker", []string{"run", "--job", "mistakes", "--name", "a.b"}, "only letters, digits, - and _")

	second := start(t, "w1-second", "worker", "run", "--job", "mistakes", "--name", "w1", "--replace", "--nats", r.url)
	if code, _ := first.exits(patience); code != 1 {
		t.Errorf("exit code %d of the worker that was replaced, want 1", code)
	}
	first.says("another process took this worker's name", 0)
	at := r.status().Step
	r.until("the second goes on", func(s *job.Status) bool { return s.Step > at+3 })
	start(t, "stop", "ps", "stop", "mistakes", "--nats", r.url).succeeds()
	second.succeeds()

	// A node of the same name waits for the other's lease, then gives up.
	p := start(t, "ps-1-second", "ps", "serve", "--nats", r.url, "--name", "ps-1", "--dir", t.TempDir(), "--lease-ttl", "1s")
	if code, _ := p.exits(patience); code != 1 {
		t.Errorf("exit code %d of a second node ps-1, want 1", code)
	}
	p.says("node ps-1: its name is in use by another live process", 0)
	r.end()
}
