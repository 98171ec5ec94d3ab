package train

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
)

// readFile reads a file, decompressed if it is a gzip file by its first bytes,
// whatever its name. Memory follows what is really there, up to maxFileBytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing to lose
	b, err := decompress(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, path, err)
	}
	return b, nil
}

// decompress reads r to its end, through gzip if it begins like a gzip file.
func decompress(r io.Reader) ([]byte, error) {
	br := bufio.NewReader(r)
	r = br
	if magic, err := br.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, plain(err)
		}
		r = z
	}
	b, err := io.ReadAll(io.LimitReader(r, maxFileBytes+1))
	if err != nil {
		return nil, plain(err)
	}
	if len(b) > maxFileBytes {
		return nil, fmt.Errorf("more than %d MiB of data", maxFileBytes>>20)
	}
	return b, nil
}

// plain says what "unexpected EOF" means to whoever has the file.
func plain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the compressed file is truncated")
	}
	return err
}
