package outbox_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// list maps the events that match to the states that operators see, in order.
func (w *world) list(filter outbox.Filter) []string {
	w.T.Helper()
	listed, err := w.Store.List(w.T.Context(), filter, 0)
	if err != nil {
		w.T.Fatal(err)
	}
	seen := []string{}
	for _, e := range listed {
		seen = append(seen, e.MediaID+" "+e.State)
	}
	return seen
}

// dataOf is the payload that only the event of a media has.
func (w *world) dataOf(media string) string {
	w.T.Helper()
	data, err := json.Marshal(outboxtest.Touch(media))
	if err != nil {
		w.T.Fatal(err)
	}
	return string(data)
}

// crowd has a media in every state; those of S2 are in a lane that is held.
func (w *world) crowd() {
	w.T.Helper()
	w.Publish("S1", outboxtest.Touch("available"), outboxtest.Touch("running"), outboxtest.Touch("retryable"), outboxtest.Touch("completed"), outboxtest.Touch("dead"), outboxtest.Touch("discarded"))
	w.Publish("S2", outboxtest.Touch("held"), outboxtest.Touch("held-retryable"), outboxtest.Touch("dead-there"))
	w.PublishIn("S2", "staging", outboxtest.Touch("elsewhere"))
	w.Want()
	// A worker has written these.
	for media, state := range map[string]string{"running": "running", "retryable": "retryable", "completed": "completed",
		"dead": "dead", "discarded": "discarded", "held-retryable": "retryable", "dead-there": "dead"} {
		w.Exec(`UPDATE {outbox} SET state = ?, media_id = ? WHERE CAST(data AS text) = ?`, state, media, w.dataOf(media))
	}
	w.Exec(`UPDATE {outbox} SET error_class = 'permanent', error_code = 'key_taken' WHERE media_id = 'dead-there'`)
	w.Exec(`UPDATE {lanes} SET held = true WHERE service_id = 'S2' AND environment_id = ''`)
}

