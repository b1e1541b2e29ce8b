package integration_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
)

// TestNoDeletionReachesAnotherIntegration sets up integrations at random, in
// a bucket where prefixes and directories often coincide, and demands that
// just those are refused which a deletion would tie together.
func TestNoDeletionReachesAnotherIntegration(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		run := 0
		rapid.Check(t, func(r *rapid.T) {
			run++
			bucketName := fmt.Sprintf("bucket-%d", run)
			level := rapid.SampledFrom([]string{"media", "mediafoo", bucket.Directory("e1"), bucket.Directory("e2")})
			kept := make(map[string]integration.Integration)
			for range rapid.IntRange(2, 8).Draw(r, "settings") {
				service := fmt.Sprintf("s%d-%s", run, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "service"))
				change := production(service)
				change.Bucket = &bucketName
				change.Prefix = new(strings.Join(rapid.SliceOfN(level, 0, 2).Draw(r, "prefix"), "/"))
				if environmentID := rapid.SampledFrom([]string{"", "x", "y"}).Draw(r, "environment"); environmentID != "" {
					change.EnvironmentID = environmentID
					change.EnvironmentServiceID = new(rapid.SampledFrom([]string{"e1", "e2"}).Draw(r, "environment's service"))
				}
				wanted := integration.Settings{EnvironmentID: change.EnvironmentID, Prefix: *change.Prefix}
				if change.EnvironmentServiceID != nil {
					wanted.Directory = bucket.Directory(*change.EnvironmentServiceID)
				}
				name := service + "/" + change.EnvironmentID
				conflict := false
				for other, existing := range kept {
					if other != name && (swallows(wanted, existing.Settings) || swallows(existing.Settings, wanted)) {
						conflict = true
					}
				}

				saved, err := store.Set(t.Context(), change)
				switch {
				case conflict && failure.Of(err).Code != integration.DirectoryTaken:
					r.Fatalf("%s at %q: %v; want it refused beside %v", name, wanted.KeyPrefix(), err, kept)
				case !conflict && err != nil:
					r.Fatalf("%s at %q: %v", name, wanted.KeyPrefix(), err)
				case err == nil:
					kept[name] = saved.Integration
				}
			}
		})
	})
}

// swallows says it with keys: a file of one would be in the other's listing.
func swallows(deleted, other integration.Settings) bool {
	if deleted.EnvironmentID == "" {
		return false
	}
	key, err := bucket.Key(other.Prefix, other.Directory, "file.png")
	return err == nil && strings.HasPrefix(key, bucket.KeyPrefix(deleted.Prefix, deleted.Directory))
}

func TestARefusalNamesBothSides(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		directory := bucket.Directory("s-staging")
		set(t, store, environment("s", "staging", "s-staging"))
		inside := production("other")
		inside.Prefix = new("media/" + directory + "/sub")
		_, err := store.Set(t.Context(), inside)
		var field *integration.FieldError
		if !errors.As(err, &field) || field.Setting != "prefix" {
			t.Fatalf("%v, want a FieldError of the prefix", err)
		}
		for _, words := range []string{*inside.Prefix, `service "s", environment "staging"`, "another prefix"} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("the error doesn't say %q: %v", words, err)
			}
		}
		inside.Bucket = new("another-bucket")
		set(t, store, inside)
	})
}

func TestACopyOfSettingsIsRefusedWhereItsDirectoryIsAnothers(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		source := set(t, store, production("s"))
		squatter := production("other")
		squatter.Prefix = new("media/" + bucket.Directory("s-staging"))
		set(t, store, squatter)
		exec(t, db, `INSERT INTO {lanes} (service_id, environment_id) VALUES ('s', 'staging')`)
		target := get[int64](t, db, `SELECT lane_id FROM {lanes} WHERE environment_id = 'staging'`)
		err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
			return store.CopySettings(t.Context(), tx, source.LaneID, target, "s-staging")
		})
		if f := failure.Of(err); f == nil || f.Class != failure.Permanent || f.Code != integration.DirectoryTaken {
			t.Errorf("%v, want a permanent failure %s", err, integration.DirectoryTaken)
		}
	})
}

func TestOfTwoThatCollideAtOnceOneIsRefused(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		for round := range 10 {
			one := environment(fmt.Sprintf("one-%d", round), "staging", "e")
			two := production(fmt.Sprintf("two-%d", round))
			prefix := fmt.Sprintf("p%d", round)
			one.Prefix, two.Prefix = &prefix, new(prefix+"/"+bucket.Directory("e"))

			var errs [2]error
			var both sync.WaitGroup
			for n, change := range []integration.Change{one, two} {
				both.Go(func() { _, errs[n] = store.Set(t.Context(), change) })
			}
			both.Wait()
			if (errs[0] == nil) == (errs[1] == nil) {
				t.Fatalf("want one of the two refused, got %v and %v", errs[0], errs[1])
			}
		}
	})
}

// Every role that can connect may take an advisory lock.
func TestNoLockOfAStrangerHoldsAChangeUp(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	change := production("s1")
	stranger, err := db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Rollback()
	if _, err := stranger.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`,
		db.Schema+".integration.bucket."+*change.Bucket); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := integration.New(db).Set(ctx, change); err != nil {
		t.Error(err)
	}
}
