package migrations_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/internal/stage"
	"github.com/ownbucket/ownbucket/migrations"
)

// direct is the version of the tables since which events are in their lanes as they
// are published.
var direct = map[database.Dialect]int64{database.PostgreSQL: 9, database.SQLite: 8}

// eachVersion runs the test for each version of the tables before that, on a
// database that has no tables yet.
func eachVersion(t *testing.T, test func(t *testing.T, db *database.DB, version int64)) {
	t.Helper()
	t.Parallel()
	for dialect, empty := range map[string]func(t testing.TB) string{
		"sqlite":     func(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "empty.db") },
		"postgresql": pgtest.URL,
	} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			known, err := migrations.Status(t.Context(), dbtest.Open(t, empty(t)))
			if err != nil {
				t.Fatal(err)
			}
			for _, migration := range known {
				if migration.Version >= direct[database.Dialect(dialect)] {
					break
				}
				t.Run(migration.Name, func(t *testing.T) {
					t.Parallel()
					test(t, dbtest.Open(t, empty(t)), migration.Version)
				})
			}
		})
	}
}

func TestAWorkerFinishesWhatAnOlderProgramLeft(t *testing.T) {
	eachVersion(t, func(t *testing.T, db *database.DB, version int64) {
		if err := migrations.UpTo(t.Context(), db, version); err != nil {
			t.Fatal(err)
		}
		o := newOlder(t, db, version)
		o.leave()
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		o.finish()
	})
}

// What the older program makes of it is that program's; it is upgraded again.
func TestAWorkerFinishesWhatWasTakenBackToAnOlderProgram(t *testing.T) {
	eachVersion(t, func(t *testing.T, db *database.DB, version int64) {
		if version < 2 {
			return // which drops the ledger
		}
		before := direct[db.Dialect] - 1
		if err := migrations.UpTo(t.Context(), db, before); err != nil {
			t.Fatal(err)
		}
		o := newOlder(t, db, before)
		o.leave()
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		if err := migrations.DownTo(t.Context(), db, version); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		o.finish()
	})
}

func TestAllMigrationsCanBeTakenBack(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if err := migrations.DownTo(t.Context(), db, 0); err != nil {
			t.Fatal(err)
		}
		query := `SELECT count(*) FROM pg_class WHERE relnamespace = 'ownbucket'::regnamespace AND relname NOT LIKE 'schema_migrations%'`
		if db.Dialect == database.SQLite {
			query = `SELECT count(*) FROM sqlite_master WHERE tbl_name NOT LIKE 'schema_migrations%' AND tbl_name NOT LIKE 'sqlite_%'`
		}
		var left int
		if err := db.GetContext(t.Context(), &left, query); err != nil || left > 0 {
			t.Errorf("%d tables and indexes are left, %v", left, err)
		}
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Error(err)
		}
	})
}

// older is an installation of a program that knew migrations up to a version.
type older struct {
	*stage.Place
	t       *testing.T
	version int64
	account awslocal.Customer
	first   events.MediaUploaded
	stored  awslocal.Object // what the first upload made
	events  []string        // IDs, by sequence
	want    []string        // how they end
}

const (
	service, customer = "SERVICE#1", "customer-bucket"
	prod, dev         = 1, 2 // lanes
	pendingAt         = 13   // the sequence of stg's creation
)

func newOlder(t *testing.T, db *database.DB, version int64) *older {
	t.Helper()
	s := stage.New(t, db)
	o := &older{t: t, version: version, Place: &stage.Place{Stage: s, Service: service, Bucket: customer, Prefix: "media"}}
	var err error
	if o.account, err = s.AWS.AddCustomer(awslocal.Customer{Bucket: customer, Region: stage.Region, Prefix: "media",
		Options: awslocal.BucketOptions{Region: stage.Region}}); err != nil {
		t.Fatal(err)
	}
	o.first = s.Upload("m1", "a.txt", "m1")
	if o.stored, err = s.AWS.PutDirect(customer, "media/a.txt", []byte("m1"), awslocal.Stranger{ContentType: "text/plain",
		Metadata: map[string]string{"upload-source": "microcms", "microcms-service": service, "microcms-status": "public",
			"microcms-version": bucket.FormatVersion(o.first.Version.Micros())}}); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *older) exec(query string, args ...any) {
	o.t.Helper()
	if _, err := o.DB.ExecContext(o.t.Context(), o.DB.SQL(query), args...); err != nil {
		o.t.Fatalf("%s: %v", query, err)
	}
}

