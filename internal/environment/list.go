package environment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// ErrNotFound says that the environment was never made from another, or is gone.
var ErrNotFound = errors.New("no such environment")

// Listed is an environment's copy as operators see it. Its JSON is a
// contract.
type Listed struct {
	ServiceID           string `db:"service_id" json:"service_id"`
	EnvironmentID       string `db:"environment_id" json:"environment_id"`
	SourceEnvironmentID string `db:"source_environment_id" json:"source_environment_id"`
	Directory           string `db:"directory" json:"directory"`
	// State is running, complete, incomplete or deleting.
	State  string `db:"state" json:"state"`
	Total  int64  `db:"total" json:"total"`
	Done   int64  `db:"done" json:"done"`
	Failed int64  `db:"failed" json:"failed"`
}

// Failure is a media that could not be copied.
type Failure struct {
	MediaID   string `db:"media_id" json:"media_id"`
	ErrorCode string `db:"error_code" json:"error_code"`
	Error     string `db:"error" json:"error"`
}

// Shown is an environment with what went wrong in its copy.
type Shown struct {
	Listed
	Failures []Failure `json:"failures"`
}

// listQuery has, for each environment, the last copy that was made into it. A
// copy that owes nothing any more is over, whether or not the worker has noted
// that already.
const listQuery = `
	SELECT service_id, environment_id, source_environment_id, directory, total, done, failed,
		CASE WHEN deleting THEN 'deleting' WHEN copy_state IN ('pending', 'planned') OR open > 0 THEN 'running'
			WHEN failed > 0 THEN 'incomplete' ELSE 'complete' END AS state
	FROM (SELECT c.sequence, t.service_id, t.environment_id, s.environment_id AS source_environment_id,
			coalesce(i.directory, '') AS directory, c.state AS copy_state,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence AND x.state <> 'cancelled') AS total,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence
				AND x.state IN ('waiting', 'owed')) AS open,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence AND x.state = 'done') AS done,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence AND x.state = 'failed') AS failed,
			EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = c.target_lane AND e.media_id IS NULL
				AND e.type = 'EnvironmentDeleted' AND e.sequence > c.sequence
				AND e.state IN ('available', 'running', 'retryable')) AS deleting
		FROM {copies} c JOIN {lanes} t ON t.lane_id = c.target_lane JOIN {lanes} s ON s.lane_id = c.source_lane
		LEFT JOIN {integrations} i ON i.lane_id = c.target_lane
		WHERE c.sequence = (SELECT max(sequence) FROM {copies} m WHERE m.target_lane = c.target_lane)) AS listed`

// List returns the environments that were made from others, in the order in
// which they were made, at most limit of them; 0 means all.
func (s *Store) List(ctx context.Context, limit int) ([]Listed, error) {
	query, args := listQuery+` ORDER BY sequence`, []any{}
	if limit > 0 {
		query, args = query+` LIMIT ?`, append(args, limit)
	}
	listed := []Listed{}
	return listed, wrap("list environments", s.db.SelectContext(ctx, &listed, s.db.SQL(query), args...))
}

// Show returns one environment, or ErrNotFound.
func (s *Store) Show(ctx context.Context, serviceID, environmentID string) (Shown, error) {
	var listed []Listed
	if err := s.db.SelectContext(ctx, &listed, s.db.SQL(listQuery+` WHERE service_id = ? AND environment_id = ?`),
		serviceID, environmentID); err != nil {
		return Shown{}, wrap("show an environment", err)
	}
	if len(listed) == 0 {
		return Shown{}, fmt.Errorf("%w: environment %q of service %q", ErrNotFound, environmentID, serviceID)
	}
	shown := Shown{Listed: listed[0], Failures: []Failure{}}
	err := s.db.SelectContext(ctx, &shown.Failures, s.db.SQL(`
		SELECT x.media_id, coalesce(x.error_code, '') AS error_code, coalesce(x.error, '') AS error
		FROM {copy_items} x JOIN {copies} c ON c.sequence = x.copy_sequence JOIN {lanes} t ON t.lane_id = c.target_lane
		WHERE t.service_id = ? AND t.environment_id = ? AND x.state = 'failed'
		AND c.sequence = (SELECT max(sequence) FROM {copies} m WHERE m.target_lane = c.target_lane)
		ORDER BY x.media_id`), serviceID, environmentID)
	return shown, wrap("show an environment's failures", err)
}

// Retried says what RetryFailed did: Matched media had failed, and of Changed
// ones the copy is owed again.
type Retried struct{ Matched, Changed int64 }

