package environment

import (
	"context"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// ending is the end of an event of a media or, by the sequence of its copy, of an
// item. Items of later copies may have waited for it.
type ending struct {
	WaitsFor int64  `db:"waits_for" json:"waits_for"`
	MediaID  string `db:"media_id" json:"media_id"`
	// Failed tells of an item that it did not bring the media.
	Failed bool `db:"failed" json:"failed"`
}

// itemKey names an item.
type itemKey struct {
	CopySequence int64  `db:"copy_sequence" json:"copy_sequence"`
	MediaID      string `db:"media_id" json:"media_id"`
}

// mediaOf names a media of a lane.
type mediaOf struct {
	LaneID  int64  `json:"lane_id"`
	MediaID string `json:"media_id"`
}

// strike takes what has ended off the lists of items that wait for it. An item
// whose list is empty takes its media as the ledger of its source then has it. An
// item that ends thereby may be what others, of copies from its target, wait for.
// The caller's transaction has locked the lane in which the ending stands.
func (s *Store) strike(ctx context.Context, tx *sqlx.Tx, ended []ending) error {
	for len(ended) > 0 {
		encoded, err := rows(ended)
		if err != nil {
			return err
		}
		const struck = `{rows v(waits_for bigint, media_id text, failed boolean)}
			JOIN {copy_waits} w ON w.waits_for = v.waits_for AND w.media_id = v.media_id`
		if slices.ContainsFunc(ended, func(e ending) bool { return e.Failed }) {
			if _, err := tx.ExecContext(ctx, s.db.SQL(`
				UPDATE {copy_items} AS i SET lacks = x.waits_for
				FROM (SELECT w.copy_sequence, w.media_id, max(w.waits_for) AS waits_for FROM `+struck+`
					WHERE v.failed GROUP BY w.copy_sequence, w.media_id) AS x
				WHERE i.copy_sequence = x.copy_sequence AND i.media_id = x.media_id AND i.lacks < x.waits_for`), encoded); err != nil {
				return wrap("note what a copy lacks", err)
			}
		}
		var waited []itemKey
		if err := tx.SelectContext(ctx, &waited, s.db.SQL(`
			DELETE FROM {copy_waits} WHERE (waits_for, media_id) IN
				(SELECT v.waits_for, v.media_id FROM {rows v(waits_for bigint, media_id text)})
			RETURNING copy_sequence, media_id`), encoded); err != nil {
			return wrap("strike what has ended off the lists of items", err)
		}
		if ended, err = s.take(ctx, tx, waited); err != nil {
			return wrap("let media join a copy", err)
		}
	}
	return nil
}

// take ends the waiting of those items that wait for nothing any more. It returns
// the endings of those that got no object: their target has what it had.
func (s *Store) take(ctx context.Context, tx *sqlx.Tx, items []itemKey) ([]ending, error) {
	if len(items) == 0 {
		return nil, nil
	}
	encoded, err := rows(items)
	if err != nil {
		return nil, err
	}
	const ready = `(i.copy_sequence, i.media_id) IN (SELECT copy_sequence, media_id FROM {rows v(copy_sequence bigint, media_id text)})
		AND i.state = 'waiting' AND NOT EXISTS (SELECT 1 FROM {copy_waits} w WHERE w.copy_sequence = i.copy_sequence AND w.media_id = i.media_id)`
	var from []snapshot
	if err := tx.SelectContext(ctx, &from, s.db.SQL(`
		SELECT DISTINCT i.copy_sequence AS sequence, i.source_lane FROM {copy_items} i WHERE `+ready), encoded); err != nil || len(from) == 0 {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		DELETE FROM {copy_names} WHERE (copy_sequence, media_id) IN
			(SELECT i.copy_sequence, i.media_id FROM {copy_items} i WHERE `+ready+`)`), encoded); err != nil {
		return nil, err
	}
	for _, one := range from {
		source, exists, err := s.settings.ByLane(ctx, tx, one.SourceLane)
		if err != nil {
			return nil, err
		}
		if !exists {
			continue
		}
		// What stands in the ledger from before a deletion that is yet to run is not
		// what the copy is to have.
		after, err := s.pendingDeletion(ctx, tx, one.SourceLane, one.Sequence)
		if err != nil {
			return nil, err
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {copy_items} AS i SET state = 'owed', source_bucket = m.bucket, source_key = m.object_key,
				source_etag = m.etag, file_name = substr(m.object_key, ?), version = m.version,
				content_type = m.content_type, size = m.size, failure_count = 0, first_failed_at = NULL,
				next_attempt_at = 0, error_code = NULL, error = NULL
			FROM {media_objects} m WHERE m.lane_id = ? AND m.media_id = i.media_id AND m.object_key IS NOT NULL
			AND m.sequence > ? AND m.sequence >= i.lacks AND i.source_lane = m.lane_id AND i.copy_sequence = ? AND `+ready),
			nameAt(source.KeyPrefix()), one.SourceLane, after, one.Sequence, encoded); err != nil {
			return nil, err
		}
	}
	// The others end here. A snapshot of their target that is just being taken has
	// noted that it waits for them, or sees that they have ended.
	var targets []int64
	if err := tx.SelectContext(ctx, &targets, s.db.SQL(`
		SELECT DISTINCT i.target_lane FROM {copy_items} i WHERE `+ready), encoded); err != nil || len(targets) == 0 {
		return nil, err
	}
	if err := s.lockLanes(ctx, tx, targets...); err != nil {
		return nil, err
	}
	var ended []ending
	if err := tx.SelectContext(ctx, &ended, s.db.SQL(`
		UPDATE {copy_items} AS i SET state = 'failed', error_code = ?, error = ?
		WHERE i.lacks > 0 AND `+ready+`
		RETURNING copy_sequence AS waits_for, media_id, true AS failed`),
		failure.SourceChanged, lacking, encoded); err != nil {
		return nil, err
	}
	var none []ending
	err = tx.SelectContext(ctx, &none, s.db.SQL(`
		DELETE FROM {copy_items} AS i WHERE `+ready+` RETURNING copy_sequence AS waits_for, media_id, false AS failed`), encoded)
	return append(ended, none...), err
}

