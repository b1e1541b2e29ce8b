package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

const (
	secret = "the-shared-external-id"
	role   = "arn:aws:iam::123456789012:role/SampleRole"
)

// production is a change that creates valid settings. Each service but "s" has a
// role and an external ID of its own.
func production(serviceID string) integration.Change {
	own := ""
	if serviceID != "s" {
		own = bucket.Directory(serviceID)
		own = own[strings.LastIndex(own, "-"):]
	}
	return integration.Change{
		ServiceID: serviceID, Bucket: new("alpha-prod-assets"), Region: new("ap-northeast-1"),
		RoleARN: new(role + own), ExternalID: new(secret + own), Prefix: new("media"), Actor: "operator",
	}
}

func environment(serviceID, environmentID, environmentServiceID string) integration.Change {
	change := production(serviceID)
	change.EnvironmentID, change.EnvironmentServiceID = environmentID, &environmentServiceID
	return change
}

func set(t testing.TB, store *integration.Store, change integration.Change) integration.Integration {
	t.Helper()
	saved, err := store.Set(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	return saved.Integration
}

func show(t testing.TB, store *integration.Store, serviceID, environmentID string) integration.Integration {
	t.Helper()
	shown, err := store.Show(t.Context(), serviceID, environmentID)
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

func exec(t testing.TB, db *database.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), db.SQL(query), args...); err != nil {
		t.Fatal(err)
	}
}

func get[T any](t testing.TB, db *database.DB, query string, args ...any) T {
	t.Helper()
	var value T
	if err := db.GetContext(t.Context(), &value, db.SQL(query), args...); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestSetCreatesSettingsAndThenChangesTheNamedFieldsOnly(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		change := environment("s", "staging", "s-staging")
		change.CustomDomain, change.PinFileNames, change.Memo = new("https://media.example.com/"), new(true), new("メモ\n2")
		change.DistributionID, change.CDNPrefix = new("E2EXAMPLE1ABCD"), new("/cdn/")
		change.BucketOwner = new("123456789012")
		saved, err := store.Set(t.Context(), change)
		if err != nil {
			t.Fatal(err)
		}
		want := integration.Integration{
			Settings: integration.Settings{
				ServiceID: "s", EnvironmentID: "staging", EnvironmentServiceID: "s-staging",
				Directory: bucket.Directory("s-staging"), Bucket: "alpha-prod-assets", Region: "ap-northeast-1",
				RoleARN: role, ExternalID: secret, Prefix: "media", CustomDomain: "https://media.example.com",
				PinFileNames: true, Memo: "メモ\n2", DistributionID: "E2EXAMPLE1ABCD", CDNPrefix: "cdn",
				BucketOwner: "123456789012",
			},
			State: integration.Active,
		}
		ignore := cmpopts.IgnoreFields(integration.Integration{}, "LaneID", "RowVersion", "CreatedAt", "UpdatedAt")
		if diff := cmp.Diff(want, saved.Integration, ignore); diff != "" || !saved.Created || saved.GeneratedExternalID != "" {
			t.Errorf("created: %t, generated: %t; -want +got\n%s", saved.Created, saved.GeneratedExternalID != "", diff)
		}

		saved, err = store.Set(t.Context(), integration.Change{ServiceID: "s", EnvironmentID: "staging", Memo: new("")})
		if err != nil || saved.Created {
			t.Fatalf("change the memo: created: %t, error: %v", saved.Created, err)
		}
		want.Memo = ""
		if diff := cmp.Diff(want, show(t, store, "s", "staging"), ignore); diff != "" {
			t.Errorf("after the change: -want +got\n%s", diff)
		}
		if audits := get[int](t, db, `SELECT count(*) FROM {audit} WHERE action = 'integration set'`); audits != 2 {
			t.Errorf("%d rows in the audit, want 2", audits)
		}
	})
}

func TestAnExternalIDIsMadeUpWhereNoneIsGivenAndTheTestedOutcomeIsSaved(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		change := production("s")
		change.ExternalID = nil
		preview, err := store.Preview(t.Context(), change)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Show(t.Context(), "s", ""); !errors.Is(err, integration.ErrNotFound) {
			t.Errorf("a preview must save nothing; Show: %v", err)
		}
		generated := preview.GeneratedExternalID
		if len(generated) < 32 || preview.Integration.ExternalID != generated {
			t.Errorf("generated external ID of %d characters, want at least 32, in the settings", len(generated))
		}

		change.Tested, change.ExternalID = &preview.Integration.Settings, &generated
		change.BucketOwner = new("123456789012") // which the test found out
		if saved := set(t, store, change); saved.ExternalID != generated {
			t.Error("the tested external ID wasn't saved")
		}

		change.Region = new("us-east-1")
		if _, err := store.Set(t.Context(), change); !errors.Is(err, integration.ErrChanged) {
			t.Errorf("an outcome that wasn't tested: %v, want ErrChanged", err)
		}
	})
}

