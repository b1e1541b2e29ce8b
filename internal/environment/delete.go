package environment

import (
	"context"
	"fmt"
	"sync"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Delete empties the environment's directory until a listing finds nothing:
// the one delete that doesn't ask whose an object is (manual: 複数環境での取り扱い).
func (s *Store) Delete(ctx context.Context, d *outbox.Delivery) (string, error) {
	e := d.Event
	if since, err := s.usedSince(ctx, e); err != nil || since {
		return outbox.Superseded, err
	}
	if err := s.awaitCopies(ctx, e); err != nil {
		return "", err
	}
	settings, exists, err := s.settings.Of(ctx, e.LaneID)
	if err != nil {
		return "", err
	}
	if !exists {
		return outbox.Skipped, nil
	}
	if settings.EnvironmentID == "" || settings.Directory == "" {
		return "", failure.New(failure.Permanent, failure.InvalidEvent,
			"environment %q of service %s has no directory of its own: nothing is deleted", e.EnvironmentID, e.ServiceID)
	}
	b, err := s.buckets.Bucket(settings.Account())
	if err != nil {
		return "", err
	}
	begin := sync.OnceValue(func() error { return s.beginEmptying(ctx, d) })
	if err := empty(ctx, b, settings.KeyPrefix(), begin); err != nil {
		return "", err
	}
	return outbox.Done, nil
}

// usedSince tells whether the environment was made again, or used, after a
// deletion of it: that one had died, and what is there now isn't its to delete. A
// deletion that wasn't replayed, and after which something ran nevertheless, was
// committed late: what was published while its transaction was open goes with the
// environment.
func (s *Store) usedSince(ctx context.Context, deletion *outbox.Event) (bool, error) {
	replayed := deletion.AttemptCount > deletion.FailureCount
	var used bool
	err := s.db.GetContext(ctx, &used, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {copies} WHERE target_lane = ? AND sequence > ? AND state IN ('active', 'ended'))
		OR ? AND EXISTS (SELECT 1 FROM {media_objects} WHERE lane_id = ? AND sequence > ?)`),
		deletion.LaneID, deletion.Sequence, replayed, deletion.LaneID, deletion.Sequence)
	return used, wrap("look whether the environment was used since", err)
}

// beginEmptying keeps what comes before the deletion from starting until that
// has ended, also between its attempts: it would otherwise write where has been
// deleted already, to be deleted by the next attempt.
func (s *Store) beginEmptying(ctx context.Context, d *outbox.Delivery) error {
	e := d.Event
	var mine bool
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockLanes(ctx, tx, e.LaneID); err != nil {
			return err
		}
		// Whoever lost the lane may have been overtaken by the deletion's end.
		result, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {lanes} SET emptying_sequence = ? WHERE lane_id = ? AND lease_token = ?
			AND EXISTS (SELECT 1 FROM {outbox} WHERE sequence = ? AND finished_at IS NULL)`),
			e.Sequence, e.LaneID, d.Token, e.Sequence)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		mine = n > 0
		return err
	})
	if err != nil {
		return wrap("begin to delete the environment", err)
	}
	if !mine {
		return failure.New(failure.Interrupted, failure.Canceled,
			"the lane of service %s, environment %q was lost before anything was deleted", e.ServiceID, e.EnvironmentID)
	}
	e.Emptying = true
	return nil
}

// empty deletes what is below the prefix, page by page, until a listing from
// the beginning finds nothing. It begins before each page: once is enough.
func empty(ctx context.Context, b *bucket.Bucket, prefix string, begin func() error) error {
	for found := true; found; {
		found = false
		for token, next := "", ""; ; token = next {
			page, following, err := b.List(ctx, prefix, token)
			if err != nil {
				return err
			}
			if len(page) > 0 {
				found = true
				if err := begin(); err != nil {
					return err
				}
				if err := deletePage(ctx, b, page); err != nil {
					return err
				}
			}
			if next = following; next == "" {
				break
			}
		}
	}
	return nil
}

func deletePage(ctx context.Context, b *bucket.Bucket, page []bucket.Listed) error {
	keys := make([]string, len(page))
	for i, object := range page {
		keys[i] = object.Key
	}
	failures, err := b.DeleteMany(ctx, keys)
	if err != nil {
		return err
	}
	if len(failures) > 0 {
		return fmt.Errorf("%d of %d keys: %w", len(failures), len(keys), failures[0].Err)
	}
	return nil
}

