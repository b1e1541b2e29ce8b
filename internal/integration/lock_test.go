package integration_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
)

type arrange func(t *testing.T, db *database.DB, lane int64)

// publish leaves an event in that state. One that no worker has written yet names no
// lane, and one that waits for its retry is parked.
func publish(t testing.TB, db *database.DB, serviceID, environmentID string, laneID *int64, state string) {
	t.Helper()
	id := uuid.NewString()
	exec(t, db, `INSERT INTO {outbox} (event_id, type, service_id, environment_id, data) VALUES (?, 'MediaDeleted', ?, ?, '{}')`,
		id, serviceID, environmentID)
	exec(t, db, `UPDATE {outbox} SET lane_id = ?, state = ?, parked = ? WHERE event_id = ?`, laneID, state, state == "retryable", id)
}

func event(states ...string) arrange {
	return func(t *testing.T, db *database.DB, lane int64) {
		service := get[string](t, db, `SELECT service_id FROM {lanes} WHERE lane_id = ?`, lane)
		for _, state := range states {
			publish(t, db, service, "", &lane, state)
		}
	}
}

func storeMedia(t *testing.T, db *database.DB, lane int64) {
	t.Helper()
	exec(t, db, `INSERT INTO {media_objects} (lane_id, media_id, version, sequence, bucket, object_key, updated_at)
		VALUES (?, 'm', 1, 1, 'alpha-prod-assets', ?, 1)`, lane, fmt.Sprintf("media/%d.png", lane))
}

func bury(t *testing.T, db *database.DB, lane int64) {
	exec(t, db, `INSERT INTO {media_objects} (lane_id, media_id, version, sequence, updated_at)
		VALUES (?, 'm', 1, 1, 1)`, lane)
}

func possiblyWrite(t *testing.T, db *database.DB, lane int64) {
	exec(t, db, `INSERT INTO {possible_writes} (lane_id, media_id, object_key, version, created_at)
		VALUES (?, 'm', 'media/m.png', 1, 1)`, lane)
}

// elsewhere is a lane of no test's.
const elsewhere = 1_000_000

func owe(t *testing.T, db *database.DB, source, target int64, state string) {
	t.Helper()
	sequence := source*10 + target
	exec(t, db, `INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
		VALUES (?, ?, ?, 'e', 'active', 1)`, sequence, source, target)
	exec(t, db, `INSERT INTO {copy_items} (copy_sequence, media_id, source_lane, target_lane, source_bucket, source_key,
			source_etag, file_name, version, content_type, size, state)
		VALUES (?, 'm', ?, ?, 'b', 'k', 'e', 'f', 1, 'image/png', 1, ?)`, sequence, source, target, state)
}

func started(then ...arrange) arrange {
	return func(t *testing.T, db *database.DB, lane int64) {
		exec(t, db, `UPDATE {lanes} SET started = ? WHERE lane_id = ?`, true, lane)
		for _, each := range then {
			each(t, db, lane)
		}
	}
}

func TestSettingsAreLockedWhileAnythingDependsOnThem(t *testing.T) {
	t.Parallel()
	const (
		media   = "media are stored"
		events  = "events are unfinished"
		copies  = "copies to or from"
		writes  = "events that failed"
		nothing = "" // not locked
	)
	cases := []struct {
		name    string
		arrange arrange
		because string
	}{
		{"nothing happened yet", func(*testing.T, *database.DB, int64) {}, nothing},
		{"started, all is gone", started(), nothing},
		{"stored media", started(storeMedia), media},
		{"media of a backfill", storeMedia, media},
		{"tombstone", started(bury), nothing},
		{"event, none started", event("available"), nothing},
		{"event available", started(event("available")), events},
		{"event running", started(event("running")), events},
		{"event to be retried", started(event("retryable")), events},
		{"events finished", started(event("completed", "dead", "discarded")), nothing},
		{"a worker at work", started(func(t *testing.T, db *database.DB, lane int64) {
			exec(t, db, `UPDATE {lanes} SET leased_by = 'w', leased_until = {now} + 60000000 WHERE lane_id = ?`, lane)
		}), events},
		{"event that no worker has written", started(func(t *testing.T, db *database.DB, _ int64) {
			publish(t, db, "event that no worker has written", "", nil, "available")
		}), events},
		{"copy owed from it", started(func(t *testing.T, db *database.DB, lane int64) {
			owe(t, db, lane, elsewhere, "owed")
		}), copies},
		{"copy owed to it", started(func(t *testing.T, db *database.DB, lane int64) {
			owe(t, db, elsewhere, lane, "owed")
		}), copies},
		{"copy done", started(func(t *testing.T, db *database.DB, lane int64) {
			owe(t, db, lane, elsewhere, "done")
		}), nothing},
		{"possible write", started(possiblyWrite), writes},
		{"another lane's media", started(func(t *testing.T, db *database.DB, _ int64) {
			storeMedia(t, db, elsewhere)
		}), nothing},
	}
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				c.arrange(t, db, set(t, store, production(c.name)).LaneID)
				if got, want := show(t, store, c.name, "").Locked, c.because != nothing; got != want {
					t.Errorf("shown as locked: %t, want %t", got, want)
				}
				checkChanges(t, store, c.name, c.because)
				checkLock(t, "delete", c.name, store.Delete(t.Context(), c.name, "", "me", ""), c.because)
			})
		}
	})
}

