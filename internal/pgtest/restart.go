package pgtest

import (
	"fmt"
	"syscall"
	"testing"
)

// How a server is stopped for a restart, by the names of pg_ctl's modes.
const (
	Fast      = syscall.SIGINT  // transactions are rolled back, connections end
	Immediate = syscall.SIGQUIT // it crashes, and recovers when it starts
)

// StartOwn starts a server that ends with the test, for one that restarts it.
// Unlike the shared one's, its commits outlast a crash of the server.
func StartOwn(t testing.TB) *Server {
	t.Helper()
	server, err := start(true, "fsync=off", "full_page_writes=off", "shared_buffers=64MB")
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return server
}

// URL gives an empty database, which ends with the server.
func (s *Server) URL(t testing.TB) string {
	t.Helper()
	url, err := s.Create(fmt.Sprintf("test_%d", created.Add(1)), emptyTemplate)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// Restart returns when the server answers again.
func (s *Server) Restart(t testing.TB, mode syscall.Signal) {
	t.Helper()
	if err := s.process.Restart(mode); err != nil {
		t.Fatalf("restart PostgreSQL: %v", err)
	}
	if err := s.await(); err != nil {
		t.Fatalf("restart PostgreSQL: %v", err)
	}
}
