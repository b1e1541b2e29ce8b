package outbox

import (
	"context"
	"fmt"

	"github.com/ownbucket/ownbucket/events"
)

// Unfinished tells whether a media has an event before that sequence that is
// neither finished nor dead. An event of the environment that isn't assigned
// yet may be of any media.
func (s *Store) Unfinished(ctx context.Context, laneID int64, mediaID string, before int64) (bool, error) {
	return s.exists(ctx, `
		SELECT EXISTS (SELECT 1 FROM {outbox} WHERE lane_id = ? AND media_id = ?
			AND sequence < ? AND state IN ('available', 'running', 'retryable'))
		OR EXISTS (SELECT 1 FROM {outbox} e JOIN {lanes} l
			ON l.service_id = e.service_id AND l.environment_id = e.environment_id
			WHERE l.lane_id = ? AND e.lane_id IS NULL AND e.sequence < ?)`, laneID, mediaID, before, laneID, before)
}

// DeadBefore tells whether a media has a dead event before that sequence.
func (s *Store) DeadBefore(ctx context.Context, laneID int64, mediaID string, before int64) (bool, error) {
	return s.exists(ctx, `SELECT EXISTS (SELECT 1 FROM {outbox} WHERE lane_id = ? AND media_id = ?
		AND sequence < ? AND state = 'dead')`, laneID, mediaID, before)
}

// DeletionAfter tells whether a deletion of the lane's environment that was
// published after that event is yet to complete, and may have begun.
func (s *Store) DeletionAfter(ctx context.Context, laneID, sequence int64) (bool, error) {
	return s.exists(ctx, `SELECT `+DeletionComes, laneID, sequence)
}

// DeletionComes is DeletionAfter as a condition for use in a query.
const DeletionComes = `EXISTS (SELECT 1 FROM {outbox} WHERE lane_id = ? AND media_id IS NULL
	AND type = '` + events.EnvironmentDeletedType + `' AND sequence > ? AND state IN ('available', 'running', 'retryable'))`

func (s *Store) exists(ctx context.Context, query string, args ...any) (bool, error) {
	var found bool
	if err := s.db.GetContext(ctx, &found, s.db.SQL(query), args...); err != nil {
		return false, fmt.Errorf("look up a media's events: %w", err)
	}
	return found, nil
}
