package pgtest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ownbucket/ownbucket/internal/tether"
)

// pgBouncer's two server connections are fewer than the clients of any test
// that shares them, and in transaction mode they change hands after each
// transaction: what relies on a session's state fails.
const pgBouncerConfig = `[databases]
* = host=%s user=%s
[pgbouncer]
pool_mode = transaction
default_pool_size = 2
listen_addr =
listen_port = 5432
unix_socket_dir = %s
auth_type = any
server_reset_query =
max_client_conn = 200
`

// PgBouncer starts a PgBouncer in transaction mode before the database at
// target, which URL or Clone gave, and returns the URL through it.
func PgBouncer(t testing.TB, target string) string {
	t.Helper()
	program, err := findPgBouncer()
	if err != nil {
		t.Fatal(err)
	}
	server, err := running()
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	through, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := unprivileged() // PgBouncer refuses to be root, too
	if err != nil {
		t.Fatal(err)
	}
	directory, err := makeDirectory(owner)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(directory, "pgbouncer.ini")
	text := fmt.Sprintf(pgBouncerConfig, server.directory, superuser, directory)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	process, err := tether.Start(tether.Server{
		Args: []string{program, config}, Directory: directory, StopSignal: "INT", RemoveDirectory: true, Credential: owner,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(); err != nil {
			t.Errorf("stop PgBouncer: %v", err)
		}
	})
	query := through.Query()
	query.Set("host", directory)
	through.RawQuery = query.Encode()
	err = process.WaitUntil(time.Minute, func() error {
		conn, err := pgx.Connect(t.Context(), through.String())
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	})
	if err != nil {
		t.Fatalf("start PgBouncer: %v", err)
	}
	return through.String()
}

func findPgBouncer() (string, error) {
	if onPath, err := exec.LookPath("pgbouncer"); err == nil {
		return onPath, nil
	}
	const debian = "/usr/sbin/pgbouncer" // not on everybody's PATH
	if _, err := os.Stat(debian); err != nil {
		return "", errors.New("PgBouncer was not found on PATH or in /usr/sbin: run make deps")
	}
	return debian, nil
}
