package outbox_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// refusing is a handler that completes what can be understood.
func refusing(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
	if _, err := d.Event.Parse(); err != nil {
		return &outbox.Verdict{Kind: outbox.Die, Refused: true, Failure: failure.New(failure.Permanent, failure.InvalidEvent, "%w", err)}
	}
	return &done
}

func TestWhatCanNotBeUnderstoodIsDeadWithItsReason(t *testing.T) {
	each(t, func(w *world) {
		type row struct {
			State string  `db:"state"`
			Class string  `db:"error_class"`
			Code  string  `db:"error_code"`
			Error string  `db:"error"`
			Media *string `db:"media_id"`
		}
		start(w.t, w.store, configured("w"), refusing)
		media := "m"
		for _, test := range []struct {
			name, eventType, data, says string
			media                       *string
		}{
			{"unknown type", "MediaMoved", `{}`, "MediaMoved", nil},
			{"not an object", "MediaDeleted", `[1]`, "object", nil},
			{"NUL", "MediaDeleted", `{"media_id":"a\u0000b","file_name":"f","version":"2026-01-01T00:00:00Z"}`, "media_id", nil},
			{"lone surrogate", "MediaDeleted", `{"media_id":"m","file_name":"\ud800","version":"2026-01-01T00:00:00Z"}`, "surrogate", nil},
			{"no version", "MediaDeleted", `{"media_id":"m","file_name":"f"}`, "version", &media},
		} {
			sequence := w.insertRaw(w.db, "s", "", test.eventType, test.data)
			w.await("it ends", func() bool { return strings.HasPrefix(w.state(sequence), "dead") })
			var got row
			if err := w.db.GetContext(w.t.Context(), &got, w.db.SQL(`SELECT state, error_class, error_code, error, media_id
				FROM {outbox} WHERE sequence = ?`), sequence); err != nil {
				w.t.Fatal(err)
			}
			if !strings.Contains(got.Error, test.says) {
				w.t.Errorf("%s: the reason is %q, want it to name %s", test.name, got.Error, test.says)
			}
			got.Error = ""
			if diff := cmp.Diff(row{"dead", "permanent", "invalid_event", "", test.media}, got); diff != "" {
				w.t.Errorf("%s: %s", test.name, diff)
			}
		}
		good := w.publish("s", touch("m"))[0]
		w.await("a good one completes", func() bool { return w.state(good) == "completed done" })
	})
}

// No topic is of that type, so no handler is asked.
func TestAnUnknownTypeDiesWithoutAHandler(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		start(w.t, w.store, configured("w"), h.handle)
		unknown := w.insertRaw(w.db, "s", "", "MediaMoved", `{"media_id":"m"}`)
		w.await("it dies", func() bool { return w.state(unknown) == "dead invalid_event" })
		if n := h.startedCount(); n > 0 {
			w.t.Errorf("a handler was asked %d times", n)
		}
		if n := one[int](w, `SELECT attempt_count FROM {outbox}`) + one[int](w, `SELECT count(*) FROM {attempts}`); n > 0 {
			w.t.Errorf("%d attempts are counted or kept", n)
		}
	})
}

// It may have been interrupted before, and then holds back others, though nothing
// orders it.
func TestAnInvalidEventDiesAfterItWasInterrupted(t *testing.T) {
	each(t, func(w *world) {
		invalid := w.insertRaw(w.db, "s", "", "MediaDeleted", `{}`)
		lane := w.claimOne("w")
		w.settle(lane, invalid, outbox.Verdict{Kind: outbox.Yield, Failure: trouble})
		w.settle(lane, invalid, outbox.Verdict{Kind: outbox.Die, Failure: ruined})
		if got := w.state(invalid); got != "dead source_gone" {
			w.t.Errorf("it is %s", got)
		}
	})
}

// oddNames are service and environment IDs that no event may have.
func (w *world) oddNames() []string {
	long := make([]byte, 20_000)
	for i := range long {
		long[i] = byte('!' + i*i*7919%90) // doesn't compress
	}
	names := []string{string(long), strings.Repeat("名", outbox.LongestName), "", "\u0001", "\ufffe"}
	if w.db.Dialect == database.SQLite {
		names = append(names, "a\x00b", "\xff\xfe")
	}
	return names
}

// publishOdd publishes, under odd names, events that must die, and some whose
// names differ from theirs only behind what the feed reads of them.
func (w *world) publishOdd() (bad []int64) {
	w.t.Helper()
	for _, name := range w.oddNames() {
		bad = append(bad, w.publish(name, touch("a"))...)
		bad = append(bad, w.publish(name+"\n", touch("a"))...)
		bad = append(bad, w.publishIn("s", name+"\n", touch("a"))...)
	}
	return bad
}

// One bad row must not keep the events of everybody else from running.
func TestEventsWithOddNamesDieAlone(t *testing.T) {
	for name, seen := range map[string]bool{"published before the worker began": false, "published since": true} {
		t.Run(name, func(t *testing.T) {
			each(t, func(w *world) {
				var bad []int64
				if !seen {
					bad = w.publishOdd()
				}
				good := w.publish("s", touch("a"))[0]
				start(w.t, w.store, configured("w"), refusing)
				w.await("the good one completes", func() bool { return w.state(good) == "completed done" })
				if seen {
					bad = w.publishOdd()
				}
				good = w.publish("s", touch("a"))[0]
				w.await("the bad ones end", func() bool { return w.finished() == len(bad)+2 })
				for _, sequence := range bad {
					if got := w.state(sequence); got != "dead invalid_event" {
						w.t.Errorf("event %d is %s", sequence, got)
					}
				}
				if got := w.state(good); got != "completed done" {
					w.t.Errorf("the good one is %s", got)
				}
			})
		})
	}
}
