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
// unfinished earlier event, or still owed to the source, joins when that ends.
func (s *Store) snapshot(ctx context.Context, tx *sqlx.Tx, one snapshot) error {
	// From here on, each earlier event is either in the ledger or will see
	// the snapshot when it ends.
	if err := s.lockLane(ctx, tx, one.SourceLane); err != nil {
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
	source, exists, err := s.settings.ByLane(ctx, tx, one.SourceLane)
	if err != nil {
		return err
	}
	if exists {
		skip := utf8.RuneCountInString(source.KeyPrefix())
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			INSERT INTO {copy_items} (copy_sequence, media_id, source_lane, target_lane, source_bucket, source_key,
				source_etag, file_name, version, content_type, size)
			SELECT c.sequence, m.media_id, c.source_lane, c.target_lane, m.bucket, m.object_key, m.etag,
				substr(m.object_key, ?), m.version, m.content_type, m.size
			FROM {media_objects} m JOIN {copies} c ON c.sequence = ?
			WHERE m.lane_id = c.source_lane AND m.object_key IS NOT NULL
			AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = m.lane_id AND e.media_id = m.media_id
				AND e.sequence < c.sequence AND e.state IN ('available', 'running', 'retryable'))
			AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = m.lane_id AND e.media_id IS NULL
				AND e.type = 'EnvironmentDeleted' AND e.sequence < c.sequence
				AND e.state IN ('available', 'running', 'retryable'))
			AND NOT EXISTS (SELECT 1 FROM {copy_items} o WHERE o.target_lane = m.lane_id
				AND o.media_id = m.media_id AND o.copy_sequence < c.sequence AND o.state = 'owed')`),
			skip+1, one.Sequence); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {lanes} SET snapshot_sequence = ? WHERE lane_id = ? AND snapshot_sequence < ?`),
		one.Sequence, one.SourceLane, one.Sequence); err != nil {
		return err
	}
	return s.openGate(ctx, tx, one.SourceLane)
}

// join gives a media to the copies whose snapshot left it out, or has it as it
// was, because of the event or item that has just ended.
func (s *Store) join(ctx context.Context, tx *sqlx.Tx, endings []ending) error {
	for _, e := range endings {
		var copies []int64
		if err := tx.SelectContext(ctx, &copies, s.db.SQL(`
			SELECT sequence FROM {copies} c WHERE source_lane = ? AND sequence > ? AND state IN ('planned', 'active')
			AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = ? AND e.media_id = ?
				AND e.sequence < c.sequence AND e.state IN ('available', 'running', 'retryable'))
			AND NOT EXISTS (SELECT 1 FROM {copy_items} o WHERE o.target_lane = ? AND o.media_id = ?
				AND o.copy_sequence < c.sequence AND o.state = 'owed')`),
			e.laneID, e.sequence, e.laneID, e.mediaID, e.laneID, e.mediaID); err != nil {
			return fmt.Errorf("find the copies that a media joins: %w", err)
		}
		for _, sequence := range copies {
			if err := s.joinOne(ctx, tx, sequence, e); err != nil {
				return fmt.Errorf("join a media to a copy: %w", err)
			}
		}
	}
	return nil
}

func (s *Store) joinOne(ctx context.Context, tx *sqlx.Tx, copySequence int64, e ending) error {
	source, exists, err := s.settings.ByLane(ctx, tx, e.laneID)
	if err != nil || !exists {
		return err
	}
	// What the snapshot noted of the media, if anything, is out of date.
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET state = 'cancelled' WHERE copy_sequence = ? AND media_id = ? AND state = 'owed'`),
		copySequence, e.mediaID); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {copy_items} (copy_sequence, media_id, source_lane, target_lane, source_bucket, source_key,
			source_etag, file_name, version, content_type, size)
		SELECT c.sequence, m.media_id, c.source_lane, c.target_lane, m.bucket, m.object_key, m.etag,
			substr(m.object_key, ?), m.version, m.content_type, m.size
		FROM {media_objects} m JOIN {copies} c ON c.sequence = ?
		WHERE m.lane_id = ? AND m.media_id = ? AND m.object_key IS NOT NULL AND m.sequence < c.sequence
		ON CONFLICT (copy_sequence, media_id) DO UPDATE SET state = 'owed', source_bucket = excluded.source_bucket,
			source_key = excluded.source_key, source_etag = excluded.source_etag, file_name = excluded.file_name,
			version = excluded.version, content_type = excluded.content_type, size = excluded.size,
			failure_count = 0, first_failed_at = NULL, next_attempt_at = 0, error_code = NULL, error = NULL`),
		utf8.RuneCountInString(source.KeyPrefix())+1, copySequence, e.laneID, e.mediaID)
	return err
}

// joinWaiting gives copies from an environment that is about to be deleted the
// media that waiting events have kept from joining: those events will be
// superseded, so what the ledger has now is what there will be.
func (s *Store) joinWaiting(ctx context.Context, laneID, before int64) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		var waiting []struct {
			Copy     int64  `db:"copy_sequence"`
			MediaID  string `db:"media_id"`
			Sequence int64  `db:"sequence"`
		}
		if err := tx.SelectContext(ctx, &waiting, s.db.SQL(`
			SELECT c.sequence AS copy_sequence, e.media_id, min(e.sequence) AS sequence
			FROM {copies} c JOIN {outbox} e ON e.lane_id = c.source_lane AND e.sequence < c.sequence
			WHERE c.source_lane = ? AND c.sequence < ? AND c.state IN ('planned', 'active')
			AND e.media_id IS NOT NULL AND e.state IN ('available', 'retryable')
			AND NOT EXISTS (SELECT 1 FROM {copy_items} i WHERE i.copy_sequence = c.sequence AND i.media_id = e.media_id)
			GROUP BY c.sequence, e.media_id`), laneID, before); err != nil {
			return err
		}
		for _, w := range waiting {
			if err := s.joinOne(ctx, tx, w.Copy, ending{laneID, w.MediaID, w.Sequence}); err != nil {
				return err
			}
		}
		return nil
	})
	return wrap("let waiting media join copies", err)
}
