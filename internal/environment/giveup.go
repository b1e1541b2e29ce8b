package environment

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// scope is which items of a copy are meant: one media's, or all where that is
// empty, or those only that have been waited for too long, or that events of
// the target went past.
type scope struct {
	copySequence, targetLane int64
	mediaID                  string
	tired, overtaken         bool
	// since leaves an item alone that isn't waited for since then any more: it has
	// got what it waited for, or was tried.
	since *int64
}

const inScope = `copy_sequence = ? AND (CAST(? AS text) = '' OR media_id = ?) AND state IN ('owed', 'waiting')`

// startWaiting lets the time run that the source waits for items.
func (s *Store) startWaiting(ctx context.Context, what scope) error {
	_, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET first_failed_at = {now} WHERE first_failed_at IS NULL
		AND (CAST(? AS integer) = 0 OR `+overtaken+`) AND `+inScope),
		number(what.overtaken), what.copySequence, what.mediaID, what.mediaID)
	return wrap("note that a copy is waited for", err)
}

// giveUpOne fails an item that would hold up its source, so that the source
// goes on.
func (s *Store) giveUpOne(ctx context.Context, what scope, why string) error {
	left, err := s.giveUp(ctx, what, why)
	if err == nil && left {
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first", OnCopy: what.copySequence}
	}
	return err
}

// giveUp fails items that nobody copies right now. It tells whether any are
// left. Items that still wait are given up one by one, or where nothing of their
// copy can be made: whatever is tired was owed.
func (s *Store) giveUp(ctx context.Context, what scope, why string) (left bool, err error) {
	words := "the media was changed in its environment before it could be copied: " + why
	_, reasonWords := reason(failure.New(failure.Permanent, failure.SourceChanged, "%s", words))
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockLanes(ctx, tx, what.targetLane); err != nil {
			return err
		}
		var given []item
		if err := tx.SelectContext(ctx, &given, s.db.SQL(`
			UPDATE {copy_items} SET state = 'failed', error_code = ?, error = ?,
				may_have_written = (may_have_written OR leased_until IS NOT NULL), leased_until = NULL
			WHERE `+inScope+` AND (leased_until IS NULL OR leased_until < {now})
			AND (CAST(? AS bigint) IS NULL OR first_failed_at = ?)
			AND (CAST(? AS integer) = 0 OR state = 'owed' AND first_failed_at < {now} - CASE WHEN `+inTurn+` THEN CAST(? AS bigint) ELSE CAST(? AS bigint) END) RETURNING `+itemColumns),
			failure.SourceChanged, reasonWords, what.copySequence, what.mediaID, what.mediaID,
			what.since, what.since, number(what.tired), runningFor.Microseconds(), copyFirstFor.Microseconds()); err != nil {
			return err
		}
		keys := make([]itemKey, len(given))
		ended := make([]ending, len(given))
		for i, it := range given {
			keys[i] = itemKey{it.CopySequence, it.MediaID}
			ended[i] = ending{WaitsFor: it.CopySequence, MediaID: it.MediaID, Failed: true}
		}
		if err := s.waitNoMore(ctx, tx, keys); err != nil {
			return err
		}
		if err := s.closeCopy(ctx, tx, what.copySequence); err != nil {
			return err
		}
		if err := s.noteLeftovers(ctx, tx, given); err != nil {
			return err
		}
		if err := s.strike(ctx, tx, ended); err != nil {
			return err
		}
		return tx.GetContext(ctx, &left, s.db.SQL(`SELECT EXISTS (SELECT 1 FROM {copy_items} WHERE `+inScope+`)`),
			what.copySequence, what.mediaID, what.mediaID)
	})
	return left, wrap("give up items of a copy", err)
}

// waitNoMore drops what items that were given up have waited for.
func (s *Store) waitNoMore(ctx context.Context, tx *sqlx.Tx, items []itemKey) error {
	encoded, err := rows(items)
	if err != nil {
		return err
	}
	for _, table := range []string{`{copy_waits}`, `{copy_names}`} {
		if _, err := tx.ExecContext(ctx, s.db.SQL(`DELETE FROM `+table+` WHERE (copy_sequence, media_id) IN
			(SELECT copy_sequence, media_id FROM {rows v(copy_sequence bigint, media_id text)})`), encoded); err != nil {
			return err
		}
	}
	return nil
}

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