// lacking says why an item fails whose source is an environment that lacks it, too.
const lacking = "the environment that it is copied from lacks the media: its own copy failed; retry that one first"

// lookAgainAt makes items take what the ledger has by now whose object an event
// changed although it was owed. Events copy first what they find owed, so this
// event had begun before the item was noted: it belongs to the snapshot. A worker
// that is just copying the former object has lost the item.
func (s *Store) lookAgainAt(ctx context.Context, tx *sqlx.Tx, changed []mediaOf) error {
	if len(changed) == 0 {
		return nil
	}
	encoded, err := rows(changed)
	if err != nil {
		return err
	}
	var again []item
	if err := tx.SelectContext(ctx, &again, s.db.SQL(`
		UPDATE {copy_items} SET state = 'waiting', may_have_written = (may_have_written OR leased_until IS NOT NULL),
			leased_until = NULL, lease_token = lease_token + 1
		WHERE state = 'owed' AND (source_lane, media_id) IN
			(SELECT lane_id, media_id FROM {rows v(lane_id bigint, media_id text)})
		RETURNING `+itemColumns), encoded); err != nil {
		return wrap("look again at items whose media changed", err)
	}
	// What they may have written has a name and a version that they will not know.
	if err := s.noteLeftovers(ctx, tx, again); err != nil {
		return err
	}
	keys := make([]itemKey, len(again))
	for i, it := range again {
		keys[i] = itemKey{it.CopySequence, it.MediaID}
	}
	ended, err := s.take(ctx, tx, keys)
	if err != nil {
		return wrap("look again at items whose media changed", err)
	}
	return s.strike(ctx, tx, ended)
}
