package environment

import (
	"context"
	"errors"
	"fmt"
	"math"
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

// listQuery has each environment with the last copy that was made into it, and
// those that no copy made while they are being deleted. A copy that owes nothing
// any more is over, whether or not the worker has noted that already.
const listQuery = `
	SELECT service_id, environment_id, source_environment_id, directory, total, done, failed,
		CASE WHEN deleting THEN 'deleting' WHEN copy_state IN ('pending', 'planned') OR open > 0 THEN 'running'
			WHEN failed > 0 THEN 'incomplete' ELSE 'complete' END AS state
	FROM (SELECT coalesce(c.sequence, d.sequence) AS sequence, t.service_id, t.environment_id,
			coalesce(s.environment_id, '') AS source_environment_id,
			coalesce(i.directory, '') AS directory, c.state AS copy_state,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence) AS total,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence
				AND x.state IN ('waiting', 'owed')) AS open,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence AND x.state = 'done') AS done,
			(SELECT count(*) FROM {copy_items} x WHERE x.copy_sequence = c.sequence AND x.state = 'failed') AS failed,
			d.sequence IS NOT NULL AND d.sequence > coalesce(c.sequence, 0) AS deleting
		FROM {lanes} t
		LEFT JOIN {copies} c ON c.target_lane = t.lane_id
			AND c.sequence = (SELECT max(sequence) FROM {copies} m WHERE m.target_lane = t.lane_id)
		LEFT JOIN (SELECT e.service_id, e.environment_id, max(e.sequence) AS sequence FROM {outbox} e
			WHERE ` + outbox.EnvironmentEvent + ` AND e.type = 'EnvironmentDeleted' GROUP BY 1, 2) AS d
			ON d.service_id = t.service_id AND d.environment_id = t.environment_id
		LEFT JOIN {lanes} s ON s.lane_id = c.source_lane
		LEFT JOIN {integrations} i ON i.lane_id = t.lane_id
		WHERE c.sequence IS NOT NULL OR d.sequence IS NOT NULL) AS listed`

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
		var copies []struct {
			Sequence   int64 `db:"sequence"`
			SourceLane int64 `db:"source_lane"`
			TargetLane int64 `db:"target_lane"`
		}
		const last = `
			SELECT c.sequence, c.source_lane, c.target_lane FROM {copies} c JOIN {lanes} t ON t.lane_id = c.target_lane
			WHERE t.service_id = ? AND t.environment_id = ? ORDER BY c.sequence DESC LIMIT 1`
		if err := tx.SelectContext(ctx, &copies, s.db.SQL(last), serviceID, environmentID); err != nil || len(copies) == 0 {
			return err
		}
		made := copies[0]
		// Both lanes first: what ends in either, a snapshot, and the beginning of a
		// deletion then come before this, or find what is owed.
		if err := s.lockLanes(ctx, tx, made.SourceLane, made.TargetLane); err != nil {
			return err
		}
		if deleted, err := s.pendingDeletion(ctx, tx, made.TargetLane, math.MaxInt64); err != nil || deleted > made.Sequence {
			return err
		}
		if err := tx.GetContext(ctx, &done.Matched, s.db.SQL(`
			SELECT count(*) FROM {copy_items} WHERE copy_sequence = ? AND state = 'failed'`), made.Sequence); err != nil {
			return err
		}
		begun, err := s.mediaOfUnfinished(ctx, tx, made.SourceLane, made.TargetLane)
		if err != nil {
			return err
		}
		var again []itemKey
		if err := tx.SelectContext(ctx, &again, s.db.SQL(`
			UPDATE {copy_items} SET state = CASE WHEN source_key = '' THEN 'waiting' ELSE 'owed' END,
				failure_count = 0, first_failed_at = NULL, next_attempt_at = 0, denied_at = NULL, denied_count = 0
			WHERE copy_sequence = ? AND state = 'failed'
			AND media_id NOT IN (SELECT media_id FROM {rows v(media_id text)})
			RETURNING copy_sequence, media_id`), made.Sequence, begun); err != nil {
			return err
		}
		if done.Changed = int64(len(again)); done.Changed == 0 {
			return nil
		}
		if dryRun {
			return errDryRun
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {copies} SET state = 'active' WHERE sequence = ? AND state = 'ended'`), made.Sequence); err != nil {
			return err
		}
		// What had failed before its object was known takes what is there now.
		ended, err := s.take(ctx, tx, again)
		if err != nil {
			return err
		}
		if err := s.strike(ctx, tx, ended); err != nil {
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

// mediaOfUnfinished lists, as rows, the media of unfinished events of lanes: a
// worker may have begun them.
func (s *Store) mediaOfUnfinished(ctx context.Context, tx *sqlx.Tx, lanes ...int64) (string, error) {
	type media struct {
		ID string `json:"media_id"`
	}
	list := []media{}
	for _, laneID := range lanes {
		if err := s.eachUnfinished(ctx, tx, laneID, 0, math.MaxInt64, func(found []*outbox.Event) error {
			for _, e := range found {
				if e.Media() != "" {
					list = append(list, media{e.Media()})
				}
			}
			return nil
		}); err != nil {
			return "", err
		}
	}
	return rows(list)
}
