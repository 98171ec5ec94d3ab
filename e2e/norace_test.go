//go:build !race

package e2e

// raceBuilt says whether this test runs with the race detector.
const raceBuilt = false
