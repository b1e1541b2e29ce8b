package ledger_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
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

// A replay of an older upload must not bring a deleted file back.
func TestATombstoneStaysWhileAnEventOfItsMediaMayStillRun(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name      string
		state     string // of an event of the media; none where empty
		elsewhere bool   // the event is of another environment
		young     bool
		live      bool
		stays     bool
	}{
		{name: "no event", stays: false},
		{name: "completed", state: "completed", stays: false},
		{name: "discarded", state: "discarded", stays: false},
		{name: "available", state: "available", stays: true},
		{name: "running", state: "running", stays: true},
		{name: "retryable", state: "retryable", stays: true},
		{name: "dead", state: "dead", stays: true},
		{name: "dead elsewhere", state: "dead", elsewhere: true, stays: false},
		{name: "young", young: true, stays: true},
		{name: "no tombstone", live: true, stays: true},
	}
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		l := ledger.New(db)
		want := map[string]bool{}
		for i, tc := range cases {
			lane, key := int64(i+1), ""
			if tc.live {
				key = "key"
			}
			exec(t, db, `INSERT INTO {lanes} (lane_id, service_id, environment_id) VALUES (?, ?, '')`, lane, tc.name)
			put := object(lane, tc.name, key)
			if err := apply(t, db, ledger.Effects{Put: put}); err != nil {
				t.Fatal(err)
			}
			if !tc.young {
				exec(t, db, `UPDATE {media_objects} SET updated_at = updated_at - ? WHERE media_id = ?`,
					(2 * time.Hour).Microseconds(), tc.name)
			}
			service := tc.name
			if tc.elsewhere {
				lane, service = 1000, "another"
			}
			if tc.state != "" {
				exec(t, db, `INSERT INTO {outbox} (event_id, type, service_id, data) VALUES (?, 'MediaUploaded', ?, '{}')`,
					uuid.NewString(), service)
				exec(t, db, `UPDATE {outbox} SET state = ? WHERE service_id = ?`, tc.state, service)
			}
			if tc.state != "available" { // which no worker has written
				exec(t, db, `UPDATE {outbox} SET lane_id = ?, media_id = ?, parked = (state = 'retryable') WHERE service_id = ?`,
					lane, tc.name, service)
			}
			want[tc.name] = tc.stays
		}
		if n, err := l.PruneTombstones(t.Context(), time.Hour, 3); err != nil || n != 3 {
			t.Errorf("%d went of at most 3: %v", n, err)
		}
		if n, err := l.PruneTombstones(t.Context(), time.Hour, 100); err != nil || n != 1 {
			t.Errorf("%d went of the one that was left: %v", n, err)
		}
		got := map[string]bool{}
		for i, tc := range cases {
			got[tc.name] = view(t, l, int64(i+1), tc.name, "").Object != nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("stays (-want +got):\n%s", diff)
		}
	})
}

func TestAMediaOfAnotherEnvironmentIsAnother(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		l := ledger.New(db)
		if err := apply(t, db, ledger.Effects{Put: object(1, "m", "a")}, ledger.Effects{Put: object(2, "m", "b")}); err != nil {
			t.Fatal(err)
		}
		if got := view(t, l, 2, "m", "a"); !got.HeldByOther() {
			t.Errorf("%+v is taken for the holder %+v", got.Object, got.Holder)
		}
		if got := view(t, l, 1, "m", "a"); got.HeldByOther() {
			t.Errorf("%+v isn't taken for the holder %+v", got.Object, got.Holder)
		}
	})
}
