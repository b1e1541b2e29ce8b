//go:build race

package history_test

// slowness is how many times slower SQLite is, which is Go here, where the race
// detector looks at each of its steps.
const slowness = 5
