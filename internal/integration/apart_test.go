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
// just those are refused which a deletion would tie together. Another service
// never stands in the way of a directory alone: it gets another name.
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
				name := service + "/" + change.EnvironmentID
				if change.EnvironmentServiceID != nil {
					wanted.Directory = bucket.Directory(*change.EnvironmentServiceID)
					if before := kept[name].Settings; before.EnvironmentServiceID == *change.EnvironmentServiceID {
						wanted.Directory = before.Directory
					}
				}
				renamed := wanted
				if wanted.Directory != "" {
					renamed.Directory = "another-0123456789ab"
				}
				conflict := false
				for other, existing := range kept {
					own := existing.ServiceID == service
					conflict = conflict || other != name && (own && tied(wanted, existing.Settings) || tied(renamed, existing.Settings))
				}

				saved, err := store.Set(t.Context(), change)
				switch {
				case conflict && failure.Of(err).Code != integration.DirectoryTaken:
					r.Fatalf("%s at %q: %v; want it refused beside %v", name, wanted.KeyPrefix(), err, kept)
				case !conflict && err != nil:
					r.Fatalf("%s at %q: %v", name, wanted.KeyPrefix(), err)
				case err == nil:
					kept[name] = saved.Integration
					for other, existing := range kept {
						if other != name && tied(saved.Integration.Settings, existing.Settings) {
							r.Fatalf("%s at %q was saved beside %s at %q", name, saved.Integration.KeyPrefix(), other, existing.KeyPrefix())
						}
					}
				}
			}
		})
	})
}

func tied(one, two integration.Settings) bool { return swallows(one, two) || swallows(two, one) }

// swallows says it with keys: a file of one would be in the other's listing.
func swallows(deleted, other integration.Settings) bool {
	if deleted.EnvironmentID == "" {
		return false
	}
	key, err := bucket.Key(other.Prefix, other.Directory, "file.png")
	return err == nil && strings.HasPrefix(key, bucket.KeyPrefix(deleted.Prefix, deleted.Directory))
}

func TestARefusalNamesAnotherEnvironmentOnlyOfTheSameService(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		directory := bucket.Directory("victim-secret")
		set(t, store, environment("victim", "hidden", "victim-secret"))
		inside := new("media/" + directory + "/sub")
		contained := environment("victim", "inner", "victim-inner")
		contained.Prefix = new("outer/" + bucket.Directory("victim-outer"))
		set(t, store, contained)
		outer := environment("victim", "outer", "victim-outer")
		outer.Prefix = new("outer")

		refused := func(change integration.Change) string {
			t.Helper()
			_, err := store.Set(t.Context(), change)
			var field *integration.FieldError
			if failure.Of(err).Code != integration.DirectoryTaken || !errors.As(err, &field) || field.Setting != "prefix" {
				t.Fatalf("%v, want a FieldError of the prefix", err)
			}
			if !strings.Contains(err.Error(), "another prefix") || !strings.Contains(err.Error(), *change.Prefix) {
				t.Errorf("the error doesn't say what to do: %v", err)
			}
			return err.Error()
		}
		own := environment("victim", "own", "victim-own")
		own.Prefix = inside
		for name, words := range map[string]string{
			refused(own):   `service "victim", environment "hidden"`,
			refused(outer): `service "victim", environment "inner"`,
		} {
			if !strings.Contains(name, words) {
				t.Errorf("the error doesn't say %s: %s", words, name)
			}
		}
		for _, change := range []integration.Change{production("other"), environment("other", "env", "other-env")} {
			change.Prefix = inside
			if text := refused(change); strings.Contains(text, "victim\"") || strings.Contains(text, "hidden") || !strings.Contains(text, "is taken") {
				t.Errorf("the error tells of another service: %s", text)
			}
		}
		elsewhere := production("other")
		elsewhere.Prefix, elsewhere.Bucket = inside, new("another-bucket")
		set(t, store, elsewhere)
	})
}

// squatters of the directory that an environment of "s" usually gets.
func squatters() map[string]integration.Change {
	same := environment("other", "env", "s-staging")
	prefix, below := production("other"), production("other")
	prefix.Prefix = new("media/" + bucket.Directory("s-staging"))
	below.Prefix = new(*prefix.Prefix + "/sub")
	return map[string]integration.Change{"its prefix": prefix, "a prefix below it": below, "an environment of that name": same}
}

func TestADirectoryThatAnotherServiceTookBeforehandGetsAnotherName(t *testing.T) {
	t.Parallel()
	for name, squatter := range squatters() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				store := integration.New(db)
				source := set(t, store, production("s"))
				taken := set(t, store, squatter)
				exec(t, db, `INSERT INTO {lanes} (service_id, environment_id) VALUES ('s', 'copied')`)
				target := get[int64](t, db, `SELECT lane_id FROM {lanes} WHERE environment_id = 'copied'`)
				if err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
					return store.CopySettings(t.Context(), tx, source.LaneID, target, "s-staging")
				}); err != nil {
					t.Fatal(err)
				}
				free(t, show(t, store, "s", "copied"), taken)

				// The tested outcome is the one that is saved.
				wanted := environment("s", "staging", "s-staging")
				tested, err := store.Preview(t.Context(), wanted)
				if err != nil {
					t.Fatal(err)
				}
				wanted.Tested = &tested.Integration.Settings
				saved := set(t, store, wanted)
				free(t, saved, taken)
				if saved.Directory != tested.Integration.Directory {
					t.Errorf("%q was tested, and %q saved", tested.Integration.Directory, saved.Directory)
				}
				kept := set(t, store, integration.Change{ServiceID: "s", EnvironmentID: "staging",
					EnvironmentServiceID: new("s-staging"), Memo: new("x")})
				if kept.Directory != saved.Directory {
					t.Errorf("the directory %q became %q", saved.Directory, kept.Directory)
				}
			})
		})
	}
}

// free fails unless the directory has a name that nobody could know.
func free(t *testing.T, saved, squatter integration.Integration) {
	t.Helper()
	if tied(saved.Settings, squatter.Settings) || saved.Directory == bucket.Directory("s-staging") ||
		!strings.HasPrefix(saved.Directory, "s-staging-") || saved.Validate() != nil {
		t.Errorf("the directory is %q beside %q", saved.KeyPrefix(), squatter.KeyPrefix())
	}
}

func TestACopyOfSettingsIsRefusedWhereItsDirectoryIsItsOwnServices(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		source := set(t, store, production("s"))
		set(t, store, environment("s", "twin", "s-staging"))
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
			// Each lies within the other's directory, whatever that is called.
			one := environment(fmt.Sprintf("one-%d", round), "staging", fmt.Sprintf("e%d", round))
			two := environment(fmt.Sprintf("one-%d", round), "other", fmt.Sprintf("f%d", round))
			prefix := fmt.Sprintf("p%d", round)
			one.Prefix, two.Prefix = &prefix, new(prefix+"/"+bucket.Directory(*one.EnvironmentServiceID))

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
