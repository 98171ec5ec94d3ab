package train

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// The IDX format of MNIST (Y. LeCun, C. Cortes, C. Burges): two zero bytes, the
// type of the elements, the number of dimensions, each dimension as a
// big-endian uint32, the elements.
const (
	idxBytes     = 0x08    // type: unsigned bytes
	maxImageSide = 1 << 12 // pixels
)

// LoadIDX reads images and their labels from a pair of IDX files of bytes,
// plain or compressed by gzip. Grey values become [0, 1]; Classes is one more
// than the greatest label.
func LoadIDX(images, labels string) (*Dataset, error) {
	d, err := loadImages(images)
	if err != nil {
		return nil, err
	}
	b, err := readFile(labels)
	if err != nil {
		return nil, err
	}
	d.Y, err = decodeLabels(b)
	if err == nil && len(d.Y) != d.N {
		err = fmt.Errorf("%d labels for the %d images of %s", len(d.Y), d.N, images)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, labels, err)
	}
	d.Classes = int(slices.Max(d.Y)) + 1
	return d, nil
}

func loadImages(path string) (*Dataset, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	d, err := decodeImages(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, path, err)
	}
	d.Name = filepath.Base(path)
	return d, nil
}

func decodeImages(b []byte) (*Dataset, error) {
	var dims [3]int
	pixels, err := decodeIDX(b, dims[:])
	if err != nil {
		return nil, err
	}
	n, h, w := dims[0], dims[1], dims[2]
	x := make([]float32, len(pixels))
	for i, p := range pixels {
		x[i] = float32(p) / 255
	}
	return &Dataset{X: x, N: n, Dim: h * w, Height: h, Width: w}, nil
}

func decodeLabels(b []byte) ([]int32, error) {
	var dims [1]int
	labels, err := decodeIDX(b, dims[:])
	if err != nil {
		return nil, err
	}
	y := make([]int32, len(labels))
	for i, l := range labels {
		y[i] = int32(l)
	}
	return y, nil
}

// decodeIDX checks that b is an IDX file of bytes with len(dims) dimensions,
// fills dims and returns the elements, a part of b. It allocates nothing.
func decodeIDX(b []byte, dims []int) ([]byte, error) {
	head := 4 + 4*len(dims)
	if len(b) < head {
		return nil, fmt.Errorf("%d bytes, too short for the header of an IDX file", len(b))
	}
	if b[0] != 0 || b[1] != 0 {
		return nil, errors.New("not an IDX file")
	}
	if b[2] != idxBytes || int(b[3]) != len(dims) {
		return nil, fmt.Errorf("IDX type %#02x with %d dimensions, want %#02x with %d", b[2], b[3], idxBytes, len(dims))
	}
	body := b[head:]
	size := 1 // at most 2^32·2^12·2^12
	for i := range dims {
		d := binary.BigEndian.Uint32(b[4+4*i:])
		if d == 0 || i > 0 && d > maxImageSide {
			return nil, fmt.Errorf("dimension %d is %d", i+1, d)
		}
		dims[i] = int(d)
		size *= dims[i]
	}
	if len(body) != size {
		return nil, fmt.Errorf("declares %v bytes of data and has %d: truncated or damaged", size, len(body))
	}
	return body, nil
}

// loadMNIST reads the four files of an MNIST-like set from dir or, if that is
// empty, from the first usual place that has them.
func loadMNIST(name, dir string, places ...string) (train, test *Dataset, err error) {
	if dir != "" {
		places = []string{dir}
	}
	at := slices.IndexFunc(places, func(p string) bool { return findIDX(p, "train-images-idx3-ubyte") != "" })
	if at < 0 {
		return nil, nil, fmt.Errorf("data set %s: no train-images-idx3-ubyte or .gz in %v: %s: %w",
			name, places, origin(name), fs.ErrNotExist)
	}
	part := func(prefix string) (*Dataset, error) {
		var files [2]string
		for i, kind := range []string{"images-idx3", "labels-idx1"} {
			file := prefix + "-" + kind + "-ubyte"
			if files[i] = findIDX(places[at], file); files[i] == "" {
				return nil, fmt.Errorf("data set %s: no %s or .gz in %s: %s: %w",
					name, file, places[at], origin(name), fs.ErrNotExist)
			}
		}
		return LoadIDX(files[0], files[1])
	}
	if train, err = part("train"); err != nil {
		return nil, nil, err
	}
	if test, err = part("t10k"); err != nil {
		return nil, nil, err
	}
	if train.Height != test.Height || train.Width != test.Width {
		return nil, nil, fmt.Errorf("%w: %s: training images are %d×%d, test images %d×%d", ErrFormat, places[at],
			train.Height, train.Width, test.Height, test.Width)
	}
	train.Name, test.Name = name, name
	train.Classes = max(train.Classes, test.Classes)
	test.Classes = train.Classes
	return train, test, nil
}

// origin says where to get a data set.
func origin(name string) string {
	if name == "fashion-mnist" {
		return "install Debian's package dataset-fashion-mnist, or name the folder with data.path"
	}
	return "fetch it with make data, or name the folder with data.path"
}

// findIDX returns the path of a file in dir, plain or compressed, or "".
func findIDX(dir, file string) string {
	for _, end := range []string{"", ".gz"} {
		path := filepath.Join(dir, file+end)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}
