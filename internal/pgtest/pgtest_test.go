package pgtest_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ownbucket/ownbucket/internal/pgtest"
)

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	for range 2 {
		conn := connect(t, pgtest.URL(t))
		if _, err := conn.Exec(t.Context(), `CREATE TABLE t (x int)`); err != nil {
			t.Error(err)
		}
	}
}

func TestATemplateIsPreparedOnce(t *testing.T) {
	t.Parallel()
	prepared := 0
	for range 2 {
		url := pgtest.Clone(t, "prepared", func(url string) error {
			prepared++
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				return err
			}
			if _, err := conn.Exec(t.Context(), `CREATE TABLE t (x int)`); err != nil {
				return err
			}
			return conn.Close(t.Context())
		})
		if _, err := connect(t, url).Exec(t.Context(), `INSERT INTO t VALUES (1)`); err != nil {
			t.Error(err)
		}
	}
	if prepared != 1 {
		t.Errorf("prepared %d times", prepared)
	}
}

// childVariable makes this test binary start a server and hang.
const childVariable = "PGTEST_CHILD_URL_FILE"

func TestAKilledTestProcessLeavesNoServer(t *testing.T) {
	if file := os.Getenv(childVariable); file != "" {
		if err := os.WriteFile(file, []byte(pgtest.URL(t)), 0o600); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	t.Parallel()
	file := t.TempDir() + "/url"
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAKilledTestProcessLeavesNoServer$")
	child.Env = append(os.Environ(), childVariable+"="+file)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Wait() }()
	defer func() { _ = child.Process.Kill() }()

	var url []byte
	eventually(t, "the child's server runs", func() bool {
		url, _ = os.ReadFile(file)
		return len(url) > 0
	})
	config, err := pgx.ParseConfig(string(url))
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server and its directory are gone", func() bool {
		_, err := os.Stat(config.Host)
		return os.IsNotExist(err)
	})
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute it still is not so that %s", what)
		}
	}
}

func TestWhatWasCommittedOutlastsARestart(t *testing.T) {
	t.Parallel()
	server := pgtest.StartOwn(t)
	url := server.URL(t)
	exec := func(statement string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close(t.Context())
	}
	exec(`CREATE TABLE t (x int PRIMARY KEY)`)
	for x, mode := range []syscall.Signal{pgtest.Fast, pgtest.Immediate} {
		exec(fmt.Sprintf(`INSERT INTO t VALUES (%d)`, x))
		server.Restart(t, mode)
	}
	exec(`SELECT 1 / (count(*) / 2) FROM t`) // fails where rows are missing
}

func TestPgBouncerIsRestarted(t *testing.T) {
	t.Parallel()
	bouncer := pgtest.StartPgBouncer(t, pgtest.URL(t))
	conn := connect(t, bouncer.URL)
	bouncer.Restart(t)
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a connection outlasted the restart")
	}
	if err := connect(t, bouncer.URL).Ping(t.Context()); err != nil {
		t.Error(err)
	}
}
