// Command gen writes the assembly kernels of package vec, their declarations
// and the Go code that chooses among them:
//
//	go generate ./internal/vec
//
// With -check it writes nothing and fails if a file is not up to date.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
)

// asm is the file being written.
var asm = build.NewContext()

func main() {
	dir := flag.String("dir", "..", "folder of package vec")
	check := flag.Bool("check", false, "only compare")
	flag.Parse()
	if err := run(*dir, *check); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(dir string, check bool) error {
	for _, w := range widths {
		for _, k := range kernels {
			k.write(w)
		}
		writeSum(w, true)
		writeSum(w, false)
		writeSquares(w)
		writeTop(w)
		writeCount(w)
		writeCombine(w, false)
		writeCombine(w, true)
	}
	file, err := asm.Result()
	if err != nil {
		return err
	}
	if err := pass.Compile.Execute(file); err != nil {
		return err
	}
	cfg := printer.Config{Name: "internal/vec/gen", Pkg: "vec"}
	text, err := printer.NewGoAsm(cfg).Print(file)
	if err != nil {
		return err
	}
	stubs, err := printer.NewStubs(cfg).Print(file)
	if err != nil {
		return err
	}
	amd64, err := dispatch(true)
	if err != nil {
		return err
	}
	other, err := dispatch(false)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text []byte
	}{
		{"kernels_amd64.s", text}, {"kernels_amd64.go", stubs},
		{"dispatch_amd64.go", amd64}, {"dispatch_other.go", other},
	} {
		name := filepath.Join(dir, f.name)
		if !check {
			if err := os.WriteFile(name, f.text, 0o644); err != nil {
				return err
			}
			continue
		}
		have, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, f.text) {
			return fmt.Errorf("%s is not what its generator writes; run: go generate ./internal/vec", f.name)
		}
	}
	return nil
}