func TestListShowsWhatMatchesInPublishOrder(t *testing.T) {
	production, staging := "", "staging"
	each(t, func(w *world) {
		w.crowd()
		for _, c := range []struct {
			name   string
			filter outbox.Filter
			want   []string
		}{
			{"nothing given", outbox.Filter{}, []string{"available available", "running running", "retryable retryable",
				"completed completed", "dead dead", "discarded discarded", "held held", "held-retryable held",
				"dead-there dead", "elsewhere available"}},
			{"held", outbox.Filter{States: []string{"held"}}, []string{"held held", "held-retryable held"}},
			{"available leaves out held", outbox.Filter{States: []string{"available"}}, []string{"available available", "elsewhere available"}},
			{"retryable leaves out held", outbox.Filter{States: []string{"retryable"}}, []string{"retryable retryable"}},
			{"several states", outbox.Filter{States: []string{"dead", "held"}, ServiceID: "S2"},
				[]string{"held held", "held-retryable held", "dead-there dead"}},
			{"production", outbox.Filter{ServiceID: "S2", EnvironmentID: &production}, []string{"held held", "held-retryable held", "dead-there dead"}},
			{"an environment", outbox.Filter{EnvironmentID: &staging}, []string{"elsewhere available"}},
			{"a media", outbox.Filter{MediaID: "dead"}, []string{"dead dead"}},
			{"an error code", outbox.Filter{ErrorCode: "key_taken"}, []string{"dead-there dead"}},
			{"an error class of another service", outbox.Filter{ErrorClass: "permanent", ServiceID: "S1"}, []string{}},
			{"a type that none has", outbox.Filter{Type: "MediaUploaded"}, []string{}},
			{"an ID that isn't one", outbox.Filter{EventIDs: []string{"x"}}, []string{}},
		} {
			if diff := cmp.Diff(c.want, w.list(c.filter)); diff != "" {
				w.T.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
	})
}

func TestListEndsAtItsLimit(t *testing.T) {
	each(t, func(w *world) {
		sequences := w.Publish("S1", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("c"))
		listed, err := w.Store.List(w.T.Context(), outbox.Filter{}, 2)
		if err != nil {
			w.T.Fatal(err)
		}
		if len(listed) != 2 || listed[0].Sequence != sequences[0] || listed[1].Sequence != sequences[1] {
			w.T.Errorf("listed %+v of %v", listed, sequences)
		}
	})
}

func TestStatsCountEveryStateAndTheOldestWait(t *testing.T) {
	each(t, func(w *world) {
		empty, err := w.Store.Stats(w.T.Context())
		if err != nil {
			w.T.Fatal(err)
		}
		want := outbox.Stats{Events: map[string]int64{"available": 0, "running": 0, "retryable": 0, "held": 0,
			"completed": 0, "dead": 0, "discarded": 0}}
		if diff := cmp.Diff(want, empty); diff != "" {
			w.T.Errorf("nothing published (-want +got):\n%s", diff)
		}

		w.crowd()
		w.Publish("S3", outboxtest.Touch("of a lane that doesn't exist yet"))
		// Held for longest, but no lag: it waits for the customer.
		w.Exec(`UPDATE {outbox} SET created_at = created_at - 3600000000 WHERE CAST(data AS text) = ?`, w.dataOf("held"))
		w.Exec(`UPDATE {outbox} SET created_at = created_at - 60000000 WHERE CAST(data AS text) = ?`, w.dataOf("available"))
		stats, err := w.Store.Stats(w.T.Context())
		if err != nil {
			w.T.Fatal(err)
		}
		want.Events = map[string]int64{"available": 3, "running": 1, "retryable": 1, "held": 2, "completed": 1,
			"dead": 2, "discarded": 1}
		if diff := cmp.Diff(want.Events, stats.Events); diff != "" {
			w.T.Errorf("events (-want +got):\n%s", diff)
		}
		if stats.OldestAvailableSeconds < 60 || stats.OldestAvailableSeconds > 600 {
			w.T.Errorf("the oldest available event waits %v s, want a minute", stats.OldestAvailableSeconds)
		}
	})
}

// idOf is the event ID of a sequence.
func (w *world) idOf(sequence int64) string {
	w.T.Helper()
	return outboxtest.One[string](w.World, `SELECT CAST(event_id AS text) FROM {outbox} WHERE sequence = ?`, sequence)
}

func TestShowTellsEveryAttempt(t *testing.T) {
	each(t, func(w *world) {
		sequences := w.Publish("S1", outboxtest.Touch("failed"), outboxtest.Touch("done"), outboxtest.Touch("waiting"))
		w.Want()
		w.Exec(`INSERT INTO {attempts} (sequence, number, started_at, duration_us, worker, error_class, error_code, error, aws_request_id)
			VALUES (?, 1, 1750000000000000, 1500, 'w1', 'transient', 'timeout', 'too slow', 'REQ1'),
				(?, 2, 1750000001000000, 2000, 'w2', NULL, NULL, NULL, NULL)`, sequences[0], sequences[0])
		w.Exec(`UPDATE {outbox} SET started_at = 1750000000000000, duration_us = 2500, worker = 'w1' WHERE sequence = ?`, sequences[1])

		var got [][]outbox.Attempt
		for _, sequence := range sequences {
			shown, err := w.Store.Show(w.T.Context(), strings.ToUpper(w.idOf(sequence)))
			if err != nil {
				w.T.Fatal(err)
			}
			got = append(got, shown.Attempts)
		}
		encoded, err := json.Marshal(got)
		if err != nil {
			w.T.Fatal(err)
		}
		want := `[[{"number":1,"started_at":"2025-06-15T15:06:40Z","duration_ms":1.5,"worker":"w1","error_class":"transient",` +
			`"error_code":"timeout","error":"too slow","aws_request_id":"REQ1"},` +
			`{"number":2,"started_at":"2025-06-15T15:06:41Z","duration_ms":2,"worker":"w2"}],` +
			`[{"number":1,"started_at":"2025-06-15T15:06:40Z","duration_ms":2.5,"worker":"w1"}],[]]`
		if diff := cmp.Diff(want, string(encoded)); diff != "" {
			w.T.Error(diff)
		}
	})
}

func TestShowKnowsNoOtherEvents(t *testing.T) {
	each(t, func(w *world) {
		for _, id := range []string{uuid.NewString(), "x", ""} {
			if _, err := w.Store.Show(w.T.Context(), id); !errors.Is(err, outbox.ErrNotFound) {
				w.T.Errorf("show %q: %v", id, err)
			}
		}
	})
}

func TestShowHidesSecretsOfEveryString(t *testing.T) {
	each(t, func(w *world) {
		for _, c := range []struct{ data, want string }{
			{`{"source":"https://cms.example/a.txt?X-Amz-Signature=secret"}`, `{"source":"https://cms.example/a.txt?REDACTED"}`},
			{`{"source":"http://user:secret@cms.example/a.txt"}`, `{"source":"http://REDACTED@cms.example/a.txt"}`},
			{`{"source":"ftp://user:secret@cms.example/a.txt"}`, `{"source":"ftp://REDACTED@cms.example/a.txt"}`},
			{`{"source":"//cms.example/a.txt?sig=secret"}`, `{"source":"//cms.example/a.txt?REDACTED"}`},
			{`{"source":"wss://cms.example/a.txt?token=secret"}`, `{"source":"wss://cms.example/a.txt?REDACTED"}`},
			{`{"source":"https://cms.example/a.txt#secret"}`, `{"source":"https://cms.example/a.txt#REDACTED"}`},
			{`{"source":"https:\/\/cms.example\/a.txt\u003ft=secret"}`, `{"source":"https://cms.example/a.txt?REDACTED"}`},
			{`{"source":"https%3A%2F%2Fcms.example%2Fa.txt%3Ft%3Dsecret"}`, `{"source":"https://cms.example/a.txt?REDACTED"}`},
			{`{"source":"{\"url\":\"ftp://user:secret@cms.example\"}"}`, `{"source":"{\"url\":\"ftp://REDACTED@cms.example\"}"}`},
			{`{"ftp://user:secret@cms.example":[{"note":["//cms.example?secret"]}]}`,
				`{"ftp://REDACTED@cms.example":[{"note":["//cms.example?REDACTED"]}]}`},
			{`{"source":"https://cms.example/a.txt?secret","source":"file:x"}`,
				`{"source":"https://cms.example/a.txt?REDACTED","source":"file:x"}`},
			{`{"file_name":"what?.txt","source":"file:media/a@2x.png"}`, `{"file_name":"what?.txt","source":"file:media/a@2x.png"}`},
			{`{"source":7}`, `{"source":7}`},
			{`["https://cms.example"]`, `["https://cms.example"]`},
			{`"\u0000"`, `"\u0000"`},
		} {
			sequence := w.InsertRaw(w.DB, "S1", "", "MediaUploaded", c.data)
			w.Exec(`UPDATE {outbox} SET metadata = data WHERE sequence = ?`, sequence)
			shown, err := w.Store.Show(w.T.Context(), w.idOf(sequence))
			if err != nil {
				w.T.Fatal(err)
			}
			if diff := cmp.Diff([]string{c.want, c.want}, []string{string(shown.Data), string(shown.Metadata)}); diff != "" {
				w.T.Errorf("%s: %s", c.data, diff)
			}
		}
	})
}

func TestWhatNoWorkerHasSeenYetIsListedAsWhatItIs(t *testing.T) {
	each(t, func(w *world) {
		w.Publish("S1", outboxtest.Touch("first"))
		w.Want()
		w.Exec(`UPDATE {lanes} SET held = true`)
		w.Publish("S1", outboxtest.Touch("waits"), outboxtest.Touch("other"))
		w.Publish("S2", outboxtest.Touch("waits"))
		for _, c := range []struct {
			name   string
			filter outbox.Filter
			want   []string
		}{
			{"nothing given", outbox.Filter{}, []string{"first held", "waits held", "other held", "waits available"}},
			{"held", outbox.Filter{States: []string{"held"}}, []string{"first held", "waits held", "other held"}},
			{"available", outbox.Filter{States: []string{"available"}}, []string{"waits available"}},
			{"a media", outbox.Filter{MediaID: "waits"}, []string{"waits held", "waits available"}},
			{"a media of a service", outbox.Filter{MediaID: "waits", ServiceID: "S2"}, []string{"waits available"}},
		} {
			if diff := cmp.Diff(c.want, w.list(c.filter)); diff != "" {
				w.T.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
		shown, err := w.Store.Show(w.T.Context(), w.idOf(2))
		if err != nil || shown.MediaID != "waits" || shown.State != outbox.Held {
			w.T.Errorf("shown is %+v, %v", shown.Listed, err)
		}
		cut, err := w.Store.List(w.T.Context(), outbox.Filter{MediaID: "waits"}, 1)
		if err != nil || len(cut) != 1 || cut[0].ServiceID != "S1" {
			w.T.Errorf("at most one of the media: %+v, %v", cut, err)
		}
		stats, err := w.Store.Stats(w.T.Context())
		if err != nil || stats.Events[outbox.Held] != 3 || stats.Events[outbox.Available] != 1 {
			w.T.Errorf("stats are %+v, %v", stats, err)
		}
	})
}

// PostgreSQL takes JSON that is nested more deeply than Go reads it.
func TestWhatIsNestedTooDeeplyIsShownAsText(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	data := `{"a":` + strings.Repeat(`[`, 10_001) + strings.Repeat(`]`, 10_001) + `}`
	shown, err := w.Store.Show(t.Context(), w.idOf(w.InsertRaw(w.DB, "S1", "", "MediaUploaded", data)))
	if err != nil {
		t.Fatal(err)
	}
	var text string
	if err := json.Unmarshal(shown.Data, &text); err != nil || text != data {
		t.Errorf("shown as %.40s…: %v", shown.Data, err)
	}
	if _, err := json.Marshal(shown); err != nil {
		t.Error(err)
	}
}
