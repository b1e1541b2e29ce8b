package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
)

// use is what depends on an integration's settings.
type use struct {
	LaneID int64 `db:"lane_id"`
	// Events counts only once one of the lane was started: until then none
	// has seen the settings.
	Events bool `db:"events"`
	// Objects and the rest lock by themselves, since a backfill fills the
	// ledger without an event.
	Objects bool `db:"objects"`
	Copies  bool `db:"copies"`
	Writes  bool `db:"writes"`
}

func (u use) locked() bool { return u.Events || u.Objects || u.Copies || u.Writes }

// reasons says what locks, in the words of an error.
func (u use) reasons() string {
	var reasons []string
	for _, r := range []struct {
		holds bool
		words string
	}{
		{u.Objects, "media are stored under them"},
		{u.Events, "events are unfinished"},
		{u.Copies, "copies to or from the environment are owed"},
		{u.Writes, "files of events that failed may be left in the bucket"},
	} {
		if r.holds {
			reasons = append(reasons, r.words)
		}
	}
	return strings.Join(reasons, ", ")
}

// uses looks for what depends on settings.
func (s *Store) uses(ctx context.Context, q sqlx.QueryerContext, laneIDs []int64) ([]use, error) {
	encoded, err := json.Marshal(laneIDs)
	if err != nil {
		return nil, err
	}
	var uses []use
	err = sqlx.SelectContext(ctx, q, &uses, s.db.SQL(`
		SELECT l.lane_id,
			l.started AND (l.leased_by IS NOT NULL OR EXISTS (SELECT 1 FROM {outbox} e
				WHERE {in_lane e l} AND e.state IN ('available', 'running') AND NOT e.parked)
				OR EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = l.lane_id AND e.parked)) AS events,
			EXISTS (SELECT 1 FROM {media_objects} o WHERE o.lane_id = l.lane_id
				AND o.object_key IS NOT NULL) AS objects,
			EXISTS (SELECT 1 FROM {copy_items} c WHERE c.source_lane = l.lane_id AND c.state = 'owed')
				OR EXISTS (SELECT 1 FROM {copy_items} c WHERE c.target_lane = l.lane_id AND c.state = 'owed')
				AS copies,
			EXISTS (SELECT 1 FROM {possible_writes} w WHERE w.lane_id = l.lane_id) AS writes
		FROM {lanes} l WHERE l.lane_id IN {ids}`), string(encoded))
	if err != nil {
		return nil, fmt.Errorf("look for what depends on the settings: %w", err)
	}
	return uses, nil
}

// requireUnlocked is ErrLocked, with the reasons, where anything depends on
// the settings. The caller holds the lane's row, so that nothing begins to.
func (s *Store) requireUnlocked(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	uses, err := s.uses(ctx, tx, []int64{laneID})
	if err != nil {
		return err
	}
	if len(uses) != 1 {
		return errors.New("the lane is gone")
	}
	if !uses[0].locked() {
		return nil
	}
	return fmt.Errorf("%w: %s. Until then bucket, region, prefix and environment_service_id can't change, "+
		"and the settings can't be deleted; role_arn, external_id, custom_domain, pin_file_names, memo, "+
		"distribution_id and cdn_prefix may still change", ErrLocked, uses[0].reasons())
}
