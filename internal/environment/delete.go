package environment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Delete empties the environment's directory until a listing finds nothing:
// the one delete that doesn't ask whose an object is (manual: 複数環境での取り扱い).
func (s *Store) Delete(ctx context.Context, d *outbox.Delivery) (string, error) {
	e := d.Event
	if since, err := s.usedSince(ctx, s.db, deletion{e.Sequence, e.AttemptCount > e.FailureCount}, e.LaneID); err != nil || since {
		return outbox.Superseded, err
	}
	if err := s.awaitCopies(ctx, e); err != nil {
		return "", err
	}
	if err := s.beginDeletion(ctx, d); err != nil {
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
	if err := empty(ctx, b, settings.KeyPrefix()); err != nil {
		return "", err
	}
	return outbox.Done, nil
}

// deletion is an EnvironmentDeleted that has not begun to delete.
type deletion struct {
	Sequence int64 `db:"sequence"`
	Replayed bool  `db:"replayed"`
}

// usedSince tells whether the environment was made again, or used, after a
// deletion of it: that one had died, and what is there now isn't its to delete. A
// deletion that wasn't replayed, and after which something ran nevertheless, was
// committed late: what was published while its transaction was open goes with the
// environment.
func (s *Store) usedSince(ctx context.Context, q sqlx.QueryerContext, d deletion, laneID int64) (bool, error) {
	var used bool
	err := sqlx.GetContext(ctx, q, &used, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {copies} WHERE target_lane = ? AND sequence > ? AND state IN ('active', 'ended'))
		OR CAST(? AS integer) = 1 AND EXISTS (SELECT 1 FROM {media_objects} WHERE lane_id = ? AND sequence > ?)`),
		laneID, d.Sequence, number(d.Replayed), laneID, d.Sequence)
	return used, wrap("look whether the environment was used since", err)
}

// pendingDeletion is the last deletion of a lane's environment before a sequence
// that has not ended, and will not be superseded; 0 where there is none.
func (s *Store) pendingDeletion(ctx context.Context, tx *sqlx.Tx, laneID, before int64) (int64, error) {
	var pending []deletion
	if err := tx.SelectContext(ctx, &pending, s.db.SQL(`
		SELECT e.sequence, e.attempt_count > e.failure_count AS replayed FROM {outbox} e
		JOIN {lanes} l ON e.service_id = l.service_id AND e.environment_id = l.environment_id
		WHERE `+outbox.EnvironmentEvent+` AND e.type = '`+events.EnvironmentDeletedType+`' AND l.lane_id = ? AND e.sequence < ?
		ORDER BY e.sequence DESC`), laneID, before); err != nil {
		return 0, wrap("look for a deletion that is yet to run", err)
	}
	for _, d := range pending {
		if used, err := s.usedSince(ctx, tx, d, laneID); err != nil || !used {
			return d.Sequence, err
		}
	}
	return 0, nil
}

// awaitCopies waits for copies owed from the environment, and for the events and
// items that these wait for. Items that can't be copied soon are given up.
func (s *Store) awaitCopies(ctx context.Context, e *outbox.Event) error {
	var copies []struct {
		Sequence    int64  `db:"sequence"`
		TargetLane  int64  `db:"target_lane"`
		State       string `db:"state"`
		Held        bool   `db:"held"`
		CreationDue bool   `db:"creation_due"`
		Open        bool   `db:"open"`
	}
	if err := s.db.SelectContext(ctx, &copies, s.db.SQL(`
		SELECT c.sequence, c.target_lane, c.state, l.held, EXISTS (SELECT 1 FROM {outbox} e
				WHERE e.sequence = c.sequence AND `+outbox.Unfinished+`) AS creation_due, `+open+` AS open
		FROM {copies} c JOIN {lanes} l ON l.lane_id = c.target_lane
		WHERE c.source_lane = ? AND c.sequence < ? AND c.state IN ('planned', 'active')`),
		e.LaneID, e.Sequence); err != nil {
		return wrap("look for copies from the environment", err)
	}
	var on int64
	for _, c := range copies {
		created := c.State == active
		soon := !c.Held && (created || c.CreationDue)
		if soon && !created {
			on = c.Sequence // it is yet to take the environment's settings
		}
		if !c.Open {
			continue
		}
		what := scope{copySequence: c.Sequence, targetLane: c.TargetLane, tired: soon, overtaken: created}
		if soon {
			if err := s.startWaiting(ctx, what); err != nil {
				return err
			}
		}
		left, err := s.giveUp(ctx, what, "the environment that it is in is deleted")
		if err != nil {
			return err
		}
		if left {
			on = c.Sequence
		}
	}
	if on != 0 {
		s.Wake()
		return s.copiesFirst(on)
	}
	return nil
}

func (s *Store) copiesFirst(on int64) error {
	return &outbox.Wait{For: 2 * lookAgain, Reason: "copies from the environment come before its deletion", OnCopy: on}
}

// beginDeletion is the point of no return: in one transaction, copies into the
// environment are cancelled, and what waits in it is superseded. A later attempt
// begins again, and finds nothing left to do.
func (s *Store) beginDeletion(ctx context.Context, d *outbox.Delivery) error {
	e := d.Event
	var wait error
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		wait = nil
		if err := s.lockLanes(ctx, tx, e.LaneID); err != nil {
			return err
		}
		var mine bool
		if err := tx.GetContext(ctx, &mine, s.db.SQL(`
			SELECT EXISTS (SELECT 1 FROM {lanes} WHERE lane_id = ? AND lease_token = ? AND leased_by IS NOT NULL)
			AND EXISTS (SELECT 1 FROM {outbox} WHERE sequence = ? AND finished_at IS NULL)`),
			e.LaneID, d.Token, e.Sequence); err != nil {
			return err
		}
		if !mine {
			wait = failure.New(failure.Interrupted, failure.Canceled,
				"the lane of service %s, environment %q was lost before anything was deleted", e.ServiceID, e.EnvironmentID)
			return errNotBegun
		}
		// A copy may have been noted since they were waited for.
		var on int64
		if err := tx.GetContext(ctx, &on, s.db.SQL(`
			SELECT coalesce((SELECT max(c.sequence) FROM {copies} c WHERE c.source_lane = ? AND c.sequence < ?
				AND (c.state = 'pending' OR `+open+`)), 0)`), e.LaneID, e.Sequence); err != nil {
			return err
		}
		if on != 0 {
			wait = s.copiesFirst(on)
			return errNotBegun
		}
		if atWork, err := s.cancelInto(ctx, tx, e); err != nil {
			return err
		} else if atWork {
			wait = &outbox.Wait{For: lookAgain, Reason: "copies to the environment that are being made end before its deletion begins"}
			return nil
		}
		return s.supersede(ctx, tx, e)
	})
	if err != nil && !errors.Is(err, errNotBegun) {
		return wrap("begin to delete the environment", err)
	}
	if wait != nil {
		return wait
	}
	e.Emptying = true
	return nil
}

// errNotBegun rolls the beginning of a deletion back.
var errNotBegun = errors.New("the deletion has not begun")

// untilDeletion is for how long no other copies to an environment begin while its
// deletion waits for those that are being made. The deletion looks again sooner.
const untilDeletion = 10 * time.Second

// cancelInto drops copies into the environment. It tells whether somebody is at work
// on some: these must end first, and no others begin meanwhile.
func (s *Store) cancelInto(ctx context.Context, tx *sqlx.Tx, e *outbox.Event) (atWork bool, err error) {
	// The rows are locked until all is done: nobody leases one meanwhile.
	var leased []bool
	if err := tx.SelectContext(ctx, &leased, s.db.SQL(`
		SELECT coalesce(leased_until >= {now}, false) FROM {copy_items}
		WHERE target_lane = ? AND copy_sequence < ? AND state IN ('owed', 'waiting')
		ORDER BY copy_sequence, media_id {for_update}`), e.LaneID, e.Sequence); err != nil {
		return false, err
	}
	if slices.Contains(leased, true) {
		_, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {copy_items} SET next_attempt_at = {now} + ? WHERE target_lane = ? AND copy_sequence < ? AND state = 'owed'
			AND (leased_until IS NULL OR leased_until < {now}) AND next_attempt_at < {now} + ?`),
			untilDeletion.Microseconds(), e.LaneID, e.Sequence, untilDeletion.Microseconds())
		return true, err
	}
	var copies []int64
	if err := tx.SelectContext(ctx, &copies, s.db.SQL(`
		SELECT sequence FROM {copies} WHERE target_lane = ? AND sequence < ? ORDER BY sequence`), e.LaneID, e.Sequence); err != nil {
		return false, err
	}
	for _, sequence := range copies {
		if err := s.cancelCopy(ctx, tx, sequence); err != nil {
			return false, err
		}
	}
	return false, nil
}