// event leaves an event with the next sequence. Assigned ones stand in the lane and
// have what set says; holds makes it hold others back.
func (o *older) event(lane int, environment string, e events.Event, set string, holds bool, end string) {
	o.t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		o.t.Fatal(err)
	}
	id, sequence := uuid.NewString(), len(o.events)+1
	o.events, o.want = append(o.events, id), append(o.want, end)
	o.exec(`INSERT INTO {outbox} (sequence, event_id, type, service_id, environment_id, data) VALUES (?, ?, ?, ?, ?, ?)`,
		sequence, id, e.Type(), service, environment, string(data))
	if lane == 0 {
		return
	}
	resources := []string{"*"}
	if e.Media() != "" {
		resources = []string{"m:" + e.Media()}
		o.exec(`UPDATE {outbox} SET media_id = ? WHERE sequence = ?`, e.Media(), sequence)
	}
	for _, name := range e.FileNames() {
		resources = append(resources, "n:"+name)
	}
	encoded, err := json.Marshal(resources)
	if err != nil {
		o.t.Fatal(err)
	}
	o.exec(`UPDATE {outbox} SET lane_id = ?, version = ?, resources = ? WHERE sequence = ?`,
		lane, o.first.Version.Micros()+int64(sequence), string(encoded), sequence)
	if set != "" {
		o.exec(`UPDATE {outbox} SET `+set+` WHERE sequence = ?`, sequence)
	}
	if !holds {
		return
	}
	o.exec(`UPDATE {outbox} SET holding = true WHERE sequence = ?`, sequence)
	for _, resource := range resources {
		o.exec(`INSERT INTO {holds} (lane_id, resource, sequence) VALUES (?, ?, ?)`, lane, resource, sequence)
	}
}

// leave leaves events in every state and, where the tables had them, copies and
// items in every state.
func (o *older) leave() {
	o.t.Helper()
	o.exec(`INSERT INTO {lanes} (lane_id, service_id, environment_id, leased_by, leased_until, lease_token, read_from, last_sequence)
		VALUES (1, ?, '', 'a worker that died', 0, 7, 5, 15)`, service)
	for lane, environment := range []string{2: "dev", 3: "stg", 4: "qa", 5: "gone"} {
		if environment != "" {
			o.exec(`INSERT INTO {lanes} (lane_id, service_id, environment_id) VALUES (?, ?, ?)`, lane, service, environment)
		}
	}
	upload := func(media, name string) events.Event { return o.Upload(media, name, media) }
	o.event(prod, "", o.first, `state = 'completed', outcome = 'done', finished_at = 1, attempt_count = 1`, false, "completed done")
	o.event(prod, "", upload("m2", "b.txt"), `state = 'running'`, false, "completed done")
	o.event(prod, "", upload("m3", "c.txt"), `state = 'retryable', parked = true, next_attempt_at = 1, attempt_count = 1, failure_count = 1`,
		true, "completed done")
	o.event(prod, "", o.Rename("m3", "c.txt", "c2.txt"), `parked = true`, true, "completed done")
	o.event(prod, "", upload("m4", "d.txt"), `requeued = true`, false, "completed done")
	o.event(prod, "", upload("m5", "e.txt"), ``, true, "completed done")
	o.event(prod, "", upload("m6", "f.txt"), `state = 'dead', finished_at = 1, error_class = 'permanent', error_code = 'source_gone'`,
		false, "dead source_gone")
	o.event(prod, "", upload("m7", "g.txt"), `state = 'discarded', finished_at = 1`, false, "discarded")
	o.event(0, "", upload("m8", "h.txt"), ``, false, "completed done")
	o.event(prod, "", upload("m9", "i.txt"), ``, false, "completed done")
	o.event(prod, "", o.Rename("m9", "i.txt", "i2.txt"), ``, false, "completed done")
	if o.version > 1 {
		o.leaveCopies()
	}
	o.event(prod, "", upload("m13", "z.txt"), ``, false, "completed done")
	if o.DB.Dialect == database.PostgreSQL {
		o.exec(`SELECT setval('ownbucket.outbox_sequence_seq', ?)`, len(o.events))
	}
}

