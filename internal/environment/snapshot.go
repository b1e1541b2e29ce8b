package environment

import (
	"context"
	"fmt"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
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
	after, err := s.pendingDeletion(ctx, tx, one.SourceLane, one.Sequence)
	if err != nil {
		return err
	}
	if err := s.awaitEvents(ctx, tx, one, after); err != nil {
		return fmt.Errorf("note what unfinished events bring: %w", err)
	}
	if err := s.awaitItems(ctx, tx, one, after); err != nil {
		return fmt.Errorf("note what is still to be copied to the source: %w", err)
	}
	if !exists {
		return nil
	}
	at := nameAt(source.KeyPrefix())
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {copy_names} (target_lane, file_name, copy_sequence, media_id)
		SELECT i.target_lane, substr(m.object_key, ?), i.copy_sequence, i.media_id
		FROM {copy_items} i JOIN {media_objects} m ON m.lane_id = i.source_lane AND m.media_id = i.media_id
		WHERE i.copy_sequence = ? AND i.state = 'waiting' AND m.object_key IS NOT NULL AND m.sequence > ?
		ON CONFLICT DO NOTHING`), at, one.Sequence, after); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {copy_items} (copy_sequence, media_id, state, source_lane, target_lane,
			source_bucket, source_key, source_etag, file_name, version, content_type, size)
		SELECT c.sequence, m.media_id, 'owed', c.source_lane, c.target_lane,
			m.bucket, m.object_key, m.etag, substr(m.object_key, ?), m.version, m.content_type, m.size
		FROM {media_objects} m JOIN {copies} c ON c.sequence = ?
		WHERE m.lane_id = ? AND m.object_key IS NOT NULL AND m.sequence > ?
		ON CONFLICT (copy_sequence, media_id) DO NOTHING`), at, one.Sequence, one.SourceLane, after)
	return err
}

// waitingColumns and waitingValues are of an item whose object isn't known yet.
const (
	waitingColumns = `copy_sequence, media_id, state, source_lane, target_lane,
		source_bucket, source_key, source_etag, file_name, version, content_type, size`
	waitingValues = `'waiting', c.source_lane, c.target_lane, '', '', '', '', 0, '', 0`
)

// awaitEvents notes an item for each media that has unfinished events before the
// snapshot, with these events, and the file names that they may give it.
func (s *Store) awaitEvents(ctx context.Context, tx *sqlx.Tx, one snapshot, after int64) error {
	type awaited struct {
		WaitsFor int64  `json:"waits_for"`
		MediaID  string `json:"media_id"`
		FileName string `json:"file_name"`
	}
	return s.eachUnfinished(ctx, tx, one.SourceLane, after, one.Sequence, func(found []*outbox.Event) error {
		list := []awaited{}
		for _, e := range found {
			parsed, err := e.Parse()
			if err != nil || parsed.Media() == "" {
				continue // it brings no media
			}
			list = append(list, awaited{e.Sequence, parsed.Media(), fileName(parsed)})
		}
		encoded, err := rows(list)
		if err != nil {
			return err
		}
		const given = `{rows v(waits_for bigint, media_id text, file_name text)} JOIN {copies} c ON c.sequence = ?`
		for _, query := range []string{
			`INSERT INTO {copy_items} (` + waitingColumns + `) SELECT DISTINCT c.sequence, v.media_id, ` + waitingValues + `
				FROM ` + given + ` ON CONFLICT DO NOTHING`,
			`INSERT INTO {copy_waits} (waits_for, media_id, copy_sequence) SELECT v.waits_for, v.media_id, c.sequence
				FROM ` + given + ` ON CONFLICT DO NOTHING`,
			`INSERT INTO {copy_names} (target_lane, file_name, copy_sequence, media_id)
				SELECT DISTINCT c.target_lane, v.file_name, c.sequence, v.media_id
				FROM ` + given + ` WHERE v.file_name <> '' ON CONFLICT DO NOTHING`,
		} {
			if _, err := tx.ExecContext(ctx, s.db.SQL(query), encoded, one.Sequence); err != nil {
				return err
			}
		}
		return nil
	})
}

