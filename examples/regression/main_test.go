package main

import "context"

func Example() {
	if err := run(context.Background()); err != nil {
		panic(err)
	}
	// Output: after 200 steps: y = 3.000·x₀ + -2.000·x₁ + 0.500
}
