package environment_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// modelMedia is what an environment should hold of a media.
type modelMedia struct {
	name, content string
	version       int64
}

// model is what should come of a history: its events, one after the other.
type model map[string]map[string]modelMedia // environment → media

func (m model) freeNames(environment string) []string {
	names := []string{"a.txt", "b+ c.txt", "写真.txt", "d%2F.txt", "e.txt", "f.txt"}
	for _, media := range m[environment] {
		names = slices.DeleteFunc(names, func(name string) bool { return name == media.name })
	}
	return names
}

func TestHistoriesEndAsIfOneEventRanAfterTheOther(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		open    func(testing.TB) *database.DB
		workers int
	}{
		{"sqlite", dbtest.SQLite, 1},
		{"postgresql", dbtest.PostgreSQL, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(check *rapid.T) {
				it := stage.NewIteration(t, check)
				defer it.End()
				h := &history{scene: newScene(it, c.open(it)), check: check, model: model{"": {}}}
				h.Config.RetryAttempts = 25
				h.Config.RetryBase = 2 * time.Millisecond
				for n := range c.workers {
					h.Config.Name = fmt.Sprint("worker ", n)
					h.Start()
				}
				if e, ok := h.upload(h.prod, h.model[""]); ok {
					h.publish(e)
				}
				for round := range rapid.IntRange(1, 4).Draw(check, "rounds") {
					h.round(round)
				}
				h.settle()
				h.verify()
			})
		})
	}
}

type history struct {
	*scene
	check *rapid.T
	model model
	// unsettled: events may be waiting for a retry, and a deletion would
	// supersede them.
	unsettled bool
}

func (h *history) round(round int) {
	faulty := rapid.Bool().Draw(h.check, "faulty")
	if faulty {
		h.faults()
		h.unsettled = true
	}
	var batch []at
	for range rapid.IntRange(1, 10).Draw(h.check, "events") {
		if e, ok := h.event(); ok {
			batch = append(batch, e)
		}
		if rapid.IntRange(0, 3).Draw(h.check, "commit") == 0 && len(batch) > 0 {
			h.publish(batch...)
			batch = nil
		}
	}
	if len(batch) > 0 {
		h.publish(batch...)
	}
	if rapid.Bool().Draw(h.check, "settle") {
		h.settle()
		if round == 0 {
			h.verify()
		}
	}
}

// faults makes calls fail before or after their effect, for a while.
func (h *history) faults() {
	for range rapid.IntRange(1, 4).Draw(h.check, "faults") {
		h.AWS.Inject(awslocal.Rule{
			API:         rapid.SampledFrom([]string{"s3:CopyObject", "s3:PutObject", "s3:DeleteObject*", "s3:ListObjectsV2", "s3:HeadObject"}).Draw(h.check, "api"),
			Skip:        rapid.IntRange(0, 5).Draw(h.check, "skip"),
			Times:       rapid.IntRange(1, 3).Draw(h.check, "times"),
			AfterEffect: rapid.Bool().Draw(h.check, "after effect"),
			Status:      409, Code: "OperationAborted",
		})
	}
}

// event draws an event that the CMS could publish, and has the model do it.
func (h *history) event() (at, bool) {
	environments := slices.Sorted(maps.Keys(h.model))
	environment := rapid.SampledFrom(environments).Draw(h.check, "environment")
	place := h.prod.In(environment)
	media := h.model[environment]
	switch rapid.SampledFrom([]string{"upload", "upload", "rename", "delete", "create", "create", "remove"}).Draw(h.check, "event") {
	case "upload":
		return h.upload(place, media)
	case "rename":
		if len(media) == 0 || len(h.model.freeNames(environment)) == 0 {
			return at{}, false
		}
		id := rapid.SampledFrom(slices.Sorted(maps.Keys(media))).Draw(h.check, "media")
		to := rapid.SampledFrom(h.model.freeNames(environment)).Draw(h.check, "to")
		e := h.Rename(id, media[id].name, to)
		media[id] = modelMedia{to, media[id].content, e.Version.Micros()}
		return at{place, e}, true
	case "delete":
		if len(media) == 0 {
			return at{}, false
		}
		id := rapid.SampledFrom(slices.Sorted(maps.Keys(media))).Draw(h.check, "media")
		e := h.Delete(id, media[id].name)
		delete(media, id)
		return at{place, e}, true
	case "create":
		return h.create(place, media)
	default:
		if environment == "" || h.unsettled {
			return at{}, false
		}
		delete(h.model, environment)
		return at{place, deleted()}, true
	}
}