// awaitCopies waits for copies owed from the environment, for events that they
// wait for, and for copies into it that they still need. Other copies into it
// are cancelled.
func (s *Store) awaitCopies(ctx context.Context, e *outbox.Event) error {
	joining, err := s.joinBefore(ctx, e)
	if err != nil {
		return wrap("let media join copies from the environment", err)
	}
	from, err := s.owedFrom(ctx, e)
	if err != nil {
		return wrap("wait for copies from the environment", err)
	}
	into, err := s.cancelInto(ctx, e)
	if err != nil {
		return wrap("cancel copies into the environment", err)
	}
	if joining || from || into {
		s.Wake()
		return &outbox.Wait{For: 2 * lookAgain, Reason: "copies from the environment come before its deletion"}
	}
	return nil
}

// joinBefore gives copies from the environment the media that events have
// kept from joining. Events that only wait for their next attempt, or for the
// end of this deletion because it has begun, will be superseded: what the ledger
// has now is what there will be. Those that can run do so first, while the
// deletion waits; it tells whether there are any. Those that lack what the
// deletion has kept from being copied wait for it (awaitDeletion).
func (s *Store) joinBefore(ctx context.Context, e *outbox.Event) (runnable bool, err error) {
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockLanes(ctx, tx, e.LaneID); err != nil {
			return err
		}
		var waits []struct {
			joining
			Runnable bool `db:"runnable"`
		}
		if err := tx.SelectContext(ctx, &waits, s.db.SQL(`
			SELECT w.copy_sequence, w.media_id, w.source_lane, EXISTS (SELECT 1 FROM {outbox} e
				WHERE e.lane_id = w.source_lane AND e.media_id = w.media_id AND e.sequence < w.copy_sequence
				AND e.state IN ('available', 'running') AND (NOT e.parked OR e.next_attempt_at IS NOT NULL)
				AND NOT EXISTS (SELECT 1 FROM {lanes} l WHERE l.lane_id = e.lane_id AND l.emptying_sequence IS NOT NULL)
				AND NOT EXISTS (SELECT 1 FROM {copy_items} x WHERE x.target_lane = e.lane_id AND x.state = 'cancelled'
					AND x.media_id = e.media_id AND x.copy_sequence < e.sequence)) AS runnable
			FROM {copy_items} w WHERE w.state = 'waiting' AND w.source_lane = ? AND w.copy_sequence < ?
			AND `+notAwaited),
			e.LaneID, e.Sequence); err != nil {
			return err
		}
		runnable = false
		var ready []joining
		for _, w := range waits {
			if w.Runnable {
				runnable = true
			} else {
				ready = append(ready, w.joining)
			}
		}
		endings, err := s.joinNow(ctx, tx, ready)
		if err != nil {
			return err
		}
		return s.join(ctx, tx, endings)
	})
	return runnable, err
}

// owedFrom tells whether items are owed from the environment that can still
// be copied, or a creation is yet to take its settings. Other items are given
// up.
func (s *Store) owedFrom(ctx context.Context, e *outbox.Event) (bool, error) {
	var copies []struct {
		Sequence    int64  `db:"sequence"`
		TargetLane  int64  `db:"target_lane"`
		State       string `db:"state"`
		Held        bool   `db:"held"`
		CreationDue bool   `db:"creation_due"`
		Owes        bool   `db:"owes"`
	}
	if err := s.db.SelectContext(ctx, &copies, s.db.SQL(`
		SELECT c.sequence, c.target_lane, c.state, l.held, EXISTS (SELECT 1 FROM {outbox} e
				WHERE e.sequence = c.sequence AND e.state IN ('available', 'running', 'retryable')) AS creation_due,
			EXISTS (SELECT 1 FROM {copy_items} i WHERE i.copy_sequence = c.sequence AND i.state = 'owed') AS owes
		FROM {copies} c JOIN {lanes} l ON l.lane_id = c.target_lane
		WHERE c.source_lane = ? AND c.sequence < ? AND c.state IN ('planned', 'active')`),
		e.LaneID, e.Sequence); err != nil {
		return false, err
	}
	waits := false
	for _, c := range copies {
		created := c.State == active
		soon := !c.Held && (created || c.CreationDue)
		waits = waits || soon && !created
		if !c.Owes {
			continue
		}
		what := scope{copySequence: c.Sequence, targetLane: c.TargetLane, tired: soon}
		what.overtaken = created
		if soon {
			if err := s.startWaiting(ctx, what); err != nil {
				return false, err
			}
		}
		left, err := s.giveUp(ctx, what, "the environment that it is in is deleted")
		if err != nil {
			return false, err
		}
		waits = waits || left
	}
	return waits, nil
}

