package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
)

// window is the part of a run that is measured: from the event that is the
// first-th to be completed, or a quarter of the longest time where that is too
// slow, to the last-th, or for the longest time.
type window struct {
	first, last int
	longest     time.Duration
}

// sample is what was seen in windows.
type sample struct {
	events      int
	took        time.Duration
	own, server time.Duration // CPU time of this process and its children, and of PostgreSQL
}

func (s sample) add(o sample) sample {
	return sample{s.events + o.events, s.took + o.took, s.own + o.own, s.server + o.server}
}

func (s sample) rate() float64 { return float64(s.events) / s.took.Seconds() }

// cpuPerEvent is in microseconds.
func (s sample) cpuPerEvent() float64 { return (s.own + s.server).Seconds() * 1e6 / float64(s.events) }

// measure runs the consumer until the window has passed.
func measure(ctx context.Context, url string, w window, consume func(ctx context.Context, done func(int)) error) (sample, error) {
	server, err := serverOf(ctx, url)
	if err != nil {
		return sample{}, err
	}
	runtime.GC() // nobody pays for what ran before
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	var completed atomic.Int64
	ended := make(chan error, 1)
	go func() { ended <- consume(consuming, func(n int) { completed.Add(int64(n)) }) }()

	// reach waits for as many events, or as long.
	reach := func(events int, longest time.Duration) (int, time.Time, error) {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		deadline := time.Now().Add(longest)
		for {
			select {
			case err := <-ended:
				return 0, time.Time{}, errors.Join(errors.New("the consumer ended early"), err)
			case <-tick.C:
			}
			now, n := time.Now(), int(completed.Load())
			if n >= events || now.After(deadline) {
				return n, now, nil
			}
		}
	}
	from, begun, err := reach(w.first, w.longest/4)
	if err != nil {
		return sample{}, err
	}
	own, theirs := cpu(os.Getpid()), cpu(server)
	to, end, err := reach(w.last, w.longest)
	if err != nil {
		return sample{}, err
	}
	own, theirs = cpu(os.Getpid())-own, cpu(server)-theirs
	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		return sample{}, fmt.Errorf("stop the consumer: %w", err)
	}
	if to == from {
		return sample{}, fmt.Errorf("nothing was completed within %s", w.longest)
	}
	return sample{events: to - from, took: end.Sub(begun), own: own, server: theirs}, nil
}