func TestSkippingTheTestNeedsAReasonWhichIsKept(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		change := production("s")
		change.SkipTest = true
		for _, none := range []string{"", " \t\n"} {
			change.Reason = none
			if _, err := store.Set(t.Context(), change); err == nil {
				t.Errorf("reason %q given, and no error", none)
			}
		}
		change.Reason = "role follows tomorrow"
		if got := set(t, store, change).TestSkippedReason; got != change.Reason {
			t.Errorf("reason %q, want %q", got, change.Reason)
		}
		if got := set(t, store, production("s")).TestSkippedReason; got != "" {
			t.Errorf("reason %q after a tested change, want none", got)
		}
	})
}

func TestTheExternalIDIsInNoJSONErrorOrPrint(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		i := set(t, store, production("s"))
		encoded, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		bad := production("s")
		bad.ExternalID = new(secret + " ")
		_, err = store.Set(t.Context(), bad)
		if err == nil {
			t.Fatal("an external ID with a space was accepted")
		}
		saved := integration.Saved{Integration: i, GeneratedExternalID: secret}
		var out bytes.Buffer
		fmt.Fprintln(&out, string(encoded), err)
		slog.New(slog.NewTextHandler(&out, nil)).Info("settings", "integration", i, "settings", i.Settings, "saved", saved, "change", bad)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("settings", "integration", i, "settings", i.Settings, "saved", saved, "change", bad)
		for _, value := range []any{i, &i, i.Settings, &i.Settings, saved, &saved, bad, &bad, i.Account()} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
		}
		printed := out.String()
		if strings.Contains(printed, secret) || strings.Contains(printed, fmt.Sprintf("%x", secret)) {
			t.Errorf("the external ID shows in\n%s", printed)
		}
	})
}

func TestJSONHasTheContractsKeys(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		i := set(t, store, environment("s", "staging", "s-staging"))
		if err := store.Block(t.Context(), i.LaneID, "access_denied", "AssumeRole was denied"); err != nil {
			t.Fatal(err)
		}
		encoded, err := json.Marshal(show(t, store, "s", "staging"))
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(encoded, &got); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"blocked_since", "next_probe_at", "created_at", "updated_at"} {
			if text, _ := got[key].(string); !strings.HasSuffix(text, "Z") || !strings.Contains(text, "T") {
				t.Errorf("%s is %q, want RFC 3339 in UTC", key, text)
			}
			delete(got, key)
		}
		directory := bucket.Directory("s-staging")
		want := map[string]any{
			"service_id": "s", "environment_id": "staging", "environment_service_id": "s-staging",
			"directory": directory, "key_prefix": "media/" + directory + "/", "bucket": "alpha-prod-assets",
			"region": "ap-northeast-1", "role_arn": role, "external_id_set": true, "prefix": "media",
			"custom_domain": "", "pin_file_names": false, "memo": "", "distribution_id": "", "cdn_prefix": "",
			"state": "blocked", "blocked_code": "access_denied", "blocked_reason": "AssumeRole was denied",
			"waiting_events": 0.0, "locked": false,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
}

func TestListIsInOrderOfCreationAndLimited(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		empty, err := store.List(t.Context(), 10)
		if err != nil || empty == nil || len(empty) != 0 {
			t.Fatalf("an empty list: %v, %v; want an empty slice, so that its JSON is []", empty, err)
		}
		for _, service := range []string{"c", "a", "b"} {
			set(t, store, production(service))
		}
		for limit, want := range map[int][]string{0: {"c", "a", "b"}, 2: {"c", "a"}} {
			listed, err := store.List(t.Context(), limit)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range listed {
				got = append(got, i.ServiceID)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("limit %d: -want +got\n%s", limit, diff)
			}
		}
		for service, want := range map[string]bool{"a": true, "x": false} {
			if got, err := store.AnyOfService(t.Context(), service); got != want || err != nil {
				t.Errorf("AnyOfService(%q) = %t, %v; want %t", service, got, err, want)
			}
		}
	})
}

