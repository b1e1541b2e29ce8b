package history_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// extent is how large a history is.
type extent struct{ workers, services, events int }

// history is one installation with its CMS, its operators and its troubles.
type history struct {
	extent
	seed  uint64
	began time.Time
	parts uint64 // streams of random numbers that were begun
	stage *stage.Stage
	crew  *crew

	outbox       *outbox.Store
	environments *environment.Store
	ledger       *ledger.Store

	services []*service
	count    atomic.Int64 // events
	clock    atomic.Int64 // the publishers' common time, in microseconds
	// unfinished counts events, as of lately, and mostUnfinished is how many there
	// may be while publishers go on.
	unfinished     atomic.Int64
	mostUnfinished int64
	// denied has the roles of accounts that turned us away for a while.
	denied sync.Map

	mu     sync.Mutex
	acts   map[string]*act // that were committed, by ID
	notes  []string
	faults []string
}

func newHistory(t testing.TB, url string, size extent, seed uint64) *history {
	s := stage.New(t, dbtest.Open(t, url)).AtAWS()
	s.Config.Poll, s.Config.Grace, s.Config.RetryAttempts = 10*time.Millisecond, 50*time.Millisecond, 25
	if s.DB.Dialect == database.PostgreSQL {
		s.Config.LeaseDuration = 2 * time.Second // a killed worker's leases must lapse
	}
	h := &history{extent: size, seed: seed, began: time.Now(), stage: s, acts: make(map[string]*act)}
	s.Config.Logger = slog.New(slog.NewTextHandler(notebook{h}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	h.ledger = ledger.New(s.DB)
	h.environments = environment.New(s.DB, h.ledger, integration.New(s.DB), nil, environment.Options{})
	h.outbox = outbox.New(s.DB, h.environments)
	h.mostUnfinished = pick(h.random(), []int64{math.MaxInt64, math.MaxInt64, 500, 150})
	h.clock.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro())
	h.crew = newCrew(h, url)
	for n := range size.services {
		h.services = append(h.services, newService(h, n))
	}
	return h
}

// random is the seed's own stream for the next part of the history.
func (h *history) random() *rand.Rand {
	h.parts++
	return rand.New(rand.NewPCG(h.seed, h.parts))
}

func (h *history) uuid(r *rand.Rand) string {
	var id uuid.UUID
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80 // a version 7
	return id.String()
}

// version is the time at one of the CMS's nodes. Events often share a second,
// which is all that the metadata tells of them.
func (h *history) version(r *rand.Rand) events.Version {
	at := time.UnixMicro(h.clock.Add(pick(r, []int64{1_000_000, 400_000, 1})))
	if clocksDisagree() {
		at = at.Add(pick(r, []time.Duration{0, 0, 3 * time.Minute, -3 * time.Minute}))
	}
	return events.NewVersion(at)
}

func (h *history) remember(acts []*act) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range acts {
		h.acts[a.id] = a
	}
}

// moment is how times are written, so that they sort.
const moment = "15:04:05.000000"

// note writes down what happened beside the events, and when.
func (h *history) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes = append(h.notes, time.Now().UTC().Format(moment)+" "+fmt.Sprintf(format, args...))
}

// notebook takes the workers' log.
type notebook struct{ *history }

func (n notebook) Write(line []byte) (int, error) {
	n.note("%s", bytes.TrimSpace(line))
	return len(line), nil
}

// fault writes down what must not happen.
func (h *history) fault(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, fmt.Sprintf(format, args...))
}
