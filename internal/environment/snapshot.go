package environment

import (
	"context"
	"fmt"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"
)

type snapshot struct {
	Sequence   int64 `db:"sequence"`
	SourceLane int64 `db:"source_lane"`
}

// Snapshots takes the snapshots that are due, in the order of their events. It
// needs neither the source's nor the target's bucket, so it also runs while
// either is blocked or paused, and the source goes on at once.
func (s *Store) Snapshots(ctx context.Context) error {
	for {
		var due []snapshot
		if err := s.db.SelectContext(ctx, &due, s.db.SQL(`
			SELECT sequence, source_lane FROM {copies} WHERE state = 'pending' ORDER BY sequence LIMIT 100`)); err != nil {
			return fmt.Errorf("look for snapshots: %w", err)
		}
		if len(due) == 0 {
			return nil
		}
		for _, one := range due {
			if err := s.db.Tx(ctx, func(tx *sqlx.Tx) error { return s.snapshot(ctx, tx, one) }); err != nil {
				return fmt.Errorf("take the snapshot of EnvironmentCreated %d: %w", one.Sequence, err)
			}
		}
	}
}

// snapshot notes the live media of the source's ledger. A media with an
// unfinished earlier event, or still owed to the source, waits for its end.
func (s *Store) snapshot(ctx context.Context, tx *sqlx.Tx, one snapshot) error {
	if err := s.lockLanes(ctx, tx, one.SourceLane); err != nil {
		return err
	}
	result, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copies} SET state = 'planned' WHERE sequence = ? AND state = 'pending'`), one.Sequence)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return err
	}
	if err := s.plan(ctx, tx, one); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {lanes} SET snapshot_sequence = ? WHERE lane_id = ? AND snapshot_sequence < ?`),
		one.Sequence, one.SourceLane, one.Sequence); err != nil {
		return err
	}
	return s.openGate(ctx, tx, one.SourceLane)
}

// plan writes the items of a snapshot. Where a deletion of the source is still
// to run, nothing from before it counts.
func (s *Store) plan(ctx context.Context, tx *sqlx.Tx, one snapshot) error {
	source, exists, err := s.settings.ByLane(ctx, tx, one.SourceLane)
	if err != nil {
		return err
	}
	var after int64
	if err := tx.GetContext(ctx, &after, s.db.SQL(`
		SELECT coalesce(max(sequence), 0) FROM {outbox} WHERE lane_id = ? AND media_id IS NULL
		AND type = 'EnvironmentDeleted' AND sequence < ? AND state IN ('available', 'running', 'retryable')`),
		one.SourceLane, one.Sequence); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {copy_items} (copy_sequence, media_id, state, source_lane, target_lane,
			source_bucket, source_key, source_etag, file_name, version, content_type, size)
		SELECT c.sequence, m.media_id, 'waiting', c.source_lane, c.target_lane, '', '', '', '', 0, '', 0
		FROM {copies} c, (
			SELECT media_id FROM {outbox} WHERE lane_id = ? AND sequence > ? AND sequence < ?
				AND media_id IS NOT NULL AND state IN ('available', 'running', 'retryable')
			UNION
			SELECT media_id FROM {copy_items} WHERE target_lane = ? AND copy_sequence > ? AND copy_sequence < ?
				AND state = 'owed'
			UNION
			SELECT media_id FROM {copy_items} WHERE target_lane = ? AND copy_sequence > ? AND copy_sequence < ?
				AND state = 'waiting') AS m
		WHERE c.sequence = ?`),
		one.SourceLane, after, one.Sequence, one.SourceLane, after, one.Sequence,
		one.SourceLane, after, one.Sequence, one.Sequence); err != nil {
		return err
	}
	if !exists {
		return nil
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {copy_items} (copy_sequence, media_id, state, source_lane, target_lane,
			source_bucket, source_key, source_etag, file_name, version, content_type, size)
		SELECT c.sequence, m.media_id, 'owed', c.source_lane, c.target_lane,
			m.bucket, m.object_key, m.etag, substr(m.object_key, ?), m.version, m.content_type, m.size
		FROM {media_objects} m JOIN {copies} c ON c.sequence = ?
		WHERE m.lane_id = ? AND m.object_key IS NOT NULL AND m.sequence > ?
		ON CONFLICT (copy_sequence, media_id) DO NOTHING`),
		nameAt(source.KeyPrefix()), one.Sequence, one.SourceLane, after)
	return err
}

// nameAt is where the file name begins in keys below that prefix, as SQL's
// substr counts: characters, from 1.
func nameAt(keyPrefix string) int { return utf8.RuneCountInString(keyPrefix) + 1 }
