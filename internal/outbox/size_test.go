package outbox_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// padded is a valid deletion's payload of that many bytes. The padding compresses
// well, or not at all.
func padded(size int, compresses bool) string {
	start, end := `{"media_id": "m", "file_name": "m.png", "version": "2026-01-01T00:00:00Z", "more": "`, `"}`
	padding := []byte(strings.Repeat("x", size-len(start)-len(end)))
	if !compresses {
		for i := range padding {
			padding[i] = "0123456789abcdef"[rand.N(16)]
		}
	}
	return start + string(padding) + end
}

func TestAPayloadIsReadUpToTheLimitAndNotBeyond(t *testing.T) {
	each(t, func(w *world) {
		for _, c := range []struct {
			size    int
			refused bool
		}{{outbox.MaxEventSize, false}, {outbox.MaxEventSize + 1, true}, {10 << 20, true}} {
			for _, compresses := range []bool{true, false} {
				service := uuid.NewString()
				w.InsertRaw(w.DB, service, "", events.MediaDeletedType, padded(c.size, compresses))
				found := w.Read(w.ClaimOne("w").LaneID)
				if len(found) != 1 {
					w.T.Fatalf("%d events were read, want 1", len(found))
				}
				_, err := found[0].Parse()
				var invalid *events.InvalidError
				if refused := errors.As(err, &invalid) && strings.Contains(err.Error(), "OWNBUCKET_MAX_EVENT_SIZE"); refused != c.refused {
					w.T.Errorf("%d bytes, compressible %v: %v, want a refusal: %v", c.size, compresses, err, c.refused)
				}
				if err == nil && found[0].Media() != "m" {
					w.T.Errorf("%d bytes are of media %q", c.size, found[0].Media())
				}
				if found[0].Data != nil {
					w.T.Errorf("%d bytes are kept in memory", len(found[0].Data))
				}
			}
		}
	})
}

// A trace's context is lost where it is larger than any, and no event is.
func TestLongMetadataIsLeftOut(t *testing.T) {
	each(t, func(w *world) {
		for size, want := range map[int]bool{4096: true, 4097: false, 1 << 20: false} {
			sequence := w.Publish(uuid.NewString(), outboxtest.Touch("m"))[0]
			metadata := `{"traceparent":"` + strings.Repeat("0", size-len(`{"traceparent":""}`)) + `"}`
			w.Exec(`UPDATE {outbox} SET metadata = ? WHERE sequence = ?`, metadata, sequence)
			e := w.Event(w.ClaimOne("w").LaneID, sequence)
			if _, err := e.Parse(); err != nil || (string(e.Metadata) == metadata) != want || !want && e.Metadata != nil {
				w.T.Errorf("of %d bytes of metadata %d were read, with %v", size, len(e.Metadata), err)
			}
		}
	})
}

func TestAReadingIsBoundedByBytes(t *testing.T) {
	each(t, func(w *world) {
		const size, each, small = 100_000, 20, 30
		w.Store.MaxReading = 10 * size
		for _, service := range []string{"large-1", "large-2", "large-3"} {
			for range each {
				w.InsertRaw(w.DB, service, "", events.MediaDeletedType, padded(size, true))
			}
		}
		w.PublishMany("small", small)
		w.InsertRaw(w.DB, "refused", "", events.MediaDeletedType, padded(10<<20, true))
		w.Want()
		var readings []outbox.Reading
		for _, lane := range w.Claim("w") {
			readings = append(readings, outbox.Reading{LaneID: lane.LaneID, UpTo: math.MaxInt64, Limit: 100})
		}
		found, err := w.Store.Read(w.T.Context(), readings)
		if err != nil {
			w.T.Fatal(err)
		}
		read, unread := make(map[string]int), make(map[string]int)
		for _, e := range found {
			if e.Unread {
				unread[e.ServiceID]++
				continue
			}
			read[e.ServiceID]++
			if unread[e.ServiceID] > 0 {
				w.T.Errorf("event %d of %s was read, and one before it was not", e.Sequence, e.ServiceID)
			}
		}
		large := 0
		for service, n := range read {
			if strings.HasPrefix(service, "large") {
				large += n
				if n < 3 {
					w.T.Errorf("%d events of %s were read, want a third of the room at least", n, service)
				}
			}
		}
		if large > 10 || read["small"] != small || read["refused"] != 1 {
			w.T.Errorf("%v were read: want at most 10 large ones, and all small ones", read)
		}
	})
}

// What an operator is shown of many events is as bounded.
func TestAListIsNotAsLongAsItsPayloads(t *testing.T) {
	each(t, func(w *world) {
		w.InsertRaw(w.DB, "s", "", events.MediaDeletedType, padded(10<<20, false))
		w.InsertRaw(w.DB, "s", "", strings.Repeat("t", 1<<20), `{}`)
		list, err := w.Store.List(w.T.Context(), outbox.Filter{}, 0)
		if err != nil || len(list) != 2 {
			w.T.Fatalf("%d events are listed, with %v", len(list), err)
		}
		if list[0].MediaID != "" || len(list[1].Type) > 2048 {
			w.T.Errorf("a list shows media %q, and a type of %d bytes", list[0].MediaID, len(list[1].Type))
		}
		counts, err := w.Store.Discard(w.T.Context(), outbox.Filter{MediaID: "m"}, outbox.Action{Actor: "a", Reason: "r"})
		if err != nil || counts.Matched != 0 {
			w.T.Errorf("%+v, %v: no event that can be read is of that media", counts, err)
		}
	})
}
