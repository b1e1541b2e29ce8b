package ledger_test

import (
	"fmt"
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// However many media came after the plans were made, and however few there were
// when the planner's statistics were.
func TestOneMediaIsReadAndWrittenAlone(t *testing.T) {
	t.Parallel()
	const plans, many, few = 10, 3000, 20
	for _, analyzed := range []int{0, 20, 50, 100} {
		t.Run(fmt.Sprintf("of %d analyzed", analyzed), func(t *testing.T) {
			t.Parallel()
			db := dbtest.PostgreSQL(t)
			db.SetMaxOpenConns(1) // whose statistics are the test's
			addMedia(t, db, "first", analyzed)
			if analyzed > 0 {
				exec(t, db, `ANALYZE {media_objects}`)
				exec(t, db, `ANALYZE {possible_writes}`)
			}
			l := ledger.New(db)
			handle := func(media string) {
				view(t, l, 1, media, media)
				o := object(1, media, media)
				write := ledger.PossibleWrite{LaneID: 1, MediaID: media, Key: media, Version: 1}
				for _, effects := range []ledger.Effects{
					{Possible: []ledger.PossibleWrite{write}},
					{Put: o, Frees: true, Settled: []ledger.PossibleWrite{write}},
				} {
					if err := apply(t, db, effects); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i := range plans {
				handle(fmt.Sprintf("planned%d", i))
			}
			addMedia(t, db, "second", many)
			before := dbtest.ReadRows(t, db)
			handle("last")
			if read := dbtest.ReadRows(t, db) - before; read > few {
				t.Errorf("%d rows were read", read)
			}
		})
	}
}

func addMedia(t *testing.T, db *database.DB, name string, n int) {
	t.Helper()
	exec(t, db, `INSERT INTO {media_objects} (lane_id, media_id, version, sequence, bucket, object_key, updated_at)
		SELECT 1, ? || i, 1, 1, ?, ? || i, {now} FROM generate_series(1, CAST(? AS integer)) AS i`, name, bucket, name, n)
	exec(t, db, `INSERT INTO {possible_writes} (lane_id, media_id, object_key, version, created_at)
		SELECT 1, ? || i, ? || i, 1, {now} FROM generate_series(1, CAST(? AS integer)) AS i`, name, name, n)
}

func exec(t *testing.T, db *database.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), db.SQL(query), args...); err != nil {
		t.Fatal(err)
	}
}
