//go:build !race

package history_test

// slowness: see race_test.go.
const slowness = 1
