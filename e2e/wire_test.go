package e2e_test

import (
	"bytes"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// wire carries connections to PostgreSQL. It can lose the answer to a COMMIT:
// whoever asked can't know whether it was done. It was.
type wire struct {
	url      string
	target   string
	listener net.Listener
	// losses counts how often answers were to be lost: a connection that is
	// older loses its next one, and ends.
	losses  atomic.Int64
	carries sync.WaitGroup
}

// newWire lays a wire to a database at a URL of package pgtest.
func newWire(t testing.TB, target string) *wire {
	t.Helper()
	through, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	directory, err := os.MkdirTemp("", "wire") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	const socket = ".s.PGSQL.5432"
	query := through.Query()
	w := &wire{target: filepath.Join(query.Get("host"), socket)}
	query.Set("host", directory)
	through.RawQuery = query.Encode()
	w.url = through.String()
	if w.listener, err = net.Listen("unix", filepath.Join(directory, socket)); err != nil {
		t.Fatal(err)
	}
	w.carries.Go(w.accept)
	t.Cleanup(func() {
		_ = w.listener.Close()
		w.carries.Wait() // the workers have ended
		if err := os.RemoveAll(directory); err != nil {
			t.Error(err)
		}
	})
	return w
}

// loseAnswers has each connection lose its next COMMIT's answer.
func (w *wire) loseAnswers() { w.losses.Add(1) }

func (w *wire) accept() {
	for {
		near, err := w.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("unix", w.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		since := w.losses.Load()
		var committing atomic.Bool
		w.carries.Go(func() {
			carry(far, near, func(asked []byte) bool {
				if w.losses.Load() > since && bytes.Contains(asked, []byte("commit\x00")) {
					committing.Store(true)
				}
				return false
			})
		})
		w.carries.Go(func() { carry(near, far, func([]byte) bool { return committing.Load() }) })
	}
}

// carry carries one direction until either end closes, or what comes is lost.
func carry(to, from net.Conn, lost func([]byte) bool) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if lost(buffer[:n]) {
			return
		}
		if _, failed := to.Write(buffer[:n]); err != nil || failed != nil {
			return
		}
	}
}
