package pgtest_test

import (
	"os"
	"os/exec"
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
