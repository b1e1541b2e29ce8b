package outbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// Environment names a lane.
type Environment struct {
	ServiceID     string `db:"service_id" json:"service_id"`
	EnvironmentID string `db:"environment_id" json:"environment_id"`
}

// LongestName is more than any valid service or environment ID has, in bytes, and
// two of them fit into an entry of PostgreSQL's indexes.
const LongestName = 1024

// HasLane tells whether a lane can have that name. Whatever else a publisher wrote
// into the columns, no valid event has it.
func (e Environment) HasLane() bool {
	for _, name := range []string{e.ServiceID, e.EnvironmentID} {
		if len(name) > LongestName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
			return false
		}
	}
	return true
}

// Seen is an event as a look sees it.
type Seen struct {
	Sequence int64 `db:"sequence"`
	Environment
	// Open tells that it is to be read.
	Open bool `db:"open"`
	// Creates tells of an EnvironmentCreated.
	Creates bool `db:"creates"`
	// Wanted tells that its lane isn't known to have work, and nobody holds it.
	Wanted bool `db:"wanted"`
}

// Gap is a range of sequences in which events may still become visible.
type Gap struct {
	From int64 `json:"from_sequence"`
	To   int64 `json:"to_sequence"`
}

// LookMost bounds the events that one look sees.
const LookMost = 4096

// Begin returns the sequence above which looks see what is published, and the
// transactions that may yet publish at or below it. What is visible now must be
// looked for by Scan.
func (s *Store) Begin(ctx context.Context) (high int64, open []string, err error) {
	query := `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {outbox_sequence_seq}`
	if s.db.Dialect == database.SQLite {
		query = `SELECT coalesce(max(sequence), 0) FROM {outbox}`
	}
	if err := s.db.GetContext(ctx, &high, s.db.SQL(query)); err != nil {
		return 0, nil, fmt.Errorf("begin to look for new events: %w", err)
	}
	open, err = s.OpenTransactions(ctx)
	return high, open, err
}

// OpenTransactions names those that have written to the outbox, or are about to,
// and have not ended: they hold a lock of the table, which INSERT takes before it
// gives a sequence (https://www.postgresql.org/docs/current/view-pg-locks.html).
// On SQLite, where one writes at a time, sequences become visible in their order.
func (s *Store) OpenTransactions(ctx context.Context) ([]string, error) {
	open := []string{}
	if s.db.Dialect == database.SQLite {
		return open, nil
	}
	if err := s.db.SelectContext(ctx, &open, s.db.SQL(`
		SELECT virtualtransaction FROM pg_catalog.pg_locks
		WHERE locktype = 'relation' AND relation = CAST(? AS regclass) AND mode = 'RowExclusiveLock' AND granted
			AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())`),
		s.db.SQL(`{outbox}`)); err != nil {
		return nil, fmt.Errorf("list open transactions: %w", err)
	}
	return open, nil
}

