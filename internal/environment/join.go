package environment

import (
	"context"
	"maps"
	"slices"

	"github.com/jmoiron/sqlx"
)

// ending is the end of an event of a media, or of an item into the lane. Items
// of copies from the lane may have waited for it.
type ending struct {
	LaneID  int64  `db:"lane_id" json:"lane_id"`
	MediaID string `db:"media_id" json:"media_id"`
	// Failed: it was an item that did not bring the media.
	Failed bool `db:"failed" json:"failed"`
	// Changed: it was an event that changed the media's object.
	Changed bool `db:"-" json:"-"`
}

// joining is an item whose media has nothing unfinished before its copy.
type joining struct {
	CopySequence int64  `db:"copy_sequence" json:"copy_sequence"`
	MediaID      string `db:"media_id" json:"media_id"`
	SourceLane   int64  `db:"source_lane" json:"-"`
	// Never: what it waited for did not bring the media.
	Never bool `db:"never" json:"-"`
}

// notAwaited holds for an item w that waits for no other item.
const notAwaited = `NOT EXISTS (SELECT 1 FROM {copy_items} o WHERE o.target_lane = w.source_lane
		AND o.media_id = w.media_id AND o.copy_sequence < w.copy_sequence AND o.state = 'owed')
	AND NOT EXISTS (SELECT 1 FROM {copy_items} o WHERE o.target_lane = w.source_lane
		AND o.media_id = w.media_id AND o.copy_sequence < w.copy_sequence AND o.state = 'waiting')`

// lookAgainAt makes items wait, for join to find, whose object an event
// changed although it was owed. Events copy first what they find owed, so this
// event had begun before the item was noted: it belongs to the snapshot.
func (s *Store) lookAgainAt(ctx context.Context, tx *sqlx.Tx, endings []ending) error {
	var changed []ending
	for _, e := range endings {
		if e.Changed {
			changed = append(changed, e)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	encoded, err := rows(changed)
	if err != nil {
		return err
	}
	var again []item
	if err := tx.SelectContext(ctx, &again, s.db.SQL(`
		UPDATE {copy_items} SET state = 'waiting', may_have_written = (may_have_written OR leased_until IS NOT NULL)
		WHERE state = 'owed' AND (source_lane, media_id) IN
			(SELECT lane_id, media_id FROM {rows v(lane_id bigint, media_id text)})
		RETURNING `+itemColumns), encoded); err != nil {
		return wrap("look again at items whose media changed", err)
	}
	// What they may have written has a name and a version that they will not know.
	return s.noteLeftovers(ctx, tx, again)
}

// join lets items take their media as the ledger now has it, if nothing that
// they waited for is left. An item that ends thereby without one may be what
// others, of copies from its target, have waited for.
func (s *Store) join(ctx context.Context, tx *sqlx.Tx, endings []ending) error {
	for len(endings) > 0 {
		encoded, err := rows(endings)
		if err != nil {
			return err
		}
		var ready []joining
		if err := tx.SelectContext(ctx, &ready, s.db.SQL(`
			SELECT DISTINCT w.copy_sequence, w.media_id, w.source_lane, v.failed AS never
			FROM {rows v(lane_id bigint, media_id text, failed boolean)}
			JOIN {copy_items} w ON w.source_lane = v.lane_id AND w.media_id = v.media_id AND w.state = 'waiting'
			WHERE NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = w.source_lane AND e.media_id = w.media_id
				AND e.sequence < w.copy_sequence AND e.state IN ('available', 'running', 'retryable'))
			AND `+notAwaited), encoded); err != nil {
			return wrap("find items that waited", err)
		}
		if endings, err = s.joinNow(ctx, tx, ready); err != nil {
			return wrap("let media join a copy", err)
		}
	}
	return nil
}

// joinNow ends the waiting of items. It returns the endings of those that got
// no object: their target has what it had.
func (s *Store) joinNow(ctx context.Context, tx *sqlx.Tx, ready []joining) ([]ending, error) {
	if len(ready) == 0 {
		return nil, nil
	}
	all, err := rows(ready)
	if err != nil {
		return nil, err
	}
	bySource := make(map[int64][]joining)
	for _, j := range ready {
		if !j.Never {
			bySource[j.SourceLane] = append(bySource[j.SourceLane], j)
		}
	}
	for laneID, joins := range bySource {
		if err := s.take(ctx, tx, laneID, joins); err != nil {
			return nil, err
		}
	}
	var none []struct {
		ending
		CopySequence int64 `db:"copy_sequence"`
	}
	if err := tx.SelectContext(ctx, &none, s.db.SQL(`
		DELETE FROM {copy_items} WHERE state = 'waiting' AND (copy_sequence, media_id) IN
			(SELECT copy_sequence, media_id FROM {rows v(copy_sequence bigint, media_id text)})
		RETURNING target_lane AS lane_id, media_id, false AS failed, copy_sequence`), all); err != nil {
		return nil, err
	}
	var endings []ending
	copies := make(map[int64]int64) // to their target
	for _, n := range none {
		endings = append(endings, n.ending)
		copies[n.CopySequence] = n.LaneID
	}
	if err := s.lockLanes(ctx, tx, slices.Collect(maps.Values(copies))...); err != nil {
		return nil, err
	}
	for _, sequence := range slices.Sorted(maps.Keys(copies)) {
		if err := s.closeCopy(ctx, tx, sequence); err != nil {
			return nil, err
		}
	}
	return endings, nil
}

// take makes items owed whose media the ledger has.
func (s *Store) take(ctx context.Context, tx *sqlx.Tx, sourceLane int64, joins []joining) error {
	source, exists, err := s.settings.ByLane(ctx, tx, sourceLane)
	if err != nil || !exists {
		return err
	}
	encoded, err := rows(joins)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} AS i SET state = 'owed', source_bucket = m.bucket, source_key = m.object_key,
			source_etag = m.etag, file_name = substr(m.object_key, ?), version = m.version,
			content_type = m.content_type, size = m.size, failure_count = 0, first_failed_at = NULL,
			next_attempt_at = 0, error_code = NULL, error = NULL
		FROM {media_objects} m JOIN {rows v(copy_sequence bigint, media_id text)} ON m.media_id = v.media_id
		WHERE i.copy_sequence = v.copy_sequence AND i.media_id = v.media_id AND i.state = 'waiting'
		AND m.lane_id = ? AND m.object_key IS NOT NULL`), nameAt(source.KeyPrefix()), encoded, sourceLane)
	return err
}
