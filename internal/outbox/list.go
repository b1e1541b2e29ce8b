package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ownbucket/ownbucket/internal/secret"
)

// ErrNotFound says that there is no event of that ID.
var ErrNotFound = errors.New("no such event")

// Listed is an event as operators see it. Its JSON is a contract: unknown
// fields are absent.
type Listed struct {
	Sequence      int64      `json:"sequence"`
	EventID       string     `json:"event_id"`
	Type          string     `json:"type"`
	ServiceID     string     `json:"service_id"`
	EnvironmentID string     `json:"environment_id"`
	MediaID       string     `json:"media_id,omitempty"`
	State         string     `json:"state"`
	Outcome       string     `json:"outcome,omitempty"`
	AttemptCount  int        `json:"attempt_count"`
	ErrorClass    string     `json:"error_class,omitempty"`
	ErrorCode     string     `json:"error_code,omitempty"`
	Error         string     `json:"error,omitempty"`
	CreatedAt     time.Time  `json:"created_at"`
	NextAttemptAt *time.Time `json:"next_attempt_at,omitempty"`
	FinishedAt    *time.Time `json:"finished_at,omitempty"`
}

// Attempt is one try of an event.
type Attempt struct {
	Number       int       `json:"number"`
	StartedAt    time.Time `json:"started_at"`
	DurationMS   float64   `json:"duration_ms"`
	Worker       string    `json:"worker"`
	ErrorClass   string    `json:"error_class,omitempty"`
	ErrorCode    string    `json:"error_code,omitempty"`
	Error        string    `json:"error,omitempty"`
	AWSRequestID string    `json:"aws_request_id,omitempty"`
}

// Shown is an event with everything that is kept of it.
type Shown struct {
	Listed
	Data     json.RawMessage `json:"data"`
	Metadata json.RawMessage `json:"metadata"`
	Attempts []Attempt       `json:"attempts"`
}

// Stats is the outbox at a glance.
type Stats struct {
	Events                 map[string]int64 `json:"events"`
	OldestAvailableSeconds float64          `json:"oldest_available_seconds"`
}

type listedRow struct {
	Event
	State      string  `db:"state"`
	Outcome    *string `db:"outcome"`
	ErrorClass *string `db:"error_class"`
	ErrorCode  *string `db:"error_code"`
	Error      *string `db:"error"`
	Next       *int64  `db:"next_attempt_at"`
	Finished   *int64  `db:"finished_at"`
	Started    *int64  `db:"started_at"`
	Duration   *int64  `db:"duration_us"`
	Worker     *string `db:"worker"`
}

const shownState = `CASE WHEN ` + heldCondition + ` THEN 'held' ELSE e.state END`

func (s *Store) listedColumns() string {
	return `e.sequence, CAST(e.event_id AS text) AS event_id, ` + s.cut(`e.type`) + ` AS type,
	` + s.cut(`e.service_id`) + ` AS service_id, ` + s.cut(`e.environment_id`) + ` AS environment_id,
	e.media_id, ` + shownState + ` AS state, e.outcome, CAST(e.attempt_count AS integer) AS attempt_count,
	e.error_class, e.error_code, e.error, CAST(e.created_at AS bigint) AS created_at,
	CAST(e.next_attempt_at AS bigint) AS next_attempt_at, CAST(e.finished_at AS bigint) AS finished_at`
}

const listedTables = ` FROM {outbox} e
	LEFT JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id`

// List returns events in sequence order, at most limit of them; 0 means all.
func (s *Store) List(ctx context.Context, filter Filter, limit int) ([]Listed, error) {
	listed := []Listed{}
	err := s.Each(ctx, filter, limit, func(e Listed) error {
		listed = append(listed, e)
		return nil
	})
	return listed, err
}

// Each is List for more events than memory should hold. What visit does must not
// ask the database.
func (s *Store) Each(ctx context.Context, filter Filter, limit int, visit func(Listed) error) error {
	condition, args := filter.whereUnread()
	query := `SELECT ` + s.listedColumns() + `, CASE WHEN e.media_id IS NULL THEN ` + s.within(`e.data`, s.MaxEventSize) + ` END AS data` + listedTables +
		` WHERE ` + condition + ` ORDER BY e.sequence`
	if limit > 0 && filter.MediaID == "" {
		query += ` LIMIT ?`
		args = append(args, limit)
	}
	rows, err := s.db.QueryxContext(ctx, s.db.SQL(query), args...) //nolint:sqlclosecheck // it doesn't know sqlx's
	if err != nil {
		return fmt.Errorf("list events: %w", err)
	}
	defer rows.Close()
	for visited := 0; (limit <= 0 || visited < limit) && rows.Next(); {
		var row listedRow
		if err := rows.StructScan(&row); err != nil {
			return fmt.Errorf("list events: %w", err)
		}
		if !filter.hasMedia(&row.Event) {
			continue
		}
		if err := visit(row.listed()); err != nil {
			return err
		}
		visited++
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list events: %w", err)
	}
	return nil
}

