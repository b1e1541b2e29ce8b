package ledger_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bucket = "customer-bucket"

func object(laneID int64, media, key string) *ledger.Object {
	o := &ledger.Object{LaneID: laneID, MediaID: media, Version: 1, Sequence: 1, ETag: media}
	if key != "" {
		name := bucket
		o.Bucket, o.Key = &name, &key
	}
	return o
}

func apply(t *testing.T, db *database.DB, effects ...ledger.Effects) error {
	t.Helper()
	return db.Tx(t.Context(), func(tx *sqlx.Tx) error { return ledger.New(db).Apply(t.Context(), tx, effects) })
}

func view(t *testing.T, l *ledger.Store, laneID int64, media, key string) ledger.View {
	t.Helper()
	found, err := l.View(t.Context(), laneID, media, bucket, key)
	if err != nil {
		t.Error(err)
	}
	return found
}

func TestOneTransactionPassesAKeyFromOneMediaToAnother(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		l := ledger.New(db)
		if err := apply(t, db, ledger.Effects{Put: object(1, "old", "a")}); err != nil {
			t.Fatal(err)
		}
		moved, buried := object(1, "old", "b"), object(1, "old", "")
		before := view(t, l, 1, "old", "a")
		if !before.Frees(moved) || !before.Frees(buried) || before.Frees(object(1, "old", "a")) {
			t.Error("a media frees its key when it moves or is deleted, and not when it stays")
		}
		// Whoever takes the key may come first.
		if err := apply(t, db, ledger.Effects{Put: object(2, "new", "a")}, ledger.Effects{Put: moved, Frees: true}); err != nil {
			t.Fatal(err)
		}
		if got := view(t, l, 1, "old", "a"); *got.Object.Key != "b" || got.Holder.MediaID != "new" || !got.HeldByOther() {
			t.Errorf("got %+v, held by %+v", got.Object, got.Holder)
		}
		if err := apply(t, db, ledger.Effects{Put: object(3, "last", "b")}, ledger.Effects{Put: buried, Frees: true}); err != nil {
			t.Fatal(err)
		}
		if got := view(t, l, 1, "old", "b"); got.Object.Live() || got.Holder.MediaID != "last" {
			t.Errorf("got %+v, held by %+v", got.Object, got.Holder)
		}
	})
}

func TestViewsThatAreAskedForAtOnceEachGetTheirOwn(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		l := ledger.New(db)
		const medias = 50
		var effects []ledger.Effects
		for i := range medias {
			media, key := fmt.Sprintf("m%d", i), fmt.Sprintf("media/%d", i)
			effects = append(effects, ledger.Effects{Put: object(1, media, key), Possible: []ledger.PossibleWrite{
				{LaneID: 1, MediaID: media, Key: key, Version: 2}, {LaneID: 1, MediaID: media, Key: key, Version: 1}}})
		}
		if err := apply(t, db, effects...); err != nil {
			t.Fatal(err)
		}
		var asking sync.WaitGroup
		for i := range medias + 1 {
			asking.Go(func() {
				media := fmt.Sprintf("m%d", i)
				// Each asks for the next one's key; the last media has no row.
				next := (i + 1) % medias
				want := ledger.View{Holder: object(1, fmt.Sprintf("m%d", next), fmt.Sprintf("media/%d", next))}
				if i < medias {
					key := fmt.Sprintf("media/%d", i)
					want.Object = object(1, media, key)
					want.PossibleWrites = []ledger.PossibleWrite{
						{LaneID: 1, MediaID: media, Key: key, Version: 1}, {LaneID: 1, MediaID: media, Key: key, Version: 2}}
				}
				got := view(t, l, 1, media, fmt.Sprintf("media/%d", next))
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", media, diff)
				}
			})
		}
		asking.Wait()
	})
}
