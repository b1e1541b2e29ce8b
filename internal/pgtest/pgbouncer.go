package pgtest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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

// Bouncer is a PgBouncer in transaction mode before one database.
type Bouncer struct {
	// URL is the database's, through it.
	URL     string
	process *tether.Process
}

// PgBouncer starts a PgBouncer in transaction mode before the database at
// target, a URL of this package, and returns the URL through it.
func PgBouncer(t testing.TB, target string) string {
	t.Helper()
	return StartPgBouncer(t, target).URL
}

// StartPgBouncer is PgBouncer for a test that restarts it. Sessions of the database
// have the search_path that Ownbucket asks for behind a pooler.
func StartPgBouncer(t testing.TB, target string) *Bouncer {
	t.Helper()
	program, err := findPgBouncer()
	if err != nil {
		t.Fatal(err)
	}
	through, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	setSearchPath(t, target, through)
	owner, err := unprivileged() // PgBouncer refuses to be root, too
	if err != nil {
		t.Fatal(err)
	}
	directory, err := makeDirectory(owner)
	if err != nil {
		t.Fatal(err)
	}
	query := through.Query()
	config := filepath.Join(directory, "pgbouncer.ini")
	text := fmt.Sprintf(pgBouncerConfig, query.Get("host"), superuser, directory)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	process, err := tether.Start(tether.Server{
		Args: []string{program, config}, Directory: directory, StopSignal: "INT", RemoveDirectory: true, Credential: owner,
		Respawn: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(); err != nil {
			t.Errorf("stop PgBouncer: %v", err)
		}
	})
	query.Set("host", directory)
	through.RawQuery = query.Encode()
	b := &Bouncer{URL: through.String(), process: process}
	b.await(t)
	return b
}

func setSearchPath(t testing.TB, target string, parsed *url.URL) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	name := pgx.Identifier{strings.TrimPrefix(parsed.Path, "/")}.Sanitize()
	if _, err := conn.Exec(t.Context(), `ALTER DATABASE `+name+` SET search_path = pg_catalog`); err != nil {
		t.Fatal(err)
	}
}

// Restart ends it at once, its clients' transactions included, and returns
// when its successor answers.
func (b *Bouncer) Restart(t testing.TB) {
	t.Helper()
	if err := b.process.Restart(syscall.SIGTERM); err != nil {
		t.Fatalf("restart PgBouncer: %v", err)
	}
	b.await(t)
}

func (b *Bouncer) await(t testing.TB) {
	t.Helper()
	err := b.process.WaitUntil(time.Minute, func() error {
		conn, err := pgx.Connect(t.Context(), b.URL)
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	})
	if err != nil {
		t.Fatalf("start PgBouncer: %v", err)
	}
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