// Show returns one event, or ErrNotFound.
func (s *Store) Show(ctx context.Context, eventID string) (Shown, error) {
	condition, args := Filter{EventIDs: []string{eventID}}.where()
	var found []listedRow
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(`SELECT `+s.listedColumns()+`,
		e.data, e.metadata, CAST(e.started_at AS bigint) AS started_at, CAST(e.duration_us AS bigint) AS duration_us, e.worker`+listedTables+` WHERE `+condition), args...); err != nil {
		return Shown{}, fmt.Errorf("show event %s: %w", eventID, err)
	}
	if len(found) == 0 {
		return Shown{}, fmt.Errorf("%w: %s", ErrNotFound, eventID)
	}
	row := &found[0]
	shown := Shown{Listed: row.listed(), Data: secret.HideInJSON(row.Data), Metadata: secret.HideInJSON(row.Metadata)}
	attempts, err := s.attempts(ctx, row)
	shown.Attempts = attempts
	return shown, err
}

// attempts reads the rows of an event's attempts. A first one that succeeded
// stands in the event's own row.
func (s *Store) attempts(ctx context.Context, row *listedRow) ([]Attempt, error) {
	var found []struct {
		Number     int     `db:"number"`
		Started    int64   `db:"started_at"`
		Duration   int64   `db:"duration_us"`
		Worker     string  `db:"worker"`
		ErrorClass *string `db:"error_class"`
		ErrorCode  *string `db:"error_code"`
		Error      *string `db:"error"`
		RequestID  *string `db:"aws_request_id"`
	}
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT number, started_at, duration_us, worker, error_class, error_code, error, aws_request_id
		FROM {attempts} WHERE sequence = ? ORDER BY number`), row.Sequence); err != nil {
		return nil, fmt.Errorf("read the attempts of event %s: %w", row.EventID, err)
	}
	attempts := make([]Attempt, 0, len(found))
	for _, a := range found {
		attempts = append(attempts, Attempt{a.Number, moment(a.Started), milliseconds(a.Duration), a.Worker,
			value(a.ErrorClass), value(a.ErrorCode), value(a.Error), value(a.RequestID)})
	}
	if len(attempts) == 0 && row.Started != nil {
		attempts = append(attempts, Attempt{Number: 1, StartedAt: moment(*row.Started),
			DurationMS: milliseconds(value(row.Duration)), Worker: value(row.Worker)})
	}
	return attempts, nil
}

// Stats counts events by state, and tells how long the oldest available one
// has waited.
func (s *Store) Stats(ctx context.Context) (Stats, error) {
	stats := Stats{Events: map[string]int64{
		Available: 0, Running: 0, Retryable: 0, Held: 0, Completed: 0, Dead: 0, Discarded: 0}}
	var counts []struct {
		State  string `db:"state"`
		Count  int64  `db:"count"`
		Now    int64  `db:"now"`
		Oldest int64  `db:"oldest"`
	}
	if err := s.db.SelectContext(ctx, &counts, s.db.SQL(`
		SELECT `+shownState+` AS state, count(*) AS count, {now} AS now, min(CAST(e.created_at AS bigint)) AS oldest`+listedTables+`
		GROUP BY 1`)); err != nil {
		return Stats{}, fmt.Errorf("count events: %w", err)
	}
	for _, c := range counts {
		stats.Events[c.State] = c.Count
		if c.State == Available {
			stats.OldestAvailableSeconds = max(float64(c.Now-max(c.Oldest, earliest))/1e6, 0)
		}
	}
	return stats, nil
}

func (r *listedRow) listed() Listed {
	if r.MediaID == nil && r.Data != nil {
		r.describe()
	}
	return Listed{
		Sequence: r.Sequence, EventID: r.EventID, Type: r.Type, ServiceID: r.ServiceID, EnvironmentID: r.EnvironmentID,
		MediaID: value(r.MediaID), State: r.State, Outcome: value(r.Outcome), AttemptCount: r.AttemptCount,
		ErrorClass: value(r.ErrorClass), ErrorCode: value(r.ErrorCode), Error: value(r.Error),
		CreatedAt: moment(r.CreatedAt), NextAttemptAt: optionalMoment(r.Next), FinishedAt: optionalMoment(r.Finished),
	}
}

// JSON and RFC 3339 have the years 0 to 9999. Microseconds have more.
var (
	earliest = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	latest   = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro() - 1
)

func moment(us int64) time.Time { return time.UnixMicro(min(max(us, earliest), latest)).UTC() }

func optionalMoment(us *int64) *time.Time {
	if us == nil {
		return nil
	}
	at := moment(*us)
	return &at
}

func milliseconds(us int64) float64 { return float64(us) / 1000 }

func value[T any](pointer *T) T {
	var zero T
	if pointer == nil {
		return zero
	}
	return *pointer
}