func TestWaitingEventsAreThoseNeitherFinishedNorDead(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		a, b := set(t, store, production("a")), set(t, store, production("b"))
		for _, state := range []string{"available", "running", "retryable", "completed", "dead", "discarded"} {
			publish(t, db, "a", "", &a.LaneID, state)
		}
		publish(t, db, "a", "", nil, "available")
		publish(t, db, "a", "elsewhere", nil, "available")
		publish(t, db, "b", "", &b.LaneID, "available")

		listed, err := store.List(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		got := []int64{listed[0].WaitingEvents, listed[1].WaitingEvents, show(t, store, "a", "").WaitingEvents}
		if diff := cmp.Diff([]int64{4, 1, 4}, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
}

func TestWithoutSettingsEverythingSaysSo(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		exec(t, db, `INSERT INTO {lanes} (service_id, environment_id) VALUES ('lane', '')`)
		for _, service := range []string{"lane", "nothing"} {
			_, shown := store.Show(t.Context(), service, "")
			for name, err := range map[string]error{
				"show":   shown,
				"pause":  store.Pause(t.Context(), service, "", "me", ""),
				"resume": store.Resume(t.Context(), service, "", "me", ""),
				"delete": store.Delete(t.Context(), service, "", "me", ""),
			} {
				if !errors.Is(err, integration.ErrNotFound) || !strings.Contains(err.Error(), service) {
					t.Errorf("%s of %s: %v, want ErrNotFound naming it", name, service, err)
				}
			}
		}
		lane := get[int64](t, db, `SELECT lane_id FROM {lanes} WHERE service_id = 'lane'`)
		if _, found, err := store.ByLane(t.Context(), db, lane); found || err != nil {
			t.Errorf("ByLane: %t, %v; want nothing", found, err)
		}
		if err := store.Block(t.Context(), lane, "denied", "denied"); err != nil {
			t.Errorf("block without settings: %v, want nothing to happen", err)
		}
		if get[bool](t, db, `SELECT held FROM {lanes} WHERE lane_id = ?`, lane) {
			t.Error("a lane without settings is held")
		}
	})
}

func TestAnEnvironmentGetsItsSourcesSettingsOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		source := set(t, store, production("s"))
		if err := store.Pause(t.Context(), "s", "", "me", "maintenance"); err != nil {
			t.Fatal(err)
		}
		exec(t, db, `INSERT INTO {lanes} (service_id, environment_id) VALUES ('s', 'staging')`)
		target := get[int64](t, db, `SELECT lane_id FROM {lanes} WHERE environment_id = 'staging'`)
		copySettings := func(environmentServiceID string) error {
			return db.Tx(t.Context(), func(tx *sqlx.Tx) error {
				return store.CopySettings(t.Context(), tx, source.LaneID, target, environmentServiceID)
			})
		}
		if err := copySettings("s-staging"); err != nil {
			t.Fatal(err)
		}
		got := show(t, store, "s", "staging")
		want := source.Settings
		want.EnvironmentID, want.EnvironmentServiceID = "staging", "s-staging"
		want.Directory = bucket.Directory("s-staging")
		if diff := cmp.Diff(want, got.Settings); diff != "" || got.State != integration.Active {
			t.Errorf("state %s, want active; -want +got\n%s", got.State, diff)
		}
		if got.StampServiceID() != "s-staging" || source.StampServiceID() != "s" {
			t.Errorf("stamps %q and %q, want each environment's own service ID", got.StampServiceID(), source.StampServiceID())
		}
		if got.Account().Prefix != "media" {
			t.Errorf("account's prefix %q: must be the integration's, without the directory", got.Account().Prefix)
		}

		if err := copySettings("another"); err != nil {
			t.Fatal(err)
		}
		if again := show(t, store, "s", "staging"); again.Directory != got.Directory {
			t.Errorf("directory %q, want %q: settings that exist are never overwritten", again.Directory, got.Directory)
		}
	})
}

func TestRemoveDropsSettingsWhateverDependsOnThem(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		i := set(t, store, environment("s", "staging", "s-staging"))
		if err := store.Block(t.Context(), i.LaneID, "denied", "denied"); err != nil {
			t.Fatal(err)
		}
		storeMedia(t, db, i.LaneID)
		remove := func(ctx context.Context) error {
			return db.Tx(ctx, func(tx *sqlx.Tx) error { return store.Remove(ctx, tx, i.LaneID) })
		}
		for range 2 { // a deletion may be run again
			if err := remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if get[bool](t, db, `SELECT held FROM {lanes} WHERE lane_id = ?`, i.LaneID) {
			t.Error("the lane is still held")
		}
	})
}

