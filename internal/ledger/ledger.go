// Package ledger records what we last stored in a customer's bucket, and
// where. It makes handlers idempotent, guards versions and the ownership of
// keys, and is what an environment's copy copies.
package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/batch"
	"github.com/ownbucket/ownbucket/internal/database"
)

// Object is what the ledger holds of one media in one environment. Without a
// key it is a tombstone: the media was deleted, and an older upload that is
// replayed must not bring it back.
type Object struct {
	LaneID  int64  `db:"lane_id" json:"lane_id"`
	MediaID string `db:"media_id" json:"media_id"`
	// Version is in microseconds since 1970 UTC; Sequence is the outbox's.
	Version     int64   `db:"version" json:"version"`
	Sequence    int64   `db:"sequence" json:"sequence"`
	Bucket      *string `db:"bucket" json:"bucket"`
	Key         *string `db:"object_key" json:"object_key"`
	ContentType string  `db:"content_type" json:"content_type"`
	Size        int64   `db:"size" json:"size"`
	ETag        string  `db:"etag" json:"etag"`
}

// Live tells an object from a tombstone.
func (o *Object) Live() bool { return o != nil && o.Key != nil }

// HoldsKey tells whether the object stands at that key.
func (o *Object) HoldsKey(key string) bool { return o.Live() && *o.Key == key }

// Newer tells whether the ledger is past an event of that sequence. The version
// decides nothing: the clocks of two nodes of the CMS may disagree.
func (o *Object) Newer(sequence int64) bool { return o != nil && o.Sequence > sequence }

// PossibleWrite is what an event that ended without completing may have left
// in the bucket. The media's next event settles it.
type PossibleWrite struct {
	LaneID  int64  `db:"lane_id" json:"lane_id"`
	MediaID string `db:"media_id" json:"media_id"`
	Key     string `db:"object_key" json:"object_key"`
	Version int64  `db:"version" json:"version"`
}

// Effects is how a completed, dead or discarded event changes the ledger, in
// the transaction that ends it.
type Effects struct {
	Put *Object
	// Frees tells that Put takes the media's key away (View.Frees), which another
	// media may get in the same transaction.
	Frees bool
	// Settled drops the media's possible writes; Possible adds some.
	Settled  []PossibleWrite
	Possible []PossibleWrite
}

// Store reads and changes the ledger.
type Store struct {
	db    *database.DB
	views *batch.Loader[asked, View]
}

// New returns the ledger of that database.
func New(db *database.DB) *Store {
	s := &Store{db: db}
	s.views = batch.New(s.view)
	return s
}

// Apply writes effects in the transaction that ends their events. It may run
// again with the same effects.
func (s *Store) Apply(ctx context.Context, tx *sqlx.Tx, effects []Effects) error {
	var put, freeing []*Object
	var settled, possible []PossibleWrite
	for _, e := range effects {
		if e.Put != nil {
			put = append(put, e.Put)
		}
		if e.Put != nil && e.Frees {
			freeing = append(freeing, e.Put)
		}
		settled = append(settled, e.Settled...)
		possible = append(possible, e.Possible...)
	}
	// Keys are given up first, so that one batch may pass a key from one media
	// to another.
	if err := s.each(ctx, tx, len(freeing), freeing, `
		INSERT INTO {media_objects} (lane_id, media_id, version, sequence, updated_at)
		SELECT lane_id, media_id, version, sequence, {now}
		FROM {rows v(lane_id bigint, media_id text, version bigint, sequence bigint)} WHERE true
		ON CONFLICT (lane_id, media_id) DO UPDATE SET bucket = NULL, object_key = NULL`); err != nil {
		return fmt.Errorf("release keys in the ledger: %w", err)
	}
	if err := s.each(ctx, tx, len(put), put, `
		INSERT INTO {media_objects}
			(lane_id, media_id, version, sequence, bucket, object_key, content_type, size, etag, updated_at)
		SELECT lane_id, media_id, version, sequence, bucket, object_key, content_type, size, etag, {now}
		FROM {rows v(lane_id bigint, media_id text, version bigint, sequence bigint, bucket text,
			object_key text, content_type text, size bigint, etag text)} WHERE true
		ON CONFLICT (lane_id, media_id) DO UPDATE SET version = excluded.version,
			sequence = excluded.sequence, bucket = excluded.bucket, object_key = excluded.object_key,
			content_type = excluded.content_type, size = excluded.size, etag = excluded.etag,
			updated_at = excluded.updated_at`); err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	if err := s.each(ctx, tx, len(settled), settled, `
		DELETE FROM {possible_writes} WHERE (lane_id, media_id, object_key, version) IN
			(SELECT lane_id, media_id, object_key, version
			 FROM {rows v(lane_id bigint, media_id text, object_key text, version bigint)})`); err != nil {
		return fmt.Errorf("settle possible writes: %w", err)
	}
	if err := s.each(ctx, tx, len(possible), possible, `
		INSERT INTO {possible_writes} (lane_id, media_id, object_key, version, created_at)
		SELECT lane_id, media_id, object_key, version, {now}
		FROM {rows v(lane_id bigint, media_id text, object_key text, version bigint)} WHERE true
		ON CONFLICT DO NOTHING`); err != nil {
		return fmt.Errorf("record possible writes: %w", err)
	}
	return nil
}

