package subscriber_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// refusing is a handler that completes what can be understood.
func refusing(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
	if _, err := d.Event.Parse(); err != nil {
		return &outbox.Verdict{Kind: outbox.Die, Refused: true, Failure: failure.New(failure.Permanent, failure.InvalidEvent, "%w", err)}
	}
	return &outboxtest.Done
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
		start(w.T, w.Store, configured("w"), refusing)
		media := "m"
		for _, test := range []struct {
			name, eventType, data, says string
			media                       *string
		}{
			{"no type's name", "media-moved", `{}`, "media-moved", nil},
			{"not an object", "MediaDeleted", `[1]`, "object", nil},
			{"NUL", "MediaDeleted", `{"media_id":"a\u0000b","file_name":"f","version":"2026-01-01T00:00:00Z"}`, "media_id", nil},
			{"lone surrogate", "MediaDeleted", `{"media_id":"m","file_name":"\ud800","version":"2026-01-01T00:00:00Z"}`, "surrogate", nil},
			{"no version", "MediaDeleted", `{"media_id":"m","file_name":"f"}`, "version", &media},
		} {
			sequence := w.InsertRaw(w.DB, "s", "", test.eventType, test.data)
			w.Await("it ends", func() bool { return strings.HasPrefix(w.State(sequence), "dead") })
			var got row
			if err := w.DB.GetContext(w.T.Context(), &got, w.DB.SQL(`SELECT state, error_class, error_code, error, media_id
				FROM {outbox} WHERE sequence = ?`), sequence); err != nil {
				w.T.Fatal(err)
			}
			if !strings.Contains(got.Error, test.says) {
				w.T.Errorf("%s: the reason is %q, want it to name %s", test.name, got.Error, test.says)
			}
			got.Error = ""
			if diff := cmp.Diff(row{"dead", "permanent", "invalid_event", "", test.media}, got); diff != "" {
				w.T.Errorf("%s: %s", test.name, diff)
			}
		}
		good := w.Publish("s", outboxtest.Touch("m"))[0]
		w.Await("a good one completes", func() bool { return w.State(good) == "completed done" })
	})
}

// No topic is of that type, so no handler is asked. More events than there are slots
// wait for a worker that knows the type, and keep neither a slot nor their lane.
func TestEventsOfAnUnknownTypeWaitWithoutASlot(t *testing.T) {
	each(t, func(w *world) {
		const slots, waiting = 2, 10
		h := newHands()
		worker := start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = slots, slots }), h.handle)
		for range waiting {
			w.InsertRaw(w.DB, "s", "", "MediaMoved", `{"media_id":"m"}`)
		}
		w.Await("they wait", func() bool {
			return outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE state = 'retryable' AND error_code = 'unknown_type'
				AND error LIKE '%MediaMoved%' AND next_attempt_at > {now} AND parked`) == waiting
		})
		if n := h.startedCount(); n > 0 {
			w.T.Errorf("a handler was asked %d times", n)
		}
		if n := outboxtest.One[int](w.World, `SELECT sum(attempt_count + failure_count) FROM {outbox}`) + outboxtest.One[int](w.World, `SELECT count(*) FROM {attempts}`); n > 0 {
			w.T.Errorf("%d attempts are counted or kept", n)
		}
		if idle, err := w.Store.Idle(w.T.Context()); err != nil || !idle {
			w.T.Errorf("the outbox is idle: %v, %v", idle, err)
		}
		later := w.Publish("s", outboxtest.Touch("m"), outboxtest.Touch("n"))
		w.Await("later ones of the lane run", func() bool { return len(h.running()) == len(later) })
		for _, sequence := range later {
			h.end(sequence, outboxtest.Done)
		}
		w.Await("and end", func() bool { return w.finished() == len(later) })
		if err := worker.stop(); err != nil {
			w.T.Error(err)
		}
	})
}

// Each time that no worker knew its type it is left alone for longer, and what comes
// of it in the end is its first attempt.
func TestAnEventOfATypeThatBecomesKnownIsHandled(t *testing.T) {
	each(t, func(w *world) {
		sequence := w.InsertRaw(w.DB, "s", "", "MediaMoved", `{"media_id":"m"}`)
		h := newHands()
		start(w.T, w.Store, configured("w"), h.handle)
		for _, wait := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			w.Await("it waits", func() bool {
				return outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE next_attempt_at > {now} + ?`,
					(wait/2).Microseconds()) == 1
			})
			w.Exec(`UPDATE {outbox} SET next_attempt_at = 1`)
		}
		w.Exec(`UPDATE {outbox} SET type = 'MediaDeleted', data = ?`, `{"media_id":"m","file_name":"f","version":"2026-01-01T00:00:00Z"}`)
		w.Await("it runs", func() bool {
			// It may have been read before its type was known, and wait once more.
			w.Exec(`UPDATE {outbox} SET next_attempt_at = 1 WHERE next_attempt_at IS NOT NULL`)
			return len(h.running()) == 1
		})
		h.end(sequence, outboxtest.Done)
		w.Await("it ends", func() bool { return w.State(sequence) == "completed done" })
		if n := outboxtest.One[int](w.World, `SELECT attempt_count FROM {outbox}`); n != 1 {
			w.T.Errorf("%d attempts are counted, want 1", n)
		}
	})
}

// It may have been interrupted before, and then holds back others, though nothing
// orders it.
func TestAnInvalidEventDiesAfterItWasInterrupted(t *testing.T) {
	each(t, func(w *world) {
		invalid := w.InsertRaw(w.DB, "s", "", "MediaDeleted", `{}`)
		lane := w.ClaimOne("w")
		w.Settle(lane, invalid, outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble})
		w.Settle(lane, invalid, outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined})
		if got := w.State(invalid); got != "dead source_gone" {
			w.T.Errorf("it is %s", got)
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
	if w.DB.Dialect == database.SQLite {
		names = append(names, "a\x00b", "\xff\xfe")
	}
	return names
}

// publishOdd publishes, under odd names, events that must die, and some whose
// names differ from theirs only behind what the feed reads of them.
func (w *world) publishOdd() (bad []int64) {
	w.T.Helper()
	for _, name := range w.oddNames() {
		bad = append(bad, w.Publish(name, outboxtest.Touch("a"))...)
		bad = append(bad, w.Publish(name+"\n", outboxtest.Touch("a"))...)
		bad = append(bad, w.PublishIn("s", name+"\n", outboxtest.Touch("a"))...)
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
				good := w.Publish("s", outboxtest.Touch("a"))[0]
				start(w.T, w.Store, configured("w"), refusing)
				w.Await("the good one completes", func() bool { return w.State(good) == "completed done" })
				if seen {
					bad = w.publishOdd()
				}
				good = w.Publish("s", outboxtest.Touch("a"))[0]
				w.Await("the bad ones end", func() bool { return w.finished() == len(bad)+2 })
				for _, sequence := range bad {
					if got := w.State(sequence); got != "dead invalid_event" {
						w.T.Errorf("event %d is %s", sequence, got)
					}
				}
				if got := w.State(good); got != "completed done" {
					w.T.Errorf("the good one is %s", got)
				}
			})
		})
	}
}
