// Package outbox holds events at rest and gives them out: it assigns newly
// committed events to lanes, leases lanes to workers, keeps the order of
// events that share a media or a file name, and records how each ended.
//
// A lane is one environment of one service. A worker leases lanes, not
// events: order and parallelism within a lane are decided in memory by its
// one holder, and no transaction is open while a handler runs. Every write
// about a lane's events carries the lease's token, so a worker that lost its
// lease changes nothing (fencing).
package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
)

// The states that an event has in the database. An operator also sees held,
// which is derived from the event's integration.
const (
	Available = "available"
	Running   = "running"
	Retryable = "retryable"
	Held      = "held"
	Completed = "completed"
	Dead      = "dead"
	Discarded = "discarded"
)

// The outcomes of a completed event.
const (
	Done       = "done"
	Superseded = "superseded"
	Skipped    = "skipped"
)

// Everything is the resource of an event that concerns its whole environment.
const Everything = "*"

// Event is an event as its worker reads it.
type Event struct {
	Sequence      int64   `db:"sequence"`
	EventID       string  `db:"event_id"`
	Type          string  `db:"type"`
	ServiceID     string  `db:"service_id"`
	EnvironmentID string  `db:"environment_id"`
	Data          []byte  `db:"data"`
	Metadata      []byte  `db:"metadata"`
	CreatedAt     int64   `db:"created_at"`
	LaneID        int64   `db:"lane_id"`
	MediaID       *string `db:"media_id"`
	Version       *int64  `db:"version"`
	Resources     string  `db:"resources"`
	Holding       bool    `db:"holding"`
	AttemptCount  int     `db:"attempt_count"`
	RecordedCount int     `db:"recorded_count"`
	FailureCount  int     `db:"failure_count"`
	DeniedAt      *int64  `db:"denied_at"`
	DeniedCount   int     `db:"denied_count"`
	LapseCount    int     `db:"lapse_count"`
	// Copying tells that a copy from or into the event's environment isn't
	// ended: one that the event must see was there when it was read.
	Copying bool `db:"copying"`
	// Taken tells that its worker took it before it was assigned in the
	// database: that may still be to be done.
	Taken bool `db:"-"`
	// Emptying tells of a deletion that this attempt of it began to delete.
	Emptying bool `db:"-"`

	parsed events.Event // what Data says, where it was read already
	token  int64        // of the lease under which it was taken
}

// Parse reads what the event says. It fails as events.Parse does.
func (e *Event) Parse() (events.Event, error) {
	if e.parsed != nil {
		return e.parsed, nil
	}
	return events.Parse(e.Type, e.ServiceID, e.EnvironmentID, e.Data)
}

// Media is the ID of the event's media, empty for an environment's event.
func (e *Event) Media() string {
	if e.MediaID == nil {
		return ""
	}
	return *e.MediaID
}

const eventColumns = `sequence, CAST(event_id AS text) AS event_id, type, service_id, environment_id, data,
	metadata, created_at, lane_id, media_id, version, resources, holding, attempt_count, recorded_count,
	failure_count, denied_at, denied_count, lapse_count`

// Kind is how an attempt of an event ended.
type Kind int

const (
	// Complete ends the event, with an outcome.
	Complete Kind = iota
	// Die makes it dead.
	Die
	// Retry parks it until its delay has passed; the attempt counts.
	Retry
	// Defer parks it until its delay has passed, or puts it behind what it
	// now also shares; no attempt counts.
	Defer
	// Yield leaves it where it is, or parks it until its delay has passed where
	// it has one: it was interrupted, or its integration was blocked. No attempt
	// counts.
	Yield
)

// Settlement is what an attempt leaves behind.
type Settlement struct {
	Event    *Event
	Token    int64
	Started  time.Time
	Duration time.Duration
	Worker   string
	Verdict
}

// Ends tells whether nothing more will happen to the event by itself.
func (s *Settlement) Ends() bool { return s.Kind == Complete || s.Kind == Die }

// Recorder writes what settled events did elsewhere, in the same transaction.
type Recorder interface {
	// Record is given those settlements whose lane is still held. It may be
	// called again with the same ones. snapshots has, for each lane, the
	// highest EnvironmentCreated whose snapshot was taken from it.
	Record(ctx context.Context, tx *sqlx.Tx, settled []*Settlement, snapshots map[int64]int64) error
	// RecordDiscarded is given events that an operator discards.
	RecordDiscarded(ctx context.Context, tx *sqlx.Tx, discarded []*Event, tainted map[int64]bool) error
}

// Store is the outbox of one database.
type Store struct {
	db       *database.DB
	recorder Recorder

	mu    sync.Mutex
	lanes map[environment]int64 // lane IDs never change
	sweep sweep
	pass  *pass // nil where none is under way
	// took has, for each lane of which events were taken and that wasn't given
	// back since, the token of its lease.
	took map[int64]int64

	stretch int // of a pass
	batch   int // assignBatch, but in tests
}

type environment struct{ serviceID, environmentID string }

// environmentRow is a row of an environmentList.
type environmentRow struct {
	ServiceID     string `db:"service_id" json:"service_id"`
	EnvironmentID string `db:"environment_id" json:"environment_id"`
}

// environmentList are environments that come as one argument, for use after IN.
const environmentList = `(SELECT service_id, environment_id FROM {rows v(service_id text, environment_id text)})`

func environmentRows(list iter.Seq[environment]) []environmentRow {
	rows := []environmentRow{}
	for env := range list {
		rows = append(rows, environmentRow{env.serviceID, env.environmentID})
	}
	return rows
}

// New returns the outbox of that database.
func New(db *database.DB, recorder Recorder) *Store {
	return &Store{
		db: db, recorder: recorder, lanes: make(map[environment]int64), took: make(map[int64]int64),
		stretch: passStretch, batch: assignBatch,
	}
}

// rows encodes the argument of a {rows …} table or an {ids} list.
func rows(values any) (string, error) {
	encoded, err := json.Marshal(values)
	if err != nil {
		return "", fmt.Errorf("encode rows: %w", err)
	}
	return string(encoded), nil
}

// exec runs a statement over the rows of its one {rows …} table.
func (s *Store) exec(ctx context.Context, tx *sqlx.Tx, query string, values any, args ...any) error {
	encoded, err := rows(values)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(query), append([]any{encoded}, args...)...)
	return err
}

// MediaResource is what events of one media have in common: they run in order.
func MediaResource(mediaID string) string { return "m:" + mediaID }

// NameResource is what events have in common that give or take one file name.
func NameResource(fileName string) string { return "n:" + fileName }

// Shares tells whether the event is ordered by a resource.
func (e *Event) Shares(resource string) bool {
	return slices.Contains(resources(e.Resources), resource)
}

// resources reads the column of that name.
func resources(column string) []string {
	var list []string
	// We wrote it: what doesn't parse orders nothing.
	_ = json.Unmarshal([]byte(column), &list)
	return list
}

// text makes an error's words fit for both databases: valid UTF-8, without
// NUL, and not endless.
func text(words string) string {
	const most = 4096 // bytes
	words = strings.ReplaceAll(strings.ToValidUTF8(words, "\uFFFD"), "\x00", "\uFFFD")
	if len(words) <= most {
		return words
	}
	words = words[:most]
	for !utf8.ValidString(words) {
		words = words[:len(words)-1]
	}
	return words + "…"
}