func (s *Store) each(ctx context.Context, tx *sqlx.Tx, n int, rows any, query string) error {
	if n == 0 {
		return nil
	}
	encoded, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(query), string(encoded))
	return err
}

// PruneTombstones drops up to limit tombstones that are older than the
// retention of completed events and whose media has no event left that could
// still run, nor a copy that could still be made. It returns how many went. Each
// group of states is asked for by itself, as it has an index of its own.
func (s *Store) PruneTombstones(ctx context.Context, retention time.Duration, limit int) (int64, error) {
	result, err := s.db.ExecContext(ctx, s.db.SQL(`
		DELETE FROM {media_objects} WHERE (lane_id, media_id) IN (
			SELECT m.lane_id, m.media_id FROM {media_objects} m
			WHERE m.object_key IS NULL AND m.updated_at < {now} - ?
			AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = m.lane_id AND e.media_id = m.media_id AND e.parked)
			AND NOT EXISTS (SELECT 1 FROM {outbox} e JOIN {lanes} l ON {in_lane e l} WHERE l.lane_id = m.lane_id
				AND e.state IN ('available', 'running') AND NOT e.parked)
			AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = m.lane_id AND e.media_id = m.media_id
				AND e.state = 'dead')
			AND NOT EXISTS (SELECT 1 FROM {copy_items} i WHERE i.target_lane = m.lane_id AND i.media_id = m.media_id
				AND i.state = 'owed')
			AND NOT EXISTS (SELECT 1 FROM {copy_items} i WHERE i.target_lane = m.lane_id AND i.media_id = m.media_id
				AND i.state = 'waiting')
			AND NOT EXISTS (SELECT 1 FROM {copy_items} i WHERE i.target_lane = m.lane_id AND i.media_id = m.media_id
				AND i.state = 'failed')
			ORDER BY m.updated_at LIMIT ?)
		AND object_key IS NULL`), retention.Microseconds(), limit)
	if err != nil {
		return 0, fmt.Errorf("prune tombstones: %w", err)
	}
	return result.RowsAffected()
}

// Media reads the row of a media by its environment; nil if there is none.
func (s *Store) Media(ctx context.Context, serviceID, environmentID, mediaID string) (*Object, error) {
	var found []Object
	err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT m.lane_id, m.media_id, m.version, m.sequence, m.bucket, m.object_key, m.content_type, m.size, m.etag
		FROM {media_objects} m JOIN {lanes} l ON l.lane_id = m.lane_id
		WHERE l.service_id = ? AND l.environment_id = ? AND m.media_id = ?`), serviceID, environmentID, mediaID)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	return &found[0], nil
}