// supersede completes what waits in the environment before the deletion.
func (s *Store) supersede(ctx context.Context, tx *sqlx.Tx, e *outbox.Event) error {
	superseded, err := outbox.Supersede(ctx, tx, s.db.SQL, e.LaneID, e.Sequence)
	if err != nil || len(superseded) == 0 {
		return err
	}
	ids, err := rows(superseded)
	if err != nil {
		return err
	}
	var ended []ending
	if err := tx.SelectContext(ctx, &ended, s.db.SQL(`
		SELECT waits_for, media_id, false AS failed FROM {copy_waits} WHERE waits_for {in_ids}`), ids); err != nil {
		return err
	}
	return s.strike(ctx, tx, ended)
}

// empty deletes what is below the prefix, page by page, until a listing from
// the beginning finds nothing.
func empty(ctx context.Context, b *bucket.Bucket, prefix string) error {
	for found := true; found; {
		found = false
		for token, next := "", ""; ; token = next {
			page, following, err := b.List(ctx, prefix, token)
			if err != nil {
				return err
			}
			if len(page) > 0 {
				found = true
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

// forget drops all that is known of a deleted environment, and completes what
// came late in it as superseded. The deletion's sequence stays. The settlement
// that it is part of holds the lane, so that no item into it ends meanwhile.
func (s *Store) forget(ctx context.Context, tx *sqlx.Tx, e *outbox.Event) error {
	if _, err := s.cancelInto(ctx, tx, e); err != nil {
		return err
	}
	if err := s.supersede(ctx, tx, e); err != nil {
		return err
	}
	for _, query := range []string{
		`DELETE FROM {media_objects} WHERE lane_id = ?`, `DELETE FROM {possible_writes} WHERE lane_id = ?`,
	} {
		if _, err := tx.ExecContext(ctx, s.db.SQL(query), e.LaneID); err != nil {
			return fmt.Errorf("forget the media of environment %q of service %s: %w", e.EnvironmentID, e.ServiceID, err)
		}
	}
	return s.settings.Remove(ctx, tx, e.LaneID)
}
