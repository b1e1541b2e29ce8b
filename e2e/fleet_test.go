package e2e_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
)

// fleet are some workers of one installation.
type fleet struct {
	*installation
	t       testing.TB
	workers []*process
	// stopped stand still, those first that have for longest.
	stopped []*process
	strikes int
}

func (i *installation) launch(t testing.TB, n int) *fleet {
	t.Helper()
	f := &fleet{installation: i, t: t}
	for range n {
		f.workers = append(f.workers, i.start(nil, "worker"))
	}
	return f
}

// kill ends one worker as a power cut does, and starts another.
func (f *fleet) kill() {
	f.t.Helper()
	n := rand.N(len(f.workers))
	f.signal(f.workers[n], os.Kill)
	if code := f.workers[n].exit(); code >= 0 {
		f.t.Errorf("a worker had ended by itself before it was killed, with exit code %d", code)
	}
	f.workers[n] = f.start(nil, "worker")
}

// await returns when all workers work: one that finds no database at its start
// ends, and leaves it to its service manager to try again.
func (f *fleet) await() {
	f.t.Helper()
	for _, p := range f.workers {
		until(f.t, p.what+" to start", func() bool { return p.said("worker started") })
	}
}

// said tells whether the process has logged a message.
func (p *process) said(message string) bool {
	p.t.Helper()
	log, err := os.ReadFile(p.errors)
	if err != nil {
		p.t.Fatal(err)
	}
	return bytes.Contains(log, []byte(message))
}

// freeze stops the next worker, and lets those go on that were stopped the
// time before last: at least one of three works.
func (f *fleet) freeze() {
	f.t.Helper()
	if len(f.stopped) == 2 {
		f.signal(f.stopped[0], syscall.SIGCONT)
		f.stopped = f.stopped[1:]
	}
	next := f.workers[f.strikes%len(f.workers)]
	f.signal(next, syscall.SIGSTOP)
	f.stopped = append(f.stopped, next)
	f.strikes++
}

// thaw lets all workers go on.
func (f *fleet) thaw() {
	f.t.Helper()
	for _, p := range f.stopped {
		f.signal(p, syscall.SIGCONT)
	}
	f.stopped = nil
}

func (f *fleet) signal(p *process, signal os.Signal) {
	f.t.Helper()
	if err := p.Process.Signal(signal); err != nil {
		f.t.Fatalf("%s: %v", p.what, err)
	}
}

// retire ends all workers as a deployment does.
func (f *fleet) retire() {
	f.t.Helper()
	for _, p := range f.workers {
		p.terminate()
	}
	for _, p := range f.workers {
		p.succeed()
	}
}