// cancelInto cancels items into the environment that no copy from it waits
// for, or has waited for too long. It tells whether some are left.
func (s *Store) cancelInto(ctx context.Context, e *outbox.Event) (left bool, err error) {
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockLanes(ctx, tx, e.LaneID); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {copy_items} SET first_failed_at = {now}
			WHERE state = 'waiting' AND target_lane = ? AND copy_sequence < ? AND first_failed_at IS NULL`),
			e.LaneID, e.Sequence); err != nil {
			return err
		}
		var unwanted []item
		if err := tx.SelectContext(ctx, &unwanted, s.db.SQL(`
			UPDATE {copy_items} AS i SET state = 'cancelled',
				may_have_written = (i.may_have_written OR i.leased_until IS NOT NULL), leased_until = NULL
			WHERE i.state IN ('owed', 'waiting') AND i.target_lane = ? AND i.copy_sequence < ?
			AND (i.leased_until IS NULL OR i.leased_until < {now})
			AND NOT (coalesce(i.first_failed_at, {now}) > {now} - ?
				AND EXISTS (SELECT 1 FROM {copies} c WHERE c.sequence = i.copy_sequence AND c.state = 'active')
				AND EXISTS (SELECT 1 FROM {copy_items} w WHERE w.state = 'waiting' AND w.source_lane = i.target_lane
					AND w.media_id = i.media_id AND w.copy_sequence > i.copy_sequence AND w.copy_sequence < ?))
			RETURNING `+itemColumns),
			e.LaneID, e.Sequence, copyFirstFor.Microseconds(), e.Sequence); err != nil {
			return err
		}
		// What they may have left counts where the deletion is discarded after all.
		if err := s.letGo(ctx, tx, unwanted, false); err != nil {
			return err
		}
		return tx.GetContext(ctx, &left, s.db.SQL(`
			SELECT EXISTS (SELECT 1 FROM {copy_items} WHERE state = 'owed' AND target_lane = ? AND copy_sequence < ?)
			OR EXISTS (SELECT 1 FROM {copy_items} WHERE state = 'waiting' AND target_lane = ? AND copy_sequence < ?)`),
			e.LaneID, e.Sequence, e.LaneID, e.Sequence)
	})
	return left, err
}

// forget drops all that is known of a deleted environment, and completes what
// waited in it as superseded. The deletion's sequence stays. The settlement
// that it is part of holds the lane, so that no item into it ends meanwhile.
func (s *Store) forget(ctx context.Context, tx *sqlx.Tx, e *outbox.Event) error {
	var into []int64
	if err := tx.SelectContext(ctx, &into, s.db.SQL(`
		SELECT sequence FROM {copies} WHERE target_lane = ? AND sequence < ? ORDER BY sequence`), e.LaneID, e.Sequence); err != nil {
		return err
	}
	for _, sequence := range into {
		if err := s.cancelCopy(ctx, tx, sequence); err != nil {
			return err
		}
	}
	for _, query := range []string{
		`UPDATE {outbox} SET state = 'completed', outcome = 'superseded', finished_at = {now}, parked = false,
			requeued = false, holding = false, next_attempt_at = NULL
			WHERE lane_id = ? AND sequence < ? AND state IN ('available', 'running', 'retryable')`,
		`DELETE FROM {holds} WHERE lane_id = ? AND sequence < ?`,
		`UPDATE {lanes} SET wake = wake + 1, deleted_sequence = v.sequence
			FROM (SELECT CAST(? AS bigint) AS lane_id, CAST(? AS bigint) AS sequence) AS v
			WHERE {lanes}.lane_id = v.lane_id`,
	} {
		if _, err := tx.ExecContext(ctx, s.db.SQL(query), e.LaneID, e.Sequence); err != nil {
			return fmt.Errorf("forget environment %q of service %s: %w", e.EnvironmentID, e.ServiceID, err)
		}
	}
	for _, query := range []string{
		`DELETE FROM {media_objects} WHERE lane_id = ?`, `DELETE FROM {possible_writes} WHERE lane_id = ?`,
	} {
		if _, err := tx.ExecContext(ctx, s.db.SQL(query), e.LaneID); err != nil {
			return fmt.Errorf("forget the media of environment %q of service %s: %w", e.EnvironmentID, e.ServiceID, err)
		}
	}
	if err := s.settings.Remove(ctx, tx, e.LaneID); err != nil {
		return err
	}
	// What copies made of it later have waited for was superseded.
	var left []ending
	if err := tx.SelectContext(ctx, &left, s.db.SQL(`
		SELECT DISTINCT source_lane AS lane_id, media_id, false AS failed FROM {copy_items}
		WHERE source_lane = ? AND state = 'waiting'`), e.LaneID); err != nil {
		return err
	}
	return s.join(ctx, tx, left)
}
