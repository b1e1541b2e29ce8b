package pgtest

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

// Network stands between a program and PostgreSQL. It can be cut, and it can lose
// the answer to a COMMIT: the program can't know whether it was done. It was.
type Network struct {
	// URL is the database's, through it.
	URL      string
	target   string
	listener net.Listener
	// losses counts how often answers were to be lost: a connection that is older
	// loses its next one, and ends.
	losses  atomic.Int64
	carries sync.WaitGroup

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]bool
}

// StartNetwork lays a network to the database at target, a URL of this package. It
// ends with the test.
func StartNetwork(t testing.TB, target string) *Network {
	t.Helper()
	through, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	directory, err := os.MkdirTemp("", "net") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	const socket = ".s.PGSQL.5432"
	query := through.Query()
	n := &Network{target: filepath.Join(query.Get("host"), socket), conns: make(map[net.Conn]bool)}
	query.Set("host", directory)
	through.RawQuery = query.Encode()
	n.URL = through.String()
	if n.listener, err = net.Listen("unix", filepath.Join(directory, socket)); err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(n.accept)
	t.Cleanup(func() {
		_ = n.listener.Close()
		accepting.Wait()
		n.Cut()
		n.carries.Wait()
		if err := os.RemoveAll(directory); err != nil {
			t.Error(err)
		}
	})
	return n
}

// Cut ends all connections, and lets none through until Mend.
func (n *Network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	for conn := range n.conns {
		_ = conn.Close()
	}
}

// Mend lets connections through again.
func (n *Network) Mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// LoseAnswers has each connection lose its next COMMIT's answer.
func (n *Network) LoseAnswers() { n.losses.Add(1) }

func (n *Network) accept() {
	for {
		near, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.connect(near)
	}
}

func (n *Network) connect(near net.Conn) {
	far, err := net.Dial("unix", n.target)
	if err != nil {
		_ = near.Close()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		_, _ = near.Close(), far.Close()
		return
	}
	n.conns[near], n.conns[far] = true, true
	since := n.losses.Load()
	var committing atomic.Bool
	n.carries.Go(func() {
		n.carry(far, near, func(asked []byte) bool {
			if n.losses.Load() > since && bytes.Contains(asked, []byte("commit\x00")) {
				committing.Store(true)
			}
			return false
		})
	})
	n.carries.Go(func() { n.carry(near, far, func([]byte) bool { return committing.Load() }) })
}

// carry carries one direction until either end closes, or what comes is lost.
func (n *Network) carry(to, from net.Conn, lost func([]byte) bool) {
	buffer := make([]byte, 16<<10)
	for {
		size, err := from.Read(buffer)
		if lost(buffer[:size]) {
			break
		}
		if _, failed := to.Write(buffer[:size]); err != nil || failed != nil {
			break
		}
	}
	_, _ = to.Close(), from.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, to)
	delete(n.conns, from)
}
