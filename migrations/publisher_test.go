package migrations_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
)

// python publishes with the SQLite that Python was built with, as a CMS in any
// language does: Debian 12's is 3.40.
const python = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
with db:
    db.execute("INSERT INTO outbox (event_id, type, service_id, environment_id, data) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (event_id) DO NOTHING", ("0198c5f2-1f5e-7c55-b1f3-0f4a4d6c9a10", "MediaDeleted", "S1", "", "{}"))
`

func TestAPublishersOwnSQLiteMayBeOld(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not there")
	}
	db := dbtest.SQLite(t)
	if out, err := exec.CommandContext(t.Context(), program, "-c", python, db.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var created int64
	if err := db.GetContext(t.Context(), &created, `SELECT created_at FROM outbox`); err != nil {
		t.Fatal(err)
	}
	if age := time.Since(time.UnixMicro(created)); age < -time.Second || age > time.Minute {
		t.Errorf("the event was created %v ago", age)
	}
}

// Python's bytes are blobs. Whether the table takes one for a UUID depends on how the
// publisher's SQLite was built.
const pythonsBytes = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
try:
    for _ in range(2):
        with db:
            db.execute("INSERT INTO outbox (event_id, type, service_id, environment_id, data) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (event_id) DO NOTHING", (b"0198c5f2-1f5e-7c55-b1f3-0f4a4d6c9a10", b"MediaDeleted", b"S1", b"", b"{}"))
except sqlite3.IntegrityError as e:
    print(e)
`

func TestAnEventWhoseIDIsInBytesIsRefusedOrKeptOnce(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not there")
	}
	db := dbtest.SQLite(t)
	out, err := exec.CommandContext(t.Context(), program, "-c", pythonsBytes, db.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var kept []string
	if err := db.SelectContext(t.Context(), &kept, `SELECT typeof(event_id) FROM outbox`); err != nil {
		t.Fatal(err)
	}
	refused := strings.Contains(string(out), "constraint failed")
	if diff := cmp.Diff(map[bool][]string{true: nil, false: {"text"}}[refused], kept); diff != "" {
		t.Errorf("-want +got:\n%s%s", diff, out)
	}
	t.Logf("refused: %v", refused)
}

// The SQL of the one table that publishers write, and of its triggers, runs in their SQLite.
func TestTheOutboxAsksNoNewSQLiteOfItsPublishers(t *testing.T) {
	t.Parallel()
	var text string
	if err := dbtest.SQLite(t).GetContext(t.Context(), &text, `SELECT group_concat(sql, char(10)) FROM sqlite_schema WHERE tbl_name = 'outbox'`); err != nil {
		t.Fatal(err)
	}
	for _, newer := range []string{"unixepoch", "subsec", "STRICT"} {
		if strings.Contains(text, newer) {
			t.Errorf("the table needs %s of a publisher's SQLite:\n%s", newer, text)
		}
	}
}
