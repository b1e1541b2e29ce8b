// Package outbox holds events at rest: it leases lanes to workers, keeps what
// waits for an earlier event that shares a media or a file name, and records how
// each ended.
//
// A lane is one environment of one service; an event's row names it. A worker
// leases lanes, not events. A lane's one holder reads the lane's unfinished
// events straight from the table; package subscriber decides in its memory which
// may start. No transaction is open while a handler runs. An event's row is
// written when the event ends, waits, or runs for a while. Every such write
// carries the lease's token, so a worker that lost its lease changes nothing
// (fencing).
//
// docs/architecture.md has the states of an event, and what moves it between
// them; docs/decisions/0003-lanes.md tells why the package is made so.
//
// Locks are taken in this order:
//
//  1. Rows of lanes, by ascending lane_id. A settlement takes them FOR KEY SHARE,
//     which keeps the lane from being taken over. Whoever parks events, lets go of
//     parked ones, takes a snapshot or acts for an operator takes them FOR NO KEY
//     UPDATE or FOR UPDATE, and is then alone with the lane.
//  2. Rows of the outbox, by ascending sequence.
//  3. Rows of other tables.
package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
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

// The conditions on an event e.
const (
	// Readable events are in the window that a lane's holder reads.
	Readable = `e.state IN ('available', 'running') AND NOT e.parked`
	// Unfinished events may still run by themselves.
	Unfinished = `e.state IN ('available', 'running', 'retryable')`
)

// Event is an event as its worker reads it.
type Event struct {
	Sequence      int64  `db:"sequence"`
	EventID       string `db:"event_id"`
	Type          string `db:"type"`
	ServiceID     string `db:"service_id"`
	EnvironmentID string `db:"environment_id"`
	// Data is the payload as it was published; nil where it has more bytes than an
	// event may have, and once the event was read.
	Data      []byte  `db:"data"`
	Metadata  []byte  `db:"metadata"`
	CreatedAt int64   `db:"created_at"`
	LaneID    int64   `db:"lane_id"`
	MediaID   *string `db:"media_id"`
	Version   *int64  `db:"version"`
	// Resources order the event within its lane: a JSON array of "m:MEDIA",
	// "n:FILE NAME", or "*". The column is empty until the row is first written.
	Resources     string `db:"resources"`
	Holding       bool   `db:"holding"`
	AttemptCount  int    `db:"attempt_count"`
	RecordedCount int    `db:"recorded_count"`
	FailureCount  int    `db:"failure_count"`
	DeniedAt      *int64 `db:"denied_at"`
	DeniedCount   int    `db:"denied_count"`
	LapseCount    int    `db:"lapse_count"`
	// WaitCount is how many times in a row the event was put off.
	WaitCount int `db:"wait_count"`
	// Copying tells that a copy from or into the event's environment isn't
	// ended: one that the event must see was there when it was read.
	Copying bool `db:"copying"`
	// Unread tells that the payload was left in the database: the reading had enough.
	Unread bool `db:"unread"`
	// Emptying tells of a deletion that this attempt of it began to delete.
	Emptying bool `db:"-"`

	parsed  events.Event
	invalid error // why the payload can't be understood
}

// eventColumns are of an event e. A column of SQLite's holds values of any type: one
// row's must not keep all others from being read. Of a payload, or metadata, that is
// larger than what is used nothing leaves the database but that it is.
func (s *Store) eventColumns(payload string) string {
	return `e.sequence, CAST(e.event_id AS text) AS event_id,
	` + s.cut(`e.type`) + ` AS type, e.service_id, e.environment_id,
	` + payload + `, ` + s.within(`e.metadata`, largestMetadata) + ` AS metadata,
	CAST(e.created_at AS bigint) AS created_at, e.media_id, CAST(e.version AS bigint) AS version,
	coalesce(e.resources, '') AS resources, e.holding IS TRUE AS holding, CAST(e.attempt_count AS integer) AS attempt_count,
	CAST(e.recorded_count AS integer) AS recorded_count, CAST(e.failure_count AS integer) AS failure_count,
	CAST(e.denied_at AS bigint) AS denied_at, CAST(e.denied_count AS integer) AS denied_count,
	CAST(e.lapse_count AS integer) AS lapse_count, CAST(e.wait_count AS integer) AS wait_count`
}

const (
	// MaxEventSize is the default of [Store.MaxEventSize], in bytes.
	MaxEventSize = 256 << 10
	// largestMetadata is how many bytes of metadata are used: a trace's context has
	// less (https://www.w3.org/TR/trace-context/#tracestate-limits).
	largestMetadata = 4 << 10
)

// payload is the column of a payload that is not larger than one may be.
func (s *Store) payload() string { return s.within(`e.data`, s.MaxEventSize) + ` AS data` }

// within is a column of JSON, and NULL where its text has more bytes than that.
func (s *Store) within(column string, most int) string {
	return `CASE WHEN ` + s.sizeOf(column, most) + ` <= ` + strconv.Itoa(most) + ` THEN ` + column + ` END`
}

