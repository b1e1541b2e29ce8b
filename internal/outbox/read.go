package outbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ownbucket/ownbucket/internal/database"
)

// Reading asks for a lane's next events.
type Reading struct {
	LaneID int64 `json:"lane_id"`
	// After is the reading position: events up to it were read before.
	After int64 `json:"after_sequence"`
	// UpTo is the highest sequence that the worker has seen.
	UpTo  int64 `json:"up_to"`
	Limit int   `json:"most"`
	// Known is how many events the reader has already: requeued ones among
	// them are found again, and must not keep others from being found.
	Known int `json:"known"`
}

// readChunk bounds the lanes that one statement reads on SQLite, whose text
// grows with them.
const readChunk = 16

// copying tells of a lane l that a copy from or into it isn't ended.
const copying = `(EXISTS (SELECT 1 FROM {copies} WHERE source_lane = l.lane_id AND state <> 'ended')
	OR EXISTS (SELECT 1 FROM {copies} WHERE target_lane = l.lane_id AND state <> 'ended')) AS copying`

// Read reads the next events of held lanes, each in sequence: those above the
// reading position, and those that were requeued at or below it. Events above a
// gate aren't given out. Where payloads are large, the last ones of the lanes that
// have the most of them stay unread.
func (s *Store) Read(ctx context.Context, readings []Reading) ([]*Event, error) {
	if s.db.Dialect == database.PostgreSQL {
		encoded, err := rows(readings)
		if err != nil {
			return nil, err
		}
		// One plan, executed for each lane.
		found, err := s.events(ctx, s.db, s.bounded(`SELECT e.* FROM {rows r(lane_id bigint, after_sequence bigint, up_to bigint, most integer, known integer)}
			JOIN {lanes} l ON l.lane_id = r.lane_id
			CROSS JOIN LATERAL (`+s.windowOf(`r.after_sequence`, `r.up_to`, `r.most`, `r.most + r.known`)+`) AS e`), encoded)
		if err != nil {
			return nil, fmt.Errorf("read lanes: %w", err)
		}
		return found, nil
	}
	var found []*Event
	for chunk := range slices.Chunk(readings, readChunk) {
		part, err := s.readChunk(ctx, chunk)
		if err != nil {
			return nil, fmt.Errorf("read lanes: %w", err)
		}
		found = append(found, part...)
	}
	return found, nil
}

// bounded is a query for windows of lanes, without the payloads beyond what one
// reading takes. It takes from all lanes alike, and of each its first events.
func (s *Store) bounded(windows string) string {
	limit, most := strconv.Itoa(s.MaxEventSize), strconv.Itoa(s.MaxReading)
	payload := `payload`
	if s.db.Dialect == database.SQLite {
		payload = `(SELECT o.data FROM {outbox} o WHERE o.sequence = reading.sequence)`
	}
	return `
		SELECT sequence, event_id, type, service_id, environment_id, metadata, created_at, media_id, version, resources, holding,
			attempt_count, recorded_count, failure_count, denied_at, denied_count, lapse_count, wait_count, lane_id, copying,
			CASE WHEN size <= ` + limit + ` AND reading_size - size < ` + most + ` THEN ` + payload + ` END AS data,
			size <= ` + limit + ` AND reading_size - size >= ` + most + ` AS unread
		FROM (SELECT *, sum(CASE WHEN size <= ` + limit + ` THEN size ELSE 0 END) OVER (ORDER BY lane_size, lane_id, sequence) AS reading_size
			FROM (SELECT *, sum(CASE WHEN size <= ` + limit + ` THEN size ELSE 0 END) OVER (PARTITION BY lane_id ORDER BY sequence) AS lane_size
				FROM (` + windows + `) AS windows) AS lanes) AS reading
		ORDER BY lane_id, sequence`
}

func (s *Store) readChunk(ctx context.Context, chunk []Reading) ([]*Event, error) {
	texts := make([]string, len(chunk))
	var args []any
	for i, r := range chunk {
		window := s.windowOf(`?`, `?`, `?`, `?`)
		for _, table := range []string{`AS fresh`, `AS requeued`} {
			window = strings.Replace(window, table, table+fmt.Sprint(i), 1)
		}
		texts[i] = strings.ReplaceAll(window, `{outbox} e`, fmt.Sprintf(`{outbox} e JOIN {lanes} l ON l.lane_id = %d`, r.LaneID))
		args = append(args, r.After, r.UpTo, r.Limit, r.After, r.Limit+r.Known)
	}
	return s.events(ctx, s.db, s.bounded(strings.Join(texts, ` UNION ALL `)), args...)
}

const (
	// gate is the sequence of a lane l from which on events aren't given out.
	gate = `coalesce(l.gate_sequence, 9223372036854775807)`
	// belowGate is a condition on an event e that it is given out.
	belowGate = ` AND e.sequence < ` + gate
)

// windowOf is the query for the next events of a lane l, with payloads of any size.
func (s *Store) windowOf(after, upTo, mostFresh, mostRequeued string) string {
	payload := s.sizeOf(`e.data`, s.MaxEventSize) + ` AS size`
	if s.db.Dialect == database.PostgreSQL {
		payload += `, e.data AS payload` // which stands for it until it is needed
	}
	columns := s.eventColumns(payload) + `, l.lane_id, ` + copying
	fresh, order := s.between(after, `{least}(`+upTo+`, `+gate+` - 1)`)
	return `
		SELECT * FROM (SELECT ` + columns + ` FROM {outbox} e
			WHERE ` + fresh + ` AND ` + Readable + `
			ORDER BY ` + order + ` LIMIT ` + mostFresh + `) AS fresh
		UNION ALL
		SELECT * FROM (SELECT ` + columns + ` FROM {outbox} e
			WHERE e.lane_id = l.lane_id AND e.sequence <= ` + after + ` AND e.requeued AND ` + Readable + belowGate + `
			ORDER BY e.sequence LIMIT ` + mostRequeued + `) AS requeued`
}

// between is a condition that an event e stands in a lane l, above one sequence and
// not above another, and the order in which a query finds the first such events
// without looking at more. On PostgreSQL the one index of lanes alone can begin
// there and has that order: for others, which would read all of the lane, or other
// lanes, the planner sees nothing to begin with.
func (s *Store) between(after, upTo string) (condition, order string) {
	if s.db.Dialect == database.SQLite {
		return `{in_lane e l} AND e.sequence > ` + after + ` AND e.sequence <= ` + upTo, `e.sequence`
	}
	return `({lane_key e}, e.sequence) > ({lane_key l}, ` + after + `)
		AND ({lane_key e}, e.sequence) <= ({lane_key l}, ` + upTo + `)
		AND ` + database.Unplanned(`e.service_id = l.service_id AND e.environment_id = l.environment_id`),
		`{lane_key e}, e.sequence`
}