// checkChanges looks at what may and what may not change while locked.
func checkChanges(t *testing.T, store *integration.Store, serviceID, because string) {
	t.Helper()
	rotated := production(serviceID + " rotated")
	set(t, store, integration.Change{
		ServiceID: serviceID, RoleARN: rotated.RoleARN, ExternalID: rotated.ExternalID,
		CustomDomain: new("https://new.example.com"), PinFileNames: new(true), Memo: new("still"),
		DistributionID: new("E1"), CDNPrefix: new("cdn"),
		// Saying again what is so changes nothing.
		Bucket: new("alpha-prod-assets"), Region: new("ap-northeast-1"), Prefix: new("media/"),
	})
	for name, change := range map[string]integration.Change{
		"bucket": {Bucket: new("another-bucket")},
		"region": {Region: new("us-east-1")},
		"prefix": {Prefix: new("another")},
		"all":    {Bucket: new("third-bucket"), Memo: new("moved")},
	} {
		change.ServiceID = serviceID
		_, err := store.Set(t.Context(), change)
		checkLock(t, name, serviceID, err, because)
	}
}

func checkLock(t *testing.T, name, serviceID string, err error, because string) {
	t.Helper()
	if because == "" {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	if !errors.Is(err, integration.ErrLocked) {
		t.Errorf("%s: %v, want ErrLocked", name, err)
		return
	}
	for _, words := range []string{because, "role_arn", serviceID} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%s: the error doesn't say %q: %v", name, words, err)
		}
	}
}

func TestALockedEnvironmentKeepsItsDirectory(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		i := set(t, store, environment("s", "staging", "s-staging"))
		change := integration.Change{ServiceID: "s", EnvironmentID: "staging", EnvironmentServiceID: new("other")}
		if moved := set(t, store, change); moved.Directory == i.Directory {
			t.Error("the directory must follow the environment's service ID while nothing is stored")
		}
		storeMedia(t, db, i.LaneID)
		change.EnvironmentServiceID = new("s-staging")
		if _, err := store.Set(t.Context(), change); !errors.Is(err, integration.ErrLocked) {
			t.Errorf("%v, want ErrLocked", err)
		}
	})
}

// Who begins to work under the settings holds the lane, and so does who changes them.
func TestSettingsDoNotChangeWhileWorkUnderThemBegins(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t) // SQLite has one writer
	store := integration.New(db)
	lane := set(t, store, production("s")).LaneID
	tx, err := db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	inLane := func(query string) {
		t.Helper()
		if _, err := tx.ExecContext(t.Context(), db.SQL(query), lane); err != nil {
			t.Fatal(err)
		}
	}
	inLane(`SELECT 1 FROM {lanes} WHERE lane_id = ? FOR NO KEY UPDATE`)
	changed := make(chan error, 1)
	go func() {
		_, err := store.Set(t.Context(), integration.Change{ServiceID: "s", Prefix: new("another")})
		changed <- err
	}()
	for !get[bool](t, db, `SELECT EXISTS (SELECT 1 FROM pg_stat_activity
		WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0)`) {
		select {
		case err := <-changed:
			t.Fatalf("the settings were changed meanwhile: %v", err)
		default:
		}
	}
	inLane(`UPDATE {lanes} SET started = true, leased_by = 'w' WHERE lane_id = ?`)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	checkLock(t, "prefix", "s", <-changed, "events are unfinished")
}