// errDryRun rolls back what is only counted.
var errDryRun = errors.New("dry run")

// RetryFailed owes an environment's failed media again, or only counts them. Media
// of which an event isn't finished in either environment stay failed: that event
// may have begun without the copy.
func (s *Store) RetryFailed(ctx context.Context, serviceID, environmentID, actor, reason string, dryRun bool) (Retried, error) {
	shown, err := s.Show(ctx, serviceID, environmentID)
	if err != nil {
		return Retried{}, err
	}
	if shown.State == "deleting" {
		return Retried{}, fmt.Errorf("environment %q of service %q is being deleted: nothing is copied to it any more",
			environmentID, serviceID)
	}
	var done Retried
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		done = Retried{}
		var lanes []int64
		if err := tx.SelectContext(ctx, &lanes, s.db.SQL(`
			SELECT lane_id FROM {lanes} WHERE service_id = ? AND environment_id = ?`), serviceID, environmentID); err != nil {
			return err
		}
		// The lane first: the end of a copy, and the assigning of a deletion,
		// then come before this or see what it owes.
		if err := s.lockLanes(ctx, tx, lanes...); err != nil {
			return err
		}
		var copies []int64
		if err := tx.SelectContext(ctx, &copies, s.db.SQL(`
			SELECT max(c.sequence) FROM {copies} c JOIN {lanes} t ON t.lane_id = c.target_lane
			WHERE t.service_id = ? AND t.environment_id = ? AND NOT EXISTS (SELECT 1 FROM {outbox} e
				WHERE e.lane_id = t.lane_id AND e.media_id IS NULL AND e.type = 'EnvironmentDeleted'
				AND e.sequence > c.sequence AND e.state IN ('available', 'running', 'retryable'))
			HAVING max(c.sequence) IS NOT NULL`),
			serviceID, environmentID); err != nil || len(copies) == 0 {
			return err
		}
		if err := tx.GetContext(ctx, &done.Matched, s.db.SQL(`
			SELECT count(*) FROM {copy_items} WHERE copy_sequence = ? AND state = 'failed'`), copies[0]); err != nil {
			return err
		}
		begun, err := s.unassigned(ctx, tx, copies[0])
		if err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {copy_items} SET state = 'owed', failure_count = 0, first_failed_at = NULL, next_attempt_at = 0,
				denied_at = NULL, denied_count = 0
			WHERE copy_sequence = ? AND state = 'failed'
			AND media_id NOT IN (SELECT media_id FROM {rows v(media_id text)})
			AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = source_lane AND e.media_id = {copy_items}.media_id
				AND e.state IN ('available', 'running', 'retryable'))
			AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = target_lane AND e.media_id = {copy_items}.media_id
				AND e.state IN ('available', 'running', 'retryable'))`), copies[0], begun)
		if err != nil {
			return err
		}
		if done.Changed, err = result.RowsAffected(); err != nil || done.Changed == 0 {
			return err
		}
		if dryRun {
			return errDryRun
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {copies} SET state = 'active' WHERE sequence = ? AND state = 'ended'`), copies[0]); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.SQL(`
			INSERT INTO {audit} (at, actor, action, target, reason, changed) VALUES ({now}, ?, ?, ?, ?, ?)`),
			strings.ToValidUTF8(actor, "\uFFFD"), "environments retry-failed",
			fmt.Sprintf("service %q, environment %q", serviceID, environmentID), strings.ToValidUTF8(reason, "\uFFFD"), done.Changed)
		return err
	})
	if errors.Is(err, errDryRun) {
		err = nil
	}
	return done, wrap("retry an environment's failed media", err)
}

// unassigned lists, as rows, the media of events of either environment of a copy
// that stand in no lane yet: a worker may have begun them, and has them in its
// memory alone.
func (s *Store) unassigned(ctx context.Context, tx *sqlx.Tx, copySequence int64) (rows string, err error) {
	var found []outbox.Event
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT e.type, e.service_id, e.environment_id, e.data FROM {outbox} e
		JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id
		JOIN {copies} c ON l.lane_id IN (c.source_lane, c.target_lane)
		WHERE e.lane_id IS NULL AND c.sequence = ?`), copySequence); err != nil {
		return "", err
	}
	type media struct {
		ID string `json:"media_id"`
	}
	list := []media{}
	for i := range found {
		// What isn't valid begins nothing.
		if event, err := found[i].Parse(); err == nil && event.Media() != "" {
			list = append(list, media{event.Media()})
		}
	}
	encoded, err := json.Marshal(list)
	return string(encoded), err
}
