// Package batch lets callers that read at the same time share one query.
package batch

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
)

// Loader answers reads. While one load is under way, the keys that are asked
// for gather and are then loaded together: where nobody else reads nobody
// waits, and the more there is to read, the less each read costs.
//
// A key is loaded after it was asked for; it never joins a load that has begun.
type Loader[K comparable, V any] struct {
	load func(ctx context.Context, keys []K) (map[K]V, error)

	mu      sync.Mutex
	loading bool
	next    *batch[K, V] // gathers
}

type batch[K comparable, V any] struct {
	// answers has the keys only, until done is closed.
	answers map[K]V
	err     error
	// turn has a token once the batch may be loaded: who takes it loads.
	turn chan struct{}
	done chan struct{}
	// waiting counts the callers, and cancel, once the load has begun, ends it
	// when there are none.
	waiting int
	cancel  context.CancelFunc
}

var errPanicked = errors.New("the load panicked")

// New returns a loader by that function. A key that it returns nothing for has
// the zero value; the keys are in no order.
func New[K comparable, V any](load func(ctx context.Context, keys []K) (map[K]V, error)) *Loader[K, V] {
	return &Loader[K, V]{load: load}
}

// Get returns the key's value, which other callers may have been given too, or
// the error of the load. The callers load themselves, one of them for all; the
// end of its context is only heeded when no other waits for the load.
func (l *Loader[K, V]) Get(ctx context.Context, key K) (V, error) {
	b := l.join(key)
	select {
	case <-b.turn:
		l.lead(ctx, b)
	case <-b.done:
	case <-ctx.Done():
		l.leave(b)
		var none V
		return none, ctx.Err()
	}
	return b.answers[key], b.err
}

func (l *Loader[K, V]) join(key K) *batch[K, V] {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		l.next = &batch[K, V]{answers: make(map[K]V), turn: make(chan struct{}, 1), done: make(chan struct{})}
	}
	b := l.next
	var unknown V
	b.answers[key] = unknown
	b.waiting++
	l.pass()
	return b
}

// pass lets the next batch be loaded if none is. The mutex is held.
func (l *Loader[K, V]) pass() {
	if l.next != nil && !l.loading {
		l.loading = true
		l.next.turn <- struct{}{}
	}
}

func (l *Loader[K, V]) leave(b *batch[K, V]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.waiting--; b.waiting == 0 && b.cancel != nil {
		b.cancel()
	}
}

// lead loads a batch for all its callers.
func (l *Loader[K, V]) lead(ctx context.Context, b *batch[K, V]) {
	// Callers that are about to ask come along.
	runtime.Gosched()
	loading, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	l.mu.Lock()
	l.next = nil
	b.cancel = cancel
	l.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { l.leave(b) })
	defer stop()

	b.err = errPanicked
	defer func() {
		close(b.done)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.loading = false
		l.pass()
	}()
	answers, err := l.load(loading, slices.Collect(maps.Keys(b.answers)))
	b.answers, b.err = answers, err
}