// sizeOf is how many bytes the text of a column of JSON has, and something above most
// where it has more. PostgreSQL keeps long texts compressed, and need not read them to
// see that they are too long even so.
func (s *Store) sizeOf(column string, most int) string {
	if s.db.Dialect == database.SQLite {
		return `octet_length(` + column + `)`
	}
	return `(CASE WHEN pg_column_size(` + column + `) > ` + strconv.Itoa(most) + ` THEN ` + strconv.Itoa(most) + ` + 1
		ELSE octet_length(CAST(` + column + ` AS text)) END)`
}

// events runs a query for events, whose text has the columns of eventColumns, and
// reads what each says. It keeps no payload: the rows that a publisher makes are as
// long as it likes.
func (s *Store) events(ctx context.Context, q sqlx.QueryerContext, query string, args ...any) (found []*Event, err error) {
	rows, err := q.QueryxContext(ctx, s.db.SQL(query), args...) //nolint:sqlclosecheck // it doesn't know sqlx's
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		e := new(Event)
		if err := rows.StructScan(e); err != nil {
			return nil, err
		}
		if !e.Unread {
			e.describe()
		}
		e.Data = nil
		found = append(found, e)
	}
	return found, rows.Err()
}

// describe reads off the payload what a lane must know of the event: its media,
// its version, and what orders it. Of an event that can't be understood, that
// is its media at most.
func (e *Event) describe() {
	if e.Data == nil {
		e.invalid = &events.InvalidError{Type: e.Type, Field: "data", Reason: "is larger than an event may be (OWNBUCKET_MAX_EVENT_SIZE)"}
	} else {
		e.parsed, e.invalid = events.Parse(e.Type, e.ServiceID, e.EnvironmentID, e.Data)
	}
	if e.invalid != nil {
		e.Resources = "[]"
		var invalid *events.InvalidError
		if errors.As(e.invalid, &invalid) && invalid.MediaID != "" {
			e.MediaID = &invalid.MediaID
			e.Resources = mustJSON([]string{MediaResource(invalid.MediaID)})
		}
		return
	}
	order := []string{}
	if media := e.parsed.Media(); media != "" {
		e.MediaID = &media
		order = append(order, MediaResource(media))
	} else {
		order = append(order, Everything)
	}
	for _, name := range e.parsed.FileNames() {
		order = append(order, NameResource(name))
	}
	if published, ok := e.parsed.(interface{ Published() events.Version }); ok {
		version := published.Published().Micros()
		e.Version = &version
	}
	if e.Resources == "" || e.Resources == "[]" {
		e.Resources = mustJSON(order)
	}
}

// Parse reads what the event says. It fails as events.Parse does.
func (e *Event) Parse() (events.Event, error) {
	if e.parsed == nil && e.invalid == nil {
		e.describe()
	}
	return e.parsed, e.invalid
}

// Payload is what the event says, as JSON; nil where that can't be understood.
func (e *Event) Payload() ([]byte, error) {
	parsed, err := e.Parse()
	if err != nil {
		return nil, nil //nolint:nilerr // its handler says so
	}
	payload, err := json.Marshal(parsed)
	if err != nil {
		return nil, fmt.Errorf("write the payload of event %s: %w", e.EventID, err)
	}
	return payload, nil
}

// Media is the ID of the event's media, empty for an environment's event.
func (e *Event) Media() string {
	if e.MediaID == nil {
		return ""
	}
	return *e.MediaID
}

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
	// Yield gives it back, to be read again when its delay, if any, has passed: it
	// was interrupted, or its integration was blocked. No attempt counts.
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
	// Record is given settlements that were just written. snapshots has, for each
	// lane, the highest EnvironmentCreated whose snapshot was taken from it.
	Record(ctx context.Context, tx *sqlx.Tx, settled []*Settlement, snapshots map[int64]int64) error
	// RecordDiscarded is given events that an operator discards.
	RecordDiscarded(ctx context.Context, tx *sqlx.Tx, discarded []*Event, tainted map[int64]bool) error
}

// Store is the outbox of one database.
type Store struct {
	// MaxEventSize is how many bytes the payload of an event may have (256 KiB). Larger
	// ones are invalid, and are never read.
	MaxEventSize int
	// MaxReading is how many bytes of payloads one reading takes, but for its last
	// event (8 MiB).
	MaxReading int

	db       *database.DB
	recorder Recorder
}

// New returns the outbox of that database.
func New(db *database.DB, recorder Recorder) *Store {
	return &Store{MaxEventSize: MaxEventSize, MaxReading: 8 << 20, db: db, recorder: recorder}
}

// rows encodes the argument of a {rows …} table or an {ids} list.
func rows(values any) (string, error) {
	encoded, err := json.Marshal(values)
	if err != nil {
		return "", fmt.Errorf("encode rows: %w", err)
	}
	if string(encoded) == "null" {
		return "[]", nil // a slice without a value
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
	return slices.Contains(e.OrderedBy(), resource)
}

// OrderedBy are the resources that order the event within its lane.
func (e *Event) OrderedBy() []string {
	var list []string
	// We wrote it: what doesn't parse orders nothing.
	_ = json.Unmarshal([]byte(e.Resources), &list)
	return list
}

func mustJSON(list []string) string {
	encoded, err := json.Marshal(list)
	if err != nil {
		panic(errors.Join(errors.New("a list of strings didn't encode"), err))
	}
	return string(encoded)
}

// text makes an error's words fit for both databases: valid UTF-8, without
// NUL, and at most 4,096 bytes.
func text(words string) string {
	const most = 4096
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