// leaveCopies leaves one copy that runs, one whose snapshot is due, one that waits
// for its event, and a deletion.
func (o *older) leaveCopies() {
	o.t.Helper()
	create := func(name string) events.Event {
		return events.EnvironmentCreated{SourceEnvironmentID: "", EnvironmentServiceID: "service-" + name}
	}
	o.event(dev, "dev", create("dev"), `state = 'completed', outcome = 'done', finished_at = 1`, false, "completed done")
	o.event(3, "stg", create("stg"), ``, false, "completed done")
	o.event(4, "qa", create("qa"), ``, false, "completed done")
	o.event(5, "gone", events.EnvironmentDeleted{}, `state = 'retryable', parked = true, next_attempt_at = 1`, true, "completed skipped")
	o.exec(`UPDATE {lanes} SET gate_sequence = ?, snapshot_sequence = 12 WHERE lane_id = 1`, pendingAt)
	o.exec(`INSERT INTO {media_objects} (lane_id, media_id, version, sequence, bucket, object_key, content_type, size, etag, updated_at)
		VALUES (1, 'm1', ?, 1, ?, 'media/a.txt', 'text/plain', 2, ?, 1)`, o.first.Version.Micros(), customer, o.stored.ETag)
	for _, c := range []struct {
		sequence, lane int
		state          string
	}{{12, dev, "active"}, {pendingAt, 3, "pending"}, {14, 4, "planned"}} {
		o.exec(`INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
			VALUES (?, 1, ?, ?, ?, 1)`, c.sequence, c.lane, "service-"+[]string{2: "dev", 3: "stg", 4: "qa"}[c.lane], c.state)
	}
	for _, i := range []struct {
		sequence, lane int
		media, state   string
	}{
		{12, dev, "m1", "owed"}, {12, dev, "m2", "waiting"}, {12, dev, "m3", "waiting"}, {12, dev, "m20", "done"},
		{12, dev, "m21", "failed"}, {12, dev, "m22", "cancelled"}, {12, dev, "m23", "waiting"}, {14, 4, "m1", "owed"},
	} {
		key, etag, name := "", "", ""
		if i.state != "waiting" {
			key, etag, name = "media/a.txt", o.stored.ETag, "a.txt"
		}
		o.exec(`INSERT INTO {copy_items} (copy_sequence, media_id, source_lane, target_lane, source_bucket, source_key, source_etag,
			file_name, version, content_type, size, state) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, 'text/plain', 2, ?)`,
			i.sequence, i.media, i.lane, customer, key, etag, name, o.first.Version.Micros(), i.state)
	}
	if o.version >= map[database.Dialect]int64{database.PostgreSQL: 5, database.SQLite: 6}[o.DB.Dialect] {
		o.exec(`UPDATE {lanes} SET emptying_sequence = 15 WHERE lane_id = 5`)
	}
}

// finish runs a worker of this program, and expects what should come of all that.
func (o *older) finish() {
	o.t.Helper()
	bucketName, prefix, region := customer, "media", stage.Region
	settings := integration.Change{Bucket: &bucketName, Region: &region, Prefix: &prefix,
		RoleARN: &o.account.RoleARN, ExternalID: &o.account.ExternalID}
	o.Set(settings)
	id := "service-dev"
	settings.EnvironmentServiceID = &id
	o.In("dev").Set(settings)
	o.Work()

	var got []string
	for _, id := range o.events {
		got = append(got, o.Event(id).String())
	}
	if diff := cmp.Diff(o.want, got); diff != "" {
		o.t.Errorf("events (-want +got):\n%s\n%s", diff, o.Dump())
	}
	want := map[string]string{"media/a.txt": "m1", "media/b.txt": "m2", "media/c2.txt": "m3", "media/d.txt": "m4",
		"media/e.txt": "m5", "media/h.txt": "m8", "media/i2.txt": "m9", "media/z.txt": "m13"}
	if o.version > 1 {
		directory := func(name string) string { return "media/" + bucket.Directory("service-"+name) + "/" }
		want[directory("qa")+"a.txt"] = "m1"
		for name, content := range map[string]string{"a.txt": "m1", "b.txt": "m2", "c2.txt": "m3"} {
			want[directory("dev")+name] = content
		}
		for name, content := range map[string]string{"a.txt": "m1", "b.txt": "m2", "c2.txt": "m3", "d.txt": "m4",
			"e.txt": "m5", "h.txt": "m8", "i2.txt": "m9"} {
			want[directory("stg")+name] = content
		}
	}
	if diff := cmp.Diff(want, o.Contents()); diff != "" {
		o.t.Errorf("bucket (-want +got):\n%s\n%s", diff, o.Dump())
	}
	var items []string
	if err := o.DB.SelectContext(o.t.Context(), &items, o.DB.SQL(`SELECT media_id || ' ' || state FROM {copy_items}
		WHERE copy_sequence = 12 ORDER BY media_id`)); err != nil {
		o.t.Fatal(err)
	}
	var wantItems []string
	if o.version > 1 {
		wantItems = []string{"m1 done", "m2 done", "m20 done", "m21 failed", "m22 failed", "m23 failed", "m3 done"}
	}
	if diff := cmp.Diff(wantItems, items); diff != "" {
		o.t.Errorf("items (-want +got):\n%s", diff)
	}
	for _, left := range []string{`{lanes} WHERE leased_by IS NOT NULL`, `{holds}`, `{copies} WHERE state <> 'ended'`,
		`{copy_waits}`, `{copy_names}`, `{outbox} WHERE parked OR requeued OR holding`} {
		var n int
		if err := o.DB.GetContext(o.t.Context(), &n, o.DB.SQL(`SELECT count(*) FROM `+left)); err != nil || n > 0 {
			o.t.Errorf("%d left of %s, %v", n, left, err)
		}
	}
}
