package outbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
)

// unread bounds how many events, which no worker has written yet, a question about
// a media reads. Beyond that the answer is yes: the caller asks again later.
const unread = 1000

// Unfinished finds an event of a media before that sequence that is neither
// finished nor dead; 0 where there is none. What is parked tells its media; the
// payloads of the others are read.
func (s *Store) Unfinished(ctx context.Context, laneID int64, mediaID string, before int64) (int64, error) {
	return s.UnfinishedOf(ctx, s.db, laneID, mediaID, before)
}

// UnfinishedOf is Unfinished in a transaction.
func (s *Store) UnfinishedOf(ctx context.Context, q sqlx.QueryerContext, laneID int64, mediaID string, before int64) (int64, error) {
	found, err := s.unfinished(ctx, q, laneID, 0, before, unread, ` AND e.media_id = ?`, mediaID)
	if err != nil {
		return 0, err
	}
	for _, e := range found {
		if e.invalid == nil && e.Media() == mediaID {
			return e.Sequence, nil
		}
	}
	if len(found) >= unread {
		return found[len(found)-1].Sequence, nil
	}
	return 0, nil
}

// UnfinishedBetween reads a lane's unfinished events between two sequences, at
// most so many, in sequence.
func (s *Store) UnfinishedBetween(ctx context.Context, q sqlx.QueryerContext, laneID, after, before int64, most int) ([]*Event, error) {
	found, err := s.unfinished(ctx, q, laneID, after, before, most, ``)
	slices.SortFunc(found, func(a, b *Event) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return found[:min(len(found), most)], err
}

// unfinished reads those in the window, and those of the parked ones that meet a
// further condition.
func (s *Store) unfinished(ctx context.Context, q sqlx.QueryerContext, laneID, after, before int64, most int,
	condition string, args ...any) ([]*Event, error) {
	found, err := s.events(ctx, q, `
		SELECT * FROM (SELECT `+s.eventColumns(s.payload())+`, l.lane_id FROM {lanes} l JOIN {outbox} e ON e.lane_id = l.lane_id
			WHERE l.lane_id = ? AND e.parked AND `+database.Unplanned(`e.sequence > ? AND e.sequence < ?`)+condition+` ORDER BY e.sequence LIMIT ?) AS parked
		UNION ALL
		SELECT * FROM (`+s.firstReadable()+`) AS readable`,
		slices.Concat([]any{laneID, after, before}, args, []any{most, laneID, after, before - 1, most})...)
	if err != nil {
		return nil, fmt.Errorf("look up unfinished events: %w", err)
	}
	return found, nil
}

// firstReadable is the query for the first events in a lane's window that stand
// above one sequence and not above another. Its arguments are the lane, these two,
// and how many.
func (s *Store) firstReadable() string {
	columns := s.eventColumns(s.payload()) + `, l.lane_id`
	const lane = `(SELECT * FROM {lanes} WHERE lane_id = ?) AS l`
	condition, order := s.between(`?`, `?`)
	condition += ` AND ` + Readable + ` ORDER BY ` + order + ` LIMIT ?`
	if s.db.Dialect == database.SQLite {
		return `SELECT ` + columns + ` FROM ` + lane + ` JOIN {outbox} e ON ` + condition
	}
	// A join would lose the order.
	return `SELECT e.* FROM ` + lane + ` CROSS JOIN LATERAL (SELECT ` + columns + ` FROM {outbox} e WHERE ` + condition + `) AS e`
}

// DeadBefore tells whether a media has a dead event before that sequence.
func (s *Store) DeadBefore(ctx context.Context, laneID int64, mediaID string, before int64) (bool, error) {
	return s.exists(ctx, `SELECT EXISTS (SELECT 1 FROM {outbox} WHERE lane_id = ? AND media_id = ?
		AND sequence < ? AND state = 'dead')`, laneID, mediaID, before)
}

// DeletionAfter tells whether a deletion of the lane's environment that was
// published after that event is yet to complete, and may have begun.
func (s *Store) DeletionAfter(ctx context.Context, laneID, sequence int64) (bool, error) {
	return s.exists(ctx, `
		SELECT EXISTS (SELECT 1 FROM {outbox} e JOIN {lanes} l ON e.service_id = l.service_id AND e.environment_id = l.environment_id
			WHERE `+EnvironmentEvent+` AND e.type = '`+events.EnvironmentDeletedType+`' AND l.lane_id = ? AND e.sequence > ?)`,
		laneID, sequence)
}

func (s *Store) exists(ctx context.Context, query string, args ...any) (bool, error) {
	var found bool
	if err := s.db.GetContext(ctx, &found, s.db.SQL(query), args...); err != nil {
		return false, fmt.Errorf("look up a media's events: %w", err)
	}
	return found, nil
}
