package environment

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// afterEvent is when an item is looked at again whose source an unfinished
// event may just be changing.
const afterEvent = time.Second

// end ends an item that failed and that the caller still has.
func (s *Store) end(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error) (bool, error) {
	code, words := reason(f)
	result, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET state = 'failed', error_code = ?, error = ?, leased_until = NULL
		WHERE copy_sequence = ? AND media_id = ? AND lease_token = ? AND state IN ('owed', 'waiting')`),
		code, words, it.CopySequence, it.MediaID, it.Token)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// recordFailure decides what becomes of an item by the class of its failure.
// It never touches the source's integration.
func (s *Store) recordFailure(ctx context.Context, it *item, f *failure.Error, first bool) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockLanes(ctx, tx, it.TargetLane); err != nil {
			return err
		}
		switch {
		case f.Class == failure.Interrupted:
			return s.giveBack(ctx, tx, it, f)
		case f.Code == failure.SourceChanged:
			return s.recordSourceChanged(ctx, tx, it, f, first)
		case f.Class == failure.Integration:
			return s.recordDenial(ctx, tx, it, f)
		case f.Class == failure.Transient && it.FailureCount+1 < s.options.Attempts:
			return s.putOff(ctx, tx, it, f, s.options.Backoff(it.FailureCount+1))
		}
		return s.fail(ctx, tx, it, f)
	})
	return wrap("record a failed copy", err)
}

// recordSourceChanged fails an item whose source isn't what the snapshot saw,
// unless an event of the media may be about to say why: one that had begun
// before the snapshot makes the item look again when it ends.
func (s *Store) recordSourceChanged(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error, first bool) error {
	var changed bool
	if err := tx.GetContext(ctx, &changed, s.db.SQL(`
		SELECT NOT EXISTS (SELECT 1 FROM {copy_items} WHERE copy_sequence = ? AND media_id = ?
			AND source_key = ? AND source_etag = ?)`),
		it.CopySequence, it.MediaID, it.SourceKey, it.SourceETag); err != nil {
		return err
	}
	if changed {
		return s.putOff(ctx, tx, it, nil, 0)
	}
	if !first {
		unfinished, err := s.events.UnfinishedOf(ctx, tx, it.SourceLane, it.MediaID, math.MaxInt64)
		if err != nil {
			return err
		}
		if unfinished != 0 {
			return s.putOff(ctx, tx, it, nil, afterEvent)
		}
	}
	return s.fail(ctx, tx, it, f)
}

// recordDenial blocks the target, unless the denial is the item's own: it was
// denied again although a probe has passed, or it reads outside of the
// target's own prefix.
func (s *Store) recordDenial(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error) error {
	target, exists, err := s.settings.ByLane(ctx, tx, it.TargetLane)
	if err != nil {
		return err
	}
	switch {
	case !exists, it.readsElsewhere(bucket.KeyPrefix(target.Prefix, ""), f.Code):
		return s.fail(ctx, tx, it, f)
	case it.DeniedAt == nil || !target.GrantedSince(*it.DeniedAt):
		if err := s.settings.BlockTx(ctx, tx, it.TargetLane, f.Code, f.Error()); err != nil {
			return err
		}
		return s.putOffDenied(ctx, tx, it, f, 0, 0)
	case it.DeniedCount+1 < integration.DeniedAttempts:
		return s.putOffDenied(ctx, tx, it, f, 1, s.options.Backoff(integration.DeniedBackoff+it.DeniedCount))
	}
	return s.fail(ctx, tx, it, failure.New(failure.Permanent, failure.Denied,
		"the customer's account denies this copy alone: %w", f).WithRequestID(f.RequestID))
}

// fail ends an item for good, until somebody tries it again. What an attempt
// may have written is settled by the media's next event in the target.
func (s *Store) fail(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error) error {
	mine, err := s.end(ctx, tx, it, f)
	if err != nil || !mine {
		return err
	}
	if it.key != "" && it.unsure {
		if err := s.ledger.Apply(ctx, tx, []ledger.Effects{{Possible: []ledger.PossibleWrite{it.possibleWrite()}}}); err != nil {
			return err
		}
	}
	if err := s.closeCopy(ctx, tx, it.CopySequence); err != nil {
		return err
	}
	return s.strike(ctx, tx, []ending{{WaitsFor: it.CopySequence, MediaID: it.MediaID, Failed: true}})
}

// readsElsewhere tells whether a denial may be of what the item reads outside
// of its target's own prefix, which only this copy needs.
func (it *item) readsElsewhere(targetPrefix, code string) bool {
	return !strings.HasPrefix(it.SourceKey, targetPrefix) &&
		(code == failure.Denied || code == bucket.KMSDenied || code == bucket.SessionPolicyTooLarge)
}

func (it *item) possibleWrite() ledger.PossibleWrite {
	return ledger.PossibleWrite{LaneID: it.TargetLane, MediaID: it.MediaID, Key: it.key, Version: it.Version}
}

// giveBack lets others have an item whose copy was interrupted: at once or,
// where a write was cancelled, when that can have no effect any more.
func (s *Store) giveBack(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error) error {
	if !errors.Is(f, bucket.ErrInDoubt) {
		return s.putOff(ctx, tx, it, nil, 0)
	}
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET leased_until = {now} + ? WHERE copy_sequence = ? AND media_id = ? AND lease_token = ?
		AND state IN ('owed', 'waiting')`), bucket.LateWrites.Microseconds(), it.CopySequence, it.MediaID, it.Token)
	return err
}

// putOff gives an item back, to be tried again after the delay. Without a
// failure, no attempt counts. A probe that has passed says nothing about a denial
// that comes after this.
func (s *Store) putOff(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error, delay time.Duration) error {
	counted := 0
	if f != nil {
		counted = 1
	}
	code, words := reason(f)
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET leased_until = NULL, failure_count = failure_count + ?, may_have_written = ?,
			first_failed_at = CASE WHEN CAST(? AS integer) = 1 AND failure_count = 0 THEN {now} ELSE first_failed_at END,
			error_code = ?, error = ?, next_attempt_at = {now} + ?, denied_at = NULL
		WHERE copy_sequence = ? AND media_id = ? AND lease_token = ? AND state IN ('owed', 'waiting')`),
		counted, it.unsure, counted, code, words, delay.Microseconds(), it.CopySequence, it.MediaID, it.Token)
	return err
}

// putOffDenied gives back an item that the target's account denied; counted is 1
// where it denies the item alone, which needs no further probe.
func (s *Store) putOffDenied(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error, counted int, delay time.Duration) error {
	code, words := reason(f)
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET leased_until = NULL, may_have_written = ?,
			denied_at = CASE WHEN CAST(? AS integer) = 0 THEN {now} ELSE denied_at END,
			denied_count = denied_count + ?, error_code = ?, error = ?, next_attempt_at = {now} + ?
		WHERE copy_sequence = ? AND media_id = ? AND lease_token = ? AND state IN ('owed', 'waiting')`),
		it.unsure, counted, counted, code, words, delay.Microseconds(), it.CopySequence, it.MediaID, it.Token)
	return err
}

// reason spells a failure for the database: valid UTF-8 without NUL, which
// both databases take.
func reason(f *failure.Error) (code, words *string) {
	if f == nil {
		return nil, nil
	}
	text := strings.ReplaceAll(strings.ToValidUTF8(f.Error(), "\uFFFD"), "\x00", "\uFFFD")
	return &f.Code, &text
}
