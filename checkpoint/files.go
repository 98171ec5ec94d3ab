package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tributary/layout"
	"tributary/ledger"
)

// Dir keeps the cuts of one job as plain files, one per shard and cut. A file
// is written under a temporary name, synced and renamed, so a crash leaves
// either the whole file or none.
type Dir struct{ Path string }

func (d Dir) file(shard int, id ledger.CutID) string {
	return filepath.Join(d.Path, fmt.Sprintf("cut-%d-%d.shard-%d.snap", id.Timeline, id.Step, shard))
}

// Save writes one shard's part of a cut.
func (d Dir) Save(shard int, id ledger.CutID, sections []layout.Section) error {
	if err := os.MkdirAll(d.Path, 0o755); err != nil {
		return fmt.Errorf("save cut: %w", err)
	}
	if err := WriteFile(d.file(shard, id), Encode(sections)); err != nil {
		return fmt.Errorf("save cut: %w", err)
	}
	return nil
}

// Load reads one shard's part of a cut.
func (d Dir) Load(shard int, id ledger.CutID) ([]layout.Section, error) {
	name := d.file(shard, id)
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("load cut: %w", err)
	}
	s, err := Decode(b)
	if err != nil {
		return nil, fmt.Errorf("load cut: %s: %w", name, err)
	}
	return s, nil
}

// Retain removes a shard's files of those cuts of which obsolete says so.
func (d Dir) Retain(shard int, obsolete func(ledger.CutID) bool) error {
	names, err := filepath.Glob(filepath.Join(d.Path, fmt.Sprintf("cut-*.shard-%d.snap", shard)))
	if err != nil {
		return err
	}
	for _, n := range names {
		var id ledger.CutID
		if _, err := fmt.Sscanf(filepath.Base(n), "cut-%d-%d.", &id.Timeline, &id.Step); err != nil || d.file(shard, id) != n {
			continue // not one of ours
		}
		if !obsolete(id) {
			continue
		}
		if err := os.Remove(n); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove old cut: %w", err)
		}
	}
	return nil
}

// WriteFile writes data under name so that name holds the old bytes or all of
// the new ones, and they survive a crash of the machine.
func WriteFile(name string, data []byte) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+strings.TrimSuffix(filepath.Base(name), ".snap")+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())              // fails harmlessly after the rename
	if err := f.Chmod(0o644); err != nil { // CreateTemp makes it private
		f.Close()
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