// fileName is the name that an event gives to its media; empty if it gives none.
func fileName(e events.Event) string {
	switch e := e.(type) {
	case events.MediaUploaded:
		return e.FileName
	case events.MediaRenamed:
		return e.To
	}
	return ""
}

// eachUnfinished visits a lane's unfinished events between two sequences, a batch
// at a time.
func (s *Store) eachUnfinished(ctx context.Context, tx *sqlx.Tx, laneID, after, before int64, visit func([]*outbox.Event) error) error {
	const most = 2000
	for {
		found, err := s.events.UnfinishedBetween(ctx, tx, laneID, after, before, most)
		if err != nil || len(found) == 0 {
			return err
		}
		if err := visit(found); err != nil {
			return err
		}
		after = found[len(found)-1].Sequence
	}
}

// awaitItems notes an item for each media that is still to be copied to the source.
// Where that failed, and nothing has come since, the source lacks the media.
func (s *Store) awaitItems(ctx context.Context, tx *sqlx.Tx, one snapshot, after int64) error {
	const into = `FROM {copy_items} i JOIN {copies} c ON c.sequence = ?
		WHERE i.target_lane = ? AND i.copy_sequence > ? AND i.copy_sequence < ? AND i.state = `
	for _, query := range []string{
		`INSERT INTO {copy_items} (` + waitingColumns + `) SELECT c.sequence, i.media_id, ` + waitingValues + ` ` + into + `'owed'
			ON CONFLICT DO NOTHING`,
		`INSERT INTO {copy_items} (` + waitingColumns + `) SELECT c.sequence, i.media_id, ` + waitingValues + ` ` + into + `'waiting'
			ON CONFLICT DO NOTHING`,
		`INSERT INTO {copy_waits} (waits_for, media_id, copy_sequence) SELECT i.copy_sequence, i.media_id, c.sequence ` + into + `'owed'`,
		`INSERT INTO {copy_waits} (waits_for, media_id, copy_sequence) SELECT i.copy_sequence, i.media_id, c.sequence ` + into + `'waiting'`,
		`INSERT INTO {copy_names} (target_lane, file_name, copy_sequence, media_id)
			SELECT c.target_lane, i.file_name, c.sequence, i.media_id ` + into + `'owed' ON CONFLICT DO NOTHING`,
		`INSERT INTO {copy_items} (` + waitingColumns + `, error_code, error, lacks)
			SELECT c.sequence, i.media_id, 'failed', c.source_lane, c.target_lane, '', '', '', '', 0, '', 0,
				'` + failure.SourceChanged + `', '` + lacking + `', i.copy_sequence ` + into + `'failed'
				AND NOT EXISTS (SELECT 1 FROM {media_objects} m
					WHERE m.lane_id = i.target_lane AND m.media_id = i.media_id AND m.sequence > i.copy_sequence)
			ON CONFLICT (copy_sequence, media_id) DO UPDATE SET lacks = excluded.lacks`,
	} {
		if _, err := tx.ExecContext(ctx, s.db.SQL(query), one.Sequence, one.SourceLane, after, one.Sequence); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {copy_names} (target_lane, file_name, copy_sequence, media_id)
		SELECT DISTINCT c.target_lane, n.file_name, c.sequence, n.media_id FROM {copy_names} n JOIN {copies} c ON c.sequence = ?
		WHERE n.target_lane = ? AND n.copy_sequence > ? AND n.copy_sequence < ? ON CONFLICT DO NOTHING`),
		one.Sequence, one.SourceLane, after, one.Sequence)
	return err
}

// nameAt is where the file name begins in keys below that prefix, as SQL's
// substr counts: characters, from 1.
func nameAt(keyPrefix string) int { return utf8.RuneCountInString(keyPrefix) + 1 }