// Look sees what became visible above a sequence and in gaps below it, in sequence,
// and up to which sequence it saw everything. It reads no payload, and writes
// nothing. worker's own lanes count as nobody's: it asks about those that it
// doesn't have.
func (s *Store) Look(ctx context.Context, above int64, gaps []Gap, worker string) (found []Seen, upTo int64, err error) {
	const fresh = `SELECT * FROM (SELECT ` + seenColumns + ` FROM {outbox} o WHERE o.sequence > ? ORDER BY o.sequence LIMIT ?) AS fresh`
	named := `NOT (` + s.isLong(`e.service_id`) + ` OR ` + s.isLong(`e.environment_id`) + `)`
	query, args := fresh, []any{above, LookMost}
	if len(gaps) > 0 {
		encoded, err := rows(gaps)
		if err != nil {
			return nil, 0, err
		}
		query += ` UNION ALL ` + s.inGaps()
		args = append(args, encoded)
	}
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT e.sequence, `+s.cut(`e.service_id`)+` AS service_id, `+s.cut(`e.environment_id`)+` AS environment_id,
			(`+Readable+`) AS open, e.type = '`+events.EnvironmentCreatedType+`' AS creates,
			l.ready_at IS NULL AND (l.leased_by IS NULL OR l.leased_by = ?) AS wanted
		FROM (`+query+`) AS e LEFT JOIN {lanes} l ON `+named+`
			AND l.service_id = e.service_id AND l.environment_id = e.environment_id
		ORDER BY e.sequence LIMIT ?`), append(append([]any{worker}, args...), LookMost)...); err != nil {
		return nil, 0, fmt.Errorf("look for new events: %w", err)
	}
	if len(found) == LookMost {
		return found, found[LookMost-1].Sequence, nil
	}
	return found, math.MaxInt64, nil
}

// isLong is a condition that a column has more than LongestName bytes.
func (s *Store) isLong(column string) string {
	if s.db.Dialect == database.SQLite {
		return `length(CAST(` + column + ` AS blob)) > ` + strconv.Itoa(LongestName)
	}
	return `octet_length(` + column + `) > ` + strconv.Itoa(LongestName)
}

// cut is a column's text, and the beginning of it where it is long: a publisher writes
// what it likes there.
func (s *Store) cut(column string) string {
	beginning := `left(` + column + `, ` + strconv.Itoa(LongestName+1) + `)`
	if s.db.Dialect == database.SQLite {
		// What substr cuts out of an empty blob is NULL.
		beginning = `CAST(substr(CAST(` + column + ` AS blob), 1, ` + strconv.Itoa(LongestName+1) + `) AS text)`
	}
	return `CASE WHEN ` + s.isLong(column) + ` THEN ` + beginning + ` ELSE ` + column + ` END`
}

// seenColumns are what a look reads of an event o. SQLite copies all that a subquery
// names.
const seenColumns = `o.sequence, o.service_id, o.environment_id, o.type, o.state, o.parked`

// inGaps is a query for events in a {rows …} table of gaps.
func (s *Store) inGaps() string {
	if s.db.Dialect == database.SQLite {
		return `SELECT ` + seenColumns + ` FROM {rows g(from_sequence bigint, to_sequence bigint)}
			JOIN {outbox} o ON o.sequence >= g.from_sequence AND o.sequence <= g.to_sequence`
	}
	// Much may become visible at once, and no more than a look sees is needed of it.
	return `SELECT late.* FROM {rows g(from_sequence bigint, to_sequence bigint)} CROSS JOIN LATERAL (
		SELECT ` + seenColumns + ` FROM {outbox} o WHERE o.sequence >= g.from_sequence AND o.sequence <= g.to_sequence
		ORDER BY o.sequence LIMIT ` + strconv.Itoa(LookMost) + `) AS late`
}

// Want says that lanes have something to be read, and makes those that are new.
// Lanes that others hold stay as they are. It returns those that another
// transaction has locked: nobody else's events wait for them.
func (s *Store) Want(ctx context.Context, worker string, lanes []Environment) (left []Environment, err error) {
	encoded, err := rows(lanes)
	if err != nil {
		return nil, err
	}
	const same = `l.service_id = v.service_id AND l.environment_id = v.environment_id`
	const sleeps = `l.ready_at IS NULL AND (l.leased_by IS NULL OR l.leased_by = ?)`
	const asked = `{rows v(service_id text, environment_id text)}`
	var woken, sleeping []Environment
	for _, step := range []struct {
		found *[]Environment
		query string
		args  []any
	}{
		{&woken, `UPDATE {lanes} SET ready_at = {now} WHERE lane_id ` + s.db.In(`
			SELECT l.lane_id FROM {lanes} l JOIN `+asked+` ON `+same+` WHERE `+sleeps+`
			ORDER BY l.lane_id `+s.skipLocked("l")) + ` RETURNING service_id, environment_id`, []any{encoded, worker}},
		{&woken, `INSERT INTO {lanes} (service_id, environment_id, ready_at) SELECT service_id, environment_id, {now}
			FROM ` + asked + ` WHERE NOT EXISTS (SELECT 1 FROM {lanes} l WHERE ` + same + `) ORDER BY service_id, environment_id
			ON CONFLICT (service_id, environment_id) DO NOTHING RETURNING service_id, environment_id`, []any{encoded}},
		{&sleeping, `SELECT l.service_id, l.environment_id FROM {lanes} l JOIN ` + asked + ` ON ` + same + ` WHERE ` + sleeps,
			[]any{encoded, worker}},
	} {
		if err := s.db.SelectContext(ctx, step.found, s.db.SQL(step.query), step.args...); err != nil {
			return nil, fmt.Errorf("say that lanes have work: %w", err)
		}
		if len(woken) == len(lanes) {
			return nil, nil
		}
	}
	return sleeping, nil
}

// Scan finds every lane that has something to be read, whoever saw it published.
// It costs a look into the index for each such lane.
func (s *Store) Scan(ctx context.Context) ([]Environment, error) {
	query := `SELECT DISTINCT e.service_id, e.environment_id FROM {outbox} e WHERE ` + Readable
	if s.db.Dialect == database.PostgreSQL {
		// From each lane's first entry to the next lane's.
		const next = `SELECT {lane_key e} AS key, e.service_id, e.environment_id FROM {outbox} e
			WHERE ` + Readable + ` AND {lane_key e} > %s ORDER BY {lane_key e}, e.sequence LIMIT 1`
		query = `WITH RECURSIVE found AS ((` + fmt.Sprintf(next, `-9223372036854775808`) + `)
				UNION ALL SELECT n.* FROM found CROSS JOIN LATERAL (` + fmt.Sprintf(next, `found.key`) + `) AS n)
			SELECT service_id, environment_id FROM found`
	}
	var found []Environment
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(query)); err != nil {
		return nil, fmt.Errorf("look through all lanes: %w", err)
	}
	return found, nil
}

// EnvironmentEvent is a condition on an event e that it concerns a whole
// environment, and has not ended. It is spelled as the index of such events has it.
const EnvironmentEvent = `e.type IN ('` + events.EnvironmentCreatedType + `', '` + events.EnvironmentDeletedType + `')
	AND e.finished_at IS NULL`

// NoteCreations notes each EnvironmentCreated for its snapshot, and gates its
// source: later events there are read when the snapshot was taken. It returns the
// gates. A worker does so before it reads anything that was seen with the event or
// after it, so nothing later starts before the snapshot.
func (s *Store) NoteCreations(ctx context.Context) (gates map[Environment]int64, err error) {
	found, err := s.events(ctx, s.db, `
		SELECT `+s.eventColumns(s.payload())+` FROM {outbox} e
		WHERE `+EnvironmentEvent+` AND e.type = '`+events.EnvironmentCreatedType+`' AND NOT EXISTS (SELECT 1 FROM {copies} c WHERE c.sequence = e.sequence)
		ORDER BY e.sequence`)
	if err != nil {
		return nil, fmt.Errorf("look for environments that were created: %w", err)
	}
	gates = make(map[Environment]int64)
	for _, e := range found {
		parsed, err := e.Parse()
		if err != nil {
			continue // it dies in its lane
		}
		created, ok := parsed.(events.EnvironmentCreated)
		if !ok {
			return nil, fmt.Errorf("event %s of type %s is a %T", e.EventID, e.Type, parsed)
		}
		source := Environment{e.ServiceID, created.SourceEnvironmentID}
		if err := s.db.Tx(ctx, func(tx *sqlx.Tx) error { return s.noteCreation(ctx, tx, e, created, source) }); err != nil {
			return nil, fmt.Errorf("note that environment %q of service %s was created: %w", e.EnvironmentID, e.ServiceID, err)
		}
		if at, gated := gates[source]; !gated || e.Sequence < at {
			gates[source] = e.Sequence
		}
	}
	return gates, nil
}

func (s *Store) noteCreation(ctx context.Context, tx *sqlx.Tx, e *Event, created events.EnvironmentCreated, source Environment) error {
	target := Environment{e.ServiceID, e.EnvironmentID}
	lanes, err := s.makeLanes(ctx, tx, []Environment{source, target})
	if err != nil {
		return err
	}
	if _, err := s.lockLanes(ctx, tx, sortedIDs(lanes), false); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
		SELECT e.sequence, CAST(? AS bigint), CAST(? AS bigint), CAST(? AS text), 'pending', {now} FROM {outbox} e
		WHERE e.sequence = ? AND e.finished_at IS NULL ON CONFLICT (sequence) DO NOTHING`),
		lanes[source], lanes[target], created.EnvironmentServiceID, e.Sequence); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(SetGate), lanes[source], lanes[source])
	return err
}

