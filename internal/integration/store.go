package integration

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/jmoiron/sqlx"

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
type Store struct{ db *database.DB }

// New returns the settings in that database.
func New(db *database.DB) *Store { return &Store{db: db} }

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

// Of is ByLane outside of a transaction.
func (s *Store) Of(ctx context.Context, laneID int64) (Integration, bool, error) {
	return s.ByLane(ctx, s.db, laneID)
}

// ByLane reads a lane's integration, without WaitingEvents and Locked: it is
// asked before each event.
func (s *Store) ByLane(ctx context.Context, q sqlx.QueryerContext, laneID int64) (Integration, bool, error) {
	var found row
	err := sqlx.GetContext(ctx, q, &found, s.db.SQL(`
		SELECT `+columns+` FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
		WHERE i.lane_id = ?`), laneID)
	if errors.Is(err, sql.ErrNoRows) {
		return Integration{}, false, nil
	}
	if err != nil {
		return Integration{}, false, fmt.Errorf("read the settings of lane %d: %w", laneID, err)
	}
	return found.integration(), true, nil
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

	// Events that aren't in their lane yet are few, whatever waits in lanes.
	var counts []struct {
		LaneID int64 `db:"lane_id"`
		Events int64 `db:"events"`
	}
	err = sqlx.SelectContext(ctx, q, &counts, s.db.SQL(`
		SELECT lane_id, count(*) AS events FROM {outbox}
		WHERE state IN ('available', 'running', 'retryable') AND lane_id IN {ids} GROUP BY lane_id
		UNION ALL
		SELECT l.lane_id, count(*) AS events FROM {outbox} e
		JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id
		WHERE e.lane_id IS NULL AND e.state = 'available' AND l.lane_id IN {ids} GROUP BY l.lane_id`),
		string(encoded), string(encoded))
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
