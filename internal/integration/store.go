package integration

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/batch"
	"github.com/ownbucket/ownbucket/internal/database"
)

var (
	// ErrNotFound says that the environment has no settings.
	ErrNotFound = errors.New("no settings")
	// ErrLocked says that files, or work on them, depend on the settings.
	ErrLocked = errors.New("settings are locked")
	// ErrChanged says that the settings changed since they were tested.
	ErrChanged = errors.New("settings changed meanwhile")
)

// Store keeps the settings in one database.
//
// Whoever changes an integration locks its lane first, then its own row, then
// (PostgreSQL) the bucket's name.
type Store struct {
	db *database.DB
	// byLane answers those who ask at the same time; nil means no settings.
	byLane *batch.Loader[int64, *Integration]
	// recent are those that With remembers, by lane.
	recent *lru.Cache[int64, Integration]
}

// maxRecent is as many lanes as a worker holds at most.
const maxRecent = 4096

// New returns the settings in that database.
func New(db *database.DB) *Store {
	s := &Store{db: db}
	s.recent, _ = lru.New[int64, Integration](maxRecent) // refuses only a size below 1
	s.byLane = batch.New(func(ctx context.Context, laneIDs []int64) (map[int64]*Integration, error) {
		return s.byLanes(ctx, db, laneIDs)
	})
	return s
}

// Show reads an environment's integration; ErrNotFound where it has none.
func (s *Store) Show(ctx context.Context, serviceID, environmentID string) (Integration, error) {
	var found row
	err := s.db.GetContext(ctx, &found, s.db.SQL(`
		SELECT `+columns+` FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
		WHERE l.service_id = ? AND l.environment_id = ?`), serviceID, environmentID)
	if errors.Is(err, sql.ErrNoRows) {
		return Integration{}, notFound(serviceID, environmentID)
	}
	if err != nil {
		return Integration{}, fmt.Errorf("read the settings of %s: %w", environmentName(serviceID, environmentID), err)
	}
	shown := []Integration{found.integration()}
	err = s.addUse(ctx, s.db, shown)
	return shown[0], err
}

// List reads up to limit integrations in the order of their lanes; 0 means
// all of them.
func (s *Store) List(ctx context.Context, limit int) ([]Integration, error) {
	if limit <= 0 {
		limit = math.MaxInt32
	}
	var rows []row
	err := s.db.SelectContext(ctx, &rows, s.db.SQL(`
		SELECT `+columns+` FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
		ORDER BY l.lane_id LIMIT ?`), limit)
	if err != nil {
		return nil, fmt.Errorf("list settings: %w", err)
	}
	listed := make([]Integration, len(rows))
	for n, r := range rows {
		listed[n] = r.integration()
	}
	return listed, s.addUse(ctx, s.db, listed)
}

// Of is ByLane outside of a transaction. Those who ask at the same time share
// one query, which begins after they asked.
func (s *Store) Of(ctx context.Context, laneID int64) (Integration, bool, error) {
	found, err := s.byLane.Get(ctx, laneID)
	return ofLane(found, laneID, err)
}

// With calls read with a lane's settings, if there are any, and returns those of
// the last call. They may be remembered ones: read returns which version of the
// settings' row it saw with what it read itself, 0 where there is none, and is
// called again with fresh settings where that is another. So they were in force
// when it read, and rarely cost a query of their own. SQLite has no versions:
// there they are read just before.
func (s *Store) With(ctx context.Context, laneID int64, read func(Integration) (rowVersion int64, err error)) (Integration, bool, error) {
	settings, known := s.recent.Get(laneID)
	for {
		if !known {
			s.recent.Remove(laneID)
			var found bool
			var err error
			if settings, found, err = s.Of(ctx, laneID); err != nil || !found {
				return Integration{}, false, err
			}
		}
		seen, err := read(settings)
		if err != nil {
			return settings, true, err
		}
		if seen == settings.RowVersion {
			if !known && seen != 0 {
				s.recent.Add(laneID, settings)
			}
			return settings, true, nil
		}
		known = false
	}
}

// ByLane reads a lane's integration, without WaitingEvents and Locked.
func (s *Store) ByLane(ctx context.Context, q sqlx.QueryerContext, laneID int64) (Integration, bool, error) {
	found, err := s.byLanes(ctx, q, []int64{laneID})
	return ofLane(found[laneID], laneID, err)
}

func ofLane(found *Integration, laneID int64, err error) (Integration, bool, error) {
	switch {
	case err != nil:
		return Integration{}, false, fmt.Errorf("read the settings of lane %d: %w", laneID, err)
	case found == nil:
		return Integration{}, false, nil
	}
	return *found, true, nil
}

func (s *Store) byLanes(ctx context.Context, q sqlx.QueryerContext, laneIDs []int64) (map[int64]*Integration, error) {
	encoded, err := json.Marshal(laneIDs)
	if err != nil {
		return nil, err
	}
	var list []row
	if err := sqlx.SelectContext(ctx, q, &list, s.db.SQL(`
		SELECT `+columns+` FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
		WHERE i.lane_id {in_ids}`), string(encoded)); err != nil {
		return nil, err
	}
	found := make(map[int64]*Integration, len(list))
	for _, r := range list {
		one := r.integration()
		found[one.LaneID] = &one
	}
	return found, nil
}

// AnyOfService tells whether any environment of the service has settings.
func (s *Store) AnyOfService(ctx context.Context, serviceID string) (bool, error) {
	var found bool
	err := s.db.GetContext(ctx, &found, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
			WHERE l.service_id = ?)`), serviceID)
	if err != nil {
		return false, fmt.Errorf("look for settings of service %q: %w", serviceID, err)
	}
	return found, nil
}

func notFound(serviceID, environmentID string) error {
	return fmt.Errorf("%w for %s", ErrNotFound, environmentName(serviceID, environmentID))
}

// addUse fills in WaitingEvents and Locked.
func (s *Store) addUse(ctx context.Context, q sqlx.QueryerContext, integrations []Integration) error {
	if len(integrations) == 0 {
		return nil
	}
	byLane := make(map[int64]*Integration, len(integrations))
	ids := make([]int64, len(integrations))
	for n := range integrations {
		ids[n] = integrations[n].LaneID
		byLane[ids[n]] = &integrations[n]
	}
	encoded, err := json.Marshal(ids)
	if err != nil {
		return err
	}

	var counts []struct {
		LaneID int64 `db:"lane_id"`
		Events int64 `db:"events"`
	}
	err = sqlx.SelectContext(ctx, q, &counts, s.db.SQL(`
		SELECT l.lane_id,
			(SELECT count(*) FROM {outbox} e WHERE {in_lane e l} AND e.state IN ('available', 'running') AND NOT e.parked)
			+ (SELECT count(*) FROM {outbox} e WHERE e.lane_id = l.lane_id AND e.parked) AS events
		FROM {lanes} l WHERE l.lane_id IN {ids}`), string(encoded))
	if err != nil {
		return fmt.Errorf("count waiting events: %w", err)
	}
	for _, count := range counts {
		byLane[count.LaneID].WaitingEvents += count.Events
	}

	uses, err := s.uses(ctx, q, ids)
	if err != nil {
		return err
	}
	for _, use := range uses {
		byLane[use.LaneID].Locked = use.locked()
	}
	return nil
}