// SetGate sets the gate of a lane, given twice, by the snapshots of it that are
// due, and wakes the lane. The caller has locked it in an earlier statement, so
// that this one sees what was noted meanwhile.
const SetGate = `
	UPDATE {lanes} SET wake = wake + 1, ready_at = coalesce(ready_at, {now}),
		gate_sequence = (SELECT min(sequence) FROM {copies} WHERE source_lane = ? AND state = 'pending')
	WHERE lane_id = ?`

// makeLanes returns the lanes of environments, and makes those that are new.
func (s *Store) makeLanes(ctx context.Context, tx *sqlx.Tx, of []Environment) (map[Environment]int64, error) {
	encoded, err := rows(of)
	if err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {lanes} (service_id, environment_id) SELECT service_id, environment_id
		FROM {rows v(service_id text, environment_id text)} WHERE true ORDER BY service_id, environment_id
		ON CONFLICT (service_id, environment_id) DO NOTHING`), encoded); err != nil {
		return nil, err
	}
	var found []struct {
		Environment
		LaneID int64 `db:"lane_id"`
	}
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT l.lane_id, l.service_id, l.environment_id FROM {lanes} l JOIN {rows v(service_id text, environment_id text)}
		ON l.service_id = v.service_id AND l.environment_id = v.environment_id`), encoded); err != nil {
		return nil, err
	}
	lanes := make(map[Environment]int64, len(found))
	for _, f := range found {
		lanes[f.Environment] = f.LaneID
	}
	return lanes, nil
}