func TestTheBucketsOwnerIsForgottenWithTheBucket(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		i := set(t, store, production("s"))
		if err := store.SetOwner(t.Context(), i.LaneID, "my account"); err == nil {
			t.Error("an owner that is no account ID was recorded")
		}
		if err := store.SetOwner(t.Context(), i.LaneID, "123456789012"); err != nil {
			t.Fatal(err)
		}
		if owner := show(t, store, "s", "").BucketOwner; owner != "123456789012" {
			t.Errorf("owner %q", owner)
		}
		moved := set(t, store, integration.Change{ServiceID: "s", Bucket: new("another-bucket")})
		if moved.BucketOwner != "" {
			t.Errorf("owner %q of another bucket, want unknown", moved.BucketOwner)
		}
	})
}

// Each change is made by another process, which can't tell ours.
func TestReadsAreWithTheSettingsInForce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		ours, theirs := integration.New(db), integration.New(db)
		lane := set(t, theirs, production("s")).LaneID
		objects := ledger.New(db)
		// with returns the settings that the last read was with.
		with := func() (last integration.Integration, exists bool) {
			t.Helper()
			returned, exists, err := ours.With(t.Context(), lane, func(i integration.Integration) (int64, error) {
				last = i
				view, err := objects.View(t.Context(), lane, "media", i.Bucket, "key")
				return view.SettingsVersion, err
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(last, returned); exists && diff != "" {
				t.Errorf("what was read with isn't what is returned:\n%s", diff)
			}
			return last, exists
		}
		remove := func() error { return theirs.Delete(t.Context(), "s", "", "me", "") }
		apply := func(change integration.Change) func() error {
			return func() error { _, err := theirs.Set(t.Context(), change); return err }
		}
		moved := production("s")
		moved.Bucket = new("another-bucket")
		for _, step := range []struct {
			name   string
			change func() error
			gone   bool
		}{
			{"as they were", func() error { return nil }, false},
			{"memo", apply(integration.Change{ServiceID: "s", Memo: new("changed"), Actor: "me"}), false},
			{"owner", func() error { return theirs.SetOwner(t.Context(), lane, "123456789012") }, false},
			{"pause", func() error { return theirs.Pause(t.Context(), "s", "", "me", "") }, false},
			{"block", func() error { return theirs.Block(t.Context(), lane, "denied", "denied") }, false},
			{"resume", func() error { return theirs.Resume(t.Context(), "s", "", "me", "") }, false},
			{"delete", remove, true},
			{"create", apply(moved), false},
			{"replace", func() error { return errors.Join(remove(), apply(production("s"))()) }, false},
		} {
			with() // they are remembered
			if err := step.change(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			got, exists := with()
			if exists == step.gone {
				t.Errorf("%s: settings exist: %t", step.name, exists)
			}
			if step.gone {
				continue
			}
			want := show(t, theirs, "s", "")
			want.WaitingEvents, want.Locked = got.WaitingEvents, got.Locked
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", step.name, diff)
			}
		}
	})
}

func TestSettingsThatAreInForceAreNotReadAgain(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	store := integration.New(db)
	want := set(t, store, production("s"))
	read := func(i integration.Integration) (int64, error) { return i.RowVersion, nil }
	if _, ok, err := store.With(t.Context(), want.LaneID, read); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := db.Close(); err != nil { // no query is answered any more
		t.Fatal(err)
	}
	got, ok, err := store.With(t.Context(), want.LaneID, read)
	if !ok || err != nil || got.Settings != want.Settings {
		t.Errorf("got %+v, %t, %v", got.Settings, ok, err)
	}
}

// What comes between the settings' reading and their user's is heeded, too.
func TestSettingsThatChangeBeforeTheyAreUsedAreReadAgain(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	store, objects := integration.New(db), ledger.New(db)
	lane := set(t, store, production("s")).LaneID
	var pinned []bool
	_, _, err := store.With(t.Context(), lane, func(i integration.Integration) (int64, error) {
		if pinned = append(pinned, i.PinFileNames); len(pinned) == 1 {
			set(t, store, integration.Change{ServiceID: "s", PinFileNames: new(true)})
		}
		view, err := objects.View(t.Context(), lane, "media", i.Bucket, "key")
		return view.SettingsVersion, err
	})
	if diff := cmp.Diff([]bool{false, true}, pinned); diff != "" || err != nil {
		t.Errorf("pinned (-want +got):\n%s%v", diff, err)
	}
}
