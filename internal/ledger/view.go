package ledger

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/ownbucket/ownbucket/internal/database"
)

// View is what a handler must know before it touches the bucket.
type View struct {
	// Object is nil where the ledger has no row of the media.
	Object *Object
	// Holder is the row, of whatever media and environment, that holds the
	// key that was asked for; nil where the key is free.
	Holder *Object
	// PossibleWrites are those of the media.
	PossibleWrites []PossibleWrite
	// OthersWrites are possible writes of other media at the key that was asked
	// for, which those haven't settled yet.
	OthersWrites []PossibleWrite
	// SettingsVersion is the version of the row of the lane's settings at the
	// moment of all this; 0 where there is none (integration.Store.With).
	SettingsVersion int64
}

// HeldByOther tells whether another media holds the key that was asked for.
func (v View) HeldByOther() bool {
	return v.Holder != nil && (v.Object == nil ||
		v.Holder.LaneID != v.Object.LaneID || v.Holder.MediaID != v.Object.MediaID)
}

// Frees tells whether the media gives its key up when it becomes that object.
func (v View) Frees(next *Object) bool {
	return v.Object.Live() && (next.Key == nil || !v.Object.HoldsKey(*next.Key))
}

// asked is what a view is of: a media, and the key that its event would write.
type asked struct {
	LaneID  int64  `json:"lane_id"`
	MediaID string `json:"media_id"`
	Bucket  string `json:"bucket"`
	Key     string `json:"object_key"`
}

// View reads what concerns a media and the key that its event would write.
// Those who ask at the same time share one query, which begins after they
// asked.
func (s *Store) View(ctx context.Context, laneID int64, mediaID, bucket, key string) (View, error) {
	view, err := s.views.Get(ctx, asked{laneID, mediaID, bucket, key})
	if err != nil {
		return View{}, fmt.Errorf("read the ledger of media %q in lane %d: %w", mediaID, laneID, err)
	}
	return view, nil
}

func (s *Store) view(ctx context.Context, list []asked) (map[asked]View, error) {
	type numbered struct {
		asked
		Number int `json:"n"`
	}
	questions := make([]numbered, len(list))
	for n, q := range list {
		questions[n] = numbered{q, n}
	}
	encoded, err := json.Marshal(questions)
	if err != nil {
		return nil, err
	}
	var found []struct {
		Object
		Number int    `db:"n"`
		What   string `db:"what"`
	}
	err = s.db.SelectContext(ctx, &found, s.db.SQL(viewQuery), string(encoded))
	if err != nil {
		return nil, err
	}
	views := make(map[asked]View, len(list))
	for i := range found {
		row := &found[i]
		q := list[row.Number]
		view := views[q]
		switch row.What {
		case "settings":
			view.SettingsVersion = row.Version
		case "media":
			view.Object = &row.Object
		case "holder":
			view.Holder = &row.Object
		case "possible":
			view.PossibleWrites = append(view.PossibleWrites,
				PossibleWrite{LaneID: row.LaneID, MediaID: row.MediaID, Key: *row.Key, Version: row.Version})
		case "others":
			view.OthersWrites = append(view.OthersWrites,
				PossibleWrite{LaneID: row.LaneID, MediaID: row.MediaID, Key: *row.Key, Version: row.Version})
		}
		views[q] = view
	}
	return views, nil
}

var viewQuery = `
	WITH q AS MATERIALIZED (
		SELECT * FROM {rows v(n integer, lane_id bigint, media_id text, bucket text, object_key text)})
	SELECT q.n, 'media' AS what, o.lane_id, o.media_id, o.version AS version, o.sequence, o.bucket,
		o.object_key AS object_key, o.content_type, o.size, o.etag
	FROM q JOIN {media_objects} o ON o.lane_id = q.lane_id AND o.media_id = q.media_id
	UNION ALL
	SELECT q.n, 'holder', o.lane_id, o.media_id, o.version, o.sequence, o.bucket,
		o.object_key, o.content_type, o.size, o.etag
	FROM q JOIN {media_objects} o ON o.bucket = q.bucket AND o.object_key = q.object_key
	UNION ALL
	SELECT q.n, 'possible', w.lane_id, w.media_id, w.version, 0, NULL, w.object_key, '', 0, ''
	FROM q JOIN {possible_writes} w ON w.lane_id = q.lane_id AND w.media_id = q.media_id
	UNION ALL
	SELECT q.n, 'others', w.lane_id, w.media_id, w.version, 0, NULL, w.object_key, '', 0, ''
	FROM q JOIN {possible_writes} w ON w.object_key = q.object_key
	WHERE ` + database.Unplanned(`(w.lane_id <> q.lane_id OR w.media_id <> q.media_id)
		AND EXISTS (SELECT 1 FROM {integrations} i WHERE i.lane_id = w.lane_id AND i.bucket = q.bucket)`) + `
	UNION ALL
	SELECT q.n, 'settings', q.lane_id, q.media_id, {row_version}, 0, NULL, NULL, '', 0, ''
	FROM q JOIN {integrations} i ON i.lane_id = q.lane_id
	ORDER BY object_key, version`

// Holder tells which media holds a key of a bucket; nil where it is free.
func (s *Store) Holder(ctx context.Context, bucket, key string) (*Object, error) {
	var found []Object
	err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT lane_id, media_id, version, sequence, bucket, object_key, content_type, size, etag
		FROM {media_objects} WHERE bucket = ? AND object_key = ?`), bucket, key)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	return &found[0], nil
}