var errNameless = errors.New("service_id and environment_id must name an environment: at most 256 bytes of valid UTF-8, " +
	"without control characters")

// BuryIn makes the events of a name that no lane can have dead.
func (s *Store) BuryIn(ctx context.Context, env Environment) error {
	same := `e.service_id = ? AND e.environment_id = ?`
	names := []any{env.ServiceID, env.EnvironmentID}
	if s.db.Dialect == database.SQLite { // its texts are any bytes
		same = `CAST(e.service_id AS blob) = ? AND CAST(e.environment_id AS blob) = ?`
		names = []any{[]byte(env.ServiceID), []byte(env.EnvironmentID)}
	}
	var found []int64
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT e.sequence FROM {outbox} e WHERE `+Readable+` AND `+same+` ORDER BY e.sequence LIMIT ?`),
		append(names, LookMost)...); err != nil {
		return fmt.Errorf("look for events without an environment: %w", err)
	}
	return s.Bury(ctx, found)
}

// Bury makes events dead that no lane can have.
func (s *Store) Bury(ctx context.Context, sequences []int64) error {
	if len(sequences) == 0 {
		return nil
	}
	ids, err := rows(sequences)
	if err != nil {
		return err
	}
	if _, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {outbox} SET state = 'dead', finished_at = {now}, error_class = ?, error_code = ?, error = ?
		WHERE sequence {in_ids} AND state = 'available' AND finished_at IS NULL`),
		string(failure.Permanent), failure.InvalidEvent, errNameless.Error(), ids); err != nil {
		return fmt.Errorf("end events without an environment: %w", err)
	}
	return nil
}
