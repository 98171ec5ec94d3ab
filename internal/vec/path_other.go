//go:build !amd64

package vec

func best() Path { return Portable }
