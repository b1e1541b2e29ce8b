package stage

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Iteration is one check of a property: what it sets up ends with it.
type Iteration struct {
	testing.TB
	check    *rapid.T
	cleanups []func()
}

// NewIteration is the test as a check of its property sees it.
func NewIteration(t testing.TB, check *rapid.T) *Iteration { return &Iteration{TB: t, check: check} }

func (i *Iteration) Helper()                   {}
func (i *Iteration) Cleanup(f func())          { i.cleanups = append(i.cleanups, f) }
func (i *Iteration) Fatal(args ...any)         { i.check.Fatal(args...) }
func (i *Iteration) Fatalf(f string, a ...any) { i.check.Fatalf(f, a...) }
func (i *Iteration) Error(args ...any)         { i.check.Error(args...) }
func (i *Iteration) Errorf(f string, a ...any) { i.check.Errorf(f, a...) }
func (i *Iteration) Logf(string, ...any)       {}

// End runs the cleanups, the last one first.
func (i *Iteration) End() {
	for _, cleanup := range slices.Backward(i.cleanups) {
		cleanup()
	}
}