func (h *history) upload(place *stage.Place, media map[string]modelMedia) (at, bool) {
	id := rapid.SampledFrom([]string{"m1", "m2", "m3", "m4"}).Draw(h.check, "media")
	names := h.model.freeNames(place.Environment)
	if had, ok := media[id]; ok {
		names = append(names, had.name)
	}
	if len(names) == 0 {
		return at{}, false
	}
	e := h.Upload(id, rapid.SampledFrom(names).Draw(h.check, "name"), "")
	e = h.withContent(e)
	e.PreviousFileName = media[id].name
	media[id] = modelMedia{e.FileName, e.Source, e.Version.Micros()}
	return at{place, e}, true
}

// withContent makes the content tell the upload: it is the source's name.
func (h *history) withContent(e events.MediaUploaded) events.MediaUploaded {
	h.PutFile(e.Source, e.Source)
	size := int64(len(e.Source))
	e.Size, e.ChecksumSHA256 = &size, ""
	return e
}

func (h *history) create(source *stage.Place, media map[string]modelMedia) (at, bool) {
	names := slices.DeleteFunc([]string{"dev", "stg"}, func(name string) bool { return h.model[name] != nil })
	if len(names) == 0 {
		return at{}, false
	}
	name := rapid.SampledFrom(names).Draw(h.check, "new environment")
	h.model[name] = maps.Clone(media)
	return at{h.prod.In(name), created(name, source.Environment)}, true
}

func (h *history) settle() {
	h.Await("everything to end", func() bool {
		var left int
		h.get(&left, `SELECT (SELECT count(*) FROM {outbox} WHERE state IN ('available', 'running', 'retryable'))
			+ (SELECT count(*) FROM {copy_items} WHERE state IN ('owed', 'waiting'))`)
		return left == 0
	})
	h.AWS.ClearFaults()
	h.unsettled = false
}

// told is the history as it went.
func (h *history) told() string {
	var lines []string
	if err := h.DB.Select(&lines, h.DB.SQL(`SELECT sequence || ' ' || environment_id || ' ' || type || ' ' || CAST(data AS text) || ' ' ||
		state || ' ' || coalesce(outcome, error) || ' began ' || coalesce(started_at, 0) || ' ended ' || finished_at || ' ' ||
		coalesce((SELECT max(a.error) FROM {attempts} a WHERE a.sequence = o.sequence), '') FROM {outbox} o ORDER BY sequence`)); err != nil {
		return err.Error()
	}
	return strings.Join(lines, "\n")
}

// verify compares bucket, metadata and ledger with the model.
func (h *history) verify() {
	var bad []stage.Event
	if err := h.DB.Select(&bad, h.DB.SQL(`SELECT sequence, type, state, outcome, error_code, error FROM {outbox} WHERE state <> 'completed'`)); err != nil {
		h.check.Fatal(err)
	}
	if len(bad) > 0 {
		h.check.Fatalf("events that didn't complete: %+v\n%s", bad, h.told())
	}
	contents, versions := map[string]string{}, map[string]string{}
	ledger := map[string]string{}
	for name, media := range h.model {
		prefix, id := "media/", service
		if name != "" {
			prefix, id = directory(name), serviceID(name)
		}
		for mediaID, m := range media {
			key := prefix + m.name
			contents[key] = m.content
			versions[key] = id + " " + time.UnixMicro(m.version).UTC().Format("20060102150405")
			ledger[name+" "+mediaID] = fmt.Sprintf("%s %d %d", key, m.version, len(m.content))
		}
	}
	stamps := map[string]string{}
	for _, o := range h.AWS.Objects(store) {
		stamps[o.Key] = o.Metadata["microcms-service"] + " " + o.Metadata["microcms-version"]
	}
	recorded := map[string]string{}
	rows, err := h.DB.Query(h.DB.SQL(`SELECT l.environment_id || ' ' || m.media_id, m.object_key || ' ' || m.version || ' ' || m.size
		FROM {media_objects} m JOIN {lanes} l ON l.lane_id = m.lane_id WHERE m.object_key IS NOT NULL`))
	if err != nil {
		h.check.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var key, value string
		if err := rows.Scan(&key, &value); err != nil {
			h.check.Fatal(err)
		}
		recorded[key] = value
	}
	_ = rows.Close()
	for what, diff := range map[string]string{
		"bucket":   cmp.Diff(contents, h.prod.Contents()),
		"metadata": cmp.Diff(versions, stamps),
		"ledger":   cmp.Diff(ledger, recorded),
	} {
		if diff != "" {
			h.check.Errorf("%s (-want +got):\n%s\n%s", what, diff, h.told())
		}
	}
}
