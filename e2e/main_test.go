package e2e

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"
)

// binDir holds the commands and nothing else, so that whatever runs from it is
// a process of this test run.
var binDir string

func TestMain(m *testing.M) {
	flag.Parse()
	// Most of the time is spent waiting, so more tests run at a time than there
	// are processors.
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set("8"); err != nil {
			panic(err)
		}
	}
	dir, err := os.MkdirTemp("", "tributary-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binDir = dir
	before := runtime.NumGoroutine()
	code := m.Run()
	code = max(code, noProcesses(), noGoroutines(before))
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// build makes the commands, once per test run: with the race detector if the
// test has it and there is a C compiler, which the detector needs.
var build = sync.OnceValue(func() error { return buildInto(binDir, raceBuilt && haveC()) })

// buildPlain makes them again in the folder plain as people use them, for tests
// of what the detector makes ten times slower.
var buildPlain = sync.OnceValue(func() error { return buildInto(filepath.Join(binDir, plain), false) })

const plain = "plain"

func buildInto(dir string, race bool) error {
	root, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	if err := dependOn(root); err != nil {
		return err
	}
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/ps", "./cmd/worker")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}

func haveC() bool {
	out, err := exec.Command("go", "env", "CC").Output()
	cc := strings.Fields(string(out))
	if err != nil || len(cc) == 0 {
		return false
	}
	_, err = exec.LookPath(cc[0])
	return err == nil
}

// dependOn looks at every source file, so that the test cache notices when one
// changes: it does not know what `go build` reads.
func dependOn(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if name := d.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") || name == "go.mod" {
			_, err = os.Stat(path)
		}
		return err
	})
}

// noProcesses fails the run, and cleans up, if a process of ours is left.
func noProcesses() int {
	left := processes("")
	for end := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(end); left = processes("") {
		<-time.After(pollEvery)
	}
	for _, p := range left {
		fmt.Fprintf(os.Stderr, "FAIL: process %d was left behind: %s\n", p.pid, p.line)
		if x, err := os.FindProcess(p.pid); err == nil {
			x.Kill() // it may be gone by now
		}
	}
	return min(len(left), 1)
}

// noGoroutines fails the run if more goroutines are left than there were.
func noGoroutines(before int) int {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if runtime.NumGoroutine() <= before {
			return 0
		}
		<-time.After(pollEvery)
	}
	fmt.Fprintf(os.Stderr, "FAIL: %d goroutines are left, %d at the start\n", runtime.NumGoroutine(), before)
	if err := pprof.Lookup("goroutine").WriteTo(os.Stderr, 1); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

// long skips a test that takes minutes, loudly.
func long(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("TRIBUTARY_LONG") != "1" {
		t.Skipf("SKIPPED, NOT TESTED: %s; set TRIBUTARY_LONG=1, or use `make test-long`", what)
	}
}
