package environment

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

const (
	// copyFirstFor is how long an event of the source waits at most for a copy
	// that fails for a while.
	copyFirstFor = time.Minute
	// lookAgain is when an event that waits for another worker's copy is
	// started again.
	lookAgain = 100 * time.Millisecond
)

// CopyFirst makes the copies that are owed of the event's media and file
// names, from its environment or into it. A copy that another worker is making
// is waited for.
func (s *Store) CopyFirst(ctx context.Context, d *outbox.Delivery, names []string) error {
	items, err := s.owed(ctx, d.Event, names)
	if err != nil {
		return err
	}
	for i := range items {
		if err := s.copyFirst(ctx, d.Event, &items[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) owed(ctx context.Context, e *outbox.Event, names []string) ([]item, error) {
	encoded, err := encode(namesOf(names))
	if err != nil {
		return nil, err
	}
	const from = `SELECT ` + itemColumns + ` FROM ` + itemTables + ` WHERE i.state = 'owed' AND c.sequence < ? AND `
	const byName = `i.file_name IN (SELECT name FROM {rows v(name text)})`
	var items []item
	err = s.db.SelectContext(ctx, &items, s.db.SQL(
		from+`i.source_lane = ? AND i.media_id = ? UNION `+
			from+`i.target_lane = ? AND i.media_id = ? UNION `+
			from+`i.source_lane = ? AND `+byName+` UNION `+
			from+`i.target_lane = ? AND `+byName+` ORDER BY 1`),
		e.Sequence, e.LaneID, e.Media(), e.Sequence, e.LaneID, e.Media(),
		e.Sequence, e.LaneID, encoded, e.Sequence, e.LaneID, encoded)
	return items, wrap("look for copies that come first", err)
}

func namesOf(names []string) []map[string]string {
	list := make([]map[string]string, len(names))
	for i, name := range names {
		list[i] = map[string]string{"name": name}
	}
	return list
}

func (s *Store) copyFirst(ctx context.Context, e *outbox.Event, it *item) error {
	fromSource := it.SourceLane == e.LaneID
	if it.CopyState != active || it.TargetHeld {
		if !fromSource {
			return &outbox.Wait{For: lookAgain, Reason: "the environment's copy is about to begin"}
		}
		wait, err := s.awaitsItsEvent(ctx, it)
		if err != nil {
			return err
		}
		if wait {
			return &outbox.Wait{For: lookAgain, Reason: "a copy from here is about to begin"}
		}
		return s.giveUp(ctx, it, "the environment that it is copied to can't take it now")
	}
	mine, err := s.lease(ctx, it)
	if err != nil {
		return err
	}
	if !mine {
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first"}
	}
	err = s.copyItem(ctx, it)
	if err == nil {
		return nil
	}
	switch f := failure.Of(err); {
	case f.Class == failure.Permanent:
		return nil // the item has failed, which is none of the event's business
	case f.Class == failure.Interrupted:
		return err
	case !fromSource:
		return &outbox.Wait{For: s.options.Backoff(it.FailureCount + 1), Reason: "a copy that comes first failed for now"}
	case f.Class == failure.Integration || s.tiredOf(it):
		return s.giveUp(ctx, it, f.Error())
	default:
		delay := min(s.options.Backoff(it.FailureCount+1), copyFirstFor/6)
		return &outbox.Wait{For: max(delay, lookAgain), Reason: "a copy that comes first failed for now"}
	}
}

// tiredOf tells whether an item has failed for as long as the source waits.
func (s *Store) tiredOf(it *item) bool {
	return it.FirstFailedAt != nil && it.Now-*it.FirstFailedAt >= copyFirstFor.Microseconds()
}

// awaitsItsEvent tells whether a planned copy will start by itself soon.
func (s *Store) awaitsItsEvent(ctx context.Context, it *item) (bool, error) {
	if it.TargetHeld {
		return false, nil
	}
	var unfinished bool
	err := s.db.GetContext(ctx, &unfinished, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {outbox} WHERE sequence = ? AND state IN ('available', 'running') AND NOT parked)`),
		it.CopySequence)
	return unfinished, wrap("look at the event of a copy", err)
}

// giveUp fails an item that would hold up its source, so that the source goes on.
func (s *Store) giveUp(ctx context.Context, it *item, reason string) error {
	words := fmt.Sprintf("media %q was changed in its environment before it could be copied: %s", it.MediaID, reason)
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		result, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {copy_items} SET state = 'failed', error_code = ?, error = ?, leased_until = NULL
			WHERE copy_sequence = ? AND media_id = ? AND state = 'owed'
				AND (leased_until IS NULL OR leased_until < {now})`),
			failure.SourceChanged, words, it.CopySequence, it.MediaID)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n > 0 {
			return err
		}
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first"}
	})
	return err
}
