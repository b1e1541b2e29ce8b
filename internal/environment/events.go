package environment

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Create gives the environment its settings, never over existing ones, and
// lets the copy of its media begin. A replay after that changes nothing.
func (s *Store) Create(ctx context.Context, d *outbox.Delivery) (string, error) {
	e := d.Event
	if err := s.Snapshots(ctx); err != nil {
		return "", err
	}
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		var copies []struct {
			SourceLane           int64  `db:"source_lane"`
			EnvironmentServiceID string `db:"environment_service_id"`
		}
		if err := tx.SelectContext(ctx, &copies, s.db.SQL(`
			SELECT source_lane, environment_service_id FROM {copies} WHERE sequence = ? AND state = 'planned'`),
			e.Sequence); err != nil || len(copies) == 0 {
			return err
		}
		if err := d.Guard(); err != nil {
			return err
		}
		if err := s.settings.CopySettings(ctx, tx, copies[0].SourceLane, e.LaneID, copies[0].EnvironmentServiceID); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, s.db.SQL(`UPDATE {copies} SET state = 'active' WHERE sequence = ?`), e.Sequence)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("create environment %q of service %s: %w", e.EnvironmentID, e.ServiceID, err)
	}
	s.Wake()
	_, exists, err := s.settings.Of(ctx, e.LaneID)
	if err != nil {
		return "", err
	}
	if !exists {
		return outbox.Skipped, nil
	}
	return outbox.Done, nil
}

// Delete empties the environment's directory until a listing finds nothing:
// the one delete that doesn't ask whose an object is (manual: 複数環境での取り扱い).
func (s *Store) Delete(ctx context.Context, d *outbox.Delivery) (string, error) {
	e := d.Event
	settings, exists, err := s.settings.Of(ctx, e.LaneID)
	if err != nil {
		return "", err
	}
	if err := s.awaitCopies(ctx, e); err != nil {
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
			next = following
			keys := make([]string, len(page))
			for i, object := range page {
				keys[i] = object.Key
			}
			if len(keys) > 0 {
				found = true
				failures, err := b.DeleteMany(ctx, keys)
				if err != nil {
					return err
				}
				if len(failures) > 0 {
					return fmt.Errorf("%d of %d keys: %w", len(failures), len(keys), failures[0].Err)
				}
			}
			if next == "" {
				break
			}
		}
	}
	return nil
}

// awaitCopies waits for copies owed from the environment, and for those into
// it that they still need. Other copies into it are cancelled.
func (s *Store) awaitCopies(ctx context.Context, e *outbox.Event) error {
	if err := s.joinWaiting(ctx, e.LaneID, e.Sequence); err != nil {
		return err
	}
	var from []item
	if err := s.db.SelectContext(ctx, &from, s.db.SQL(`
		SELECT `+itemColumns+` FROM `+itemTables+`
		WHERE i.state = 'owed' AND i.source_lane = ? AND c.sequence < ?`), e.LaneID, e.Sequence); err != nil {
		return wrap("look for copies owed from the environment", err)
	}
	waits := false
	for i := range from {
		it := &from[i]
		if it.CopyState == active && !it.TargetHeld && !s.tiredOf(it) {
			waits = true
			continue
		}
		soon, err := s.awaitsItsEvent(ctx, it)
		if err != nil {
			return err
		}
		if soon && !it.TargetHeld {
			waits = true
		} else if err := s.giveUp(ctx, it, "its environment is deleted"); err != nil {
			return err
		}
	}
	needed, err := s.cancelInto(ctx, e)
	if err != nil {
		return err
	}
	if waits || needed {
		s.Wake()
		return &outbox.Wait{For: 2 * lookAgain, Reason: "copies from the environment come before its deletion"}
	}
	return nil
}

// cancelInto cancels items into the environment that no copy from it waits
// for. It tells whether some are left: needed, or being copied right now.
func (s *Store) cancelInto(ctx context.Context, e *outbox.Event) (bool, error) {
	if _, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET state = 'cancelled' WHERE state = 'owed' AND target_lane = ? AND copy_sequence < ?
		AND (leased_until IS NULL OR leased_until < {now})
		AND NOT EXISTS (SELECT 1 FROM {copies} c WHERE c.source_lane = {copy_items}.target_lane AND c.sequence < ?
			AND c.sequence > {copy_items}.copy_sequence AND c.state IN ('pending', 'planned', 'active')
			AND {copy_items}.failure_count = 0)`),
		e.LaneID, e.Sequence, e.Sequence); err != nil {
		return false, wrap("cancel copies into the environment", err)
	}
	var left bool
	err := s.db.GetContext(ctx, &left, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {copy_items} WHERE state = 'owed' AND target_lane = ? AND copy_sequence < ?)`),
		e.LaneID, e.Sequence)
	return left, wrap("look for copies into the environment", err)
}

// recordOne writes what an event of a whole environment did.
func (s *Store) recordOne(ctx context.Context, tx *sqlx.Tx, st *outbox.Settlement) error {
	e := st.Event
	switch {
	case st.Kind == outbox.Yield && st.Failure != nil && st.Failure.Class == failure.Integration:
		return s.settings.BlockTx(ctx, tx, e.LaneID, st.Failure.Code, st.Failure.Error())
	case st.Kind == outbox.Complete && e.Type == events.EnvironmentDeletedType && st.Outcome != outbox.Superseded:
		return s.forget(ctx, tx, e)
	case st.Kind == outbox.Complete && e.Type == events.EnvironmentCreatedType && st.Outcome == outbox.Superseded:
		return s.cancelCopy(ctx, tx, e.Sequence)
	}
	return nil
}

// forget drops all that is known of a deleted environment, and completes what
// waited in it as superseded. The deletion's sequence stays.
func (s *Store) forget(ctx context.Context, tx *sqlx.Tx, e *outbox.Event) error {
	if err := s.lockLane(ctx, tx, e.LaneID); err != nil {
		return err
	}
	var created []int64
	if err := tx.SelectContext(ctx, &created, s.db.SQL(`
		SELECT sequence FROM {copies} WHERE target_lane = ? AND sequence < ? ORDER BY sequence`), e.LaneID, e.Sequence); err != nil {
		return err
	}
	for _, sequence := range created {
		if err := s.cancelCopy(ctx, tx, sequence); err != nil {
			return err
		}
	}
	for _, query := range []string{
		`UPDATE {outbox} SET state = 'completed', outcome = 'superseded', finished_at = {now}, parked = false,
			requeued = false, holding = false, next_attempt_at = NULL
			WHERE lane_id = ? AND sequence < ? AND state IN ('available', 'retryable')`,
		`DELETE FROM {holds} WHERE lane_id = ? AND sequence < ?`,
		`DELETE FROM {media_objects} WHERE lane_id = ? AND sequence < ?`,
		`UPDATE {lanes} SET wake = wake + 1, deleted_sequence = v.sequence
			FROM (SELECT CAST(? AS bigint) AS lane_id, CAST(? AS bigint) AS sequence) AS v
			WHERE {lanes}.lane_id = v.lane_id`,
	} {
		if _, err := tx.ExecContext(ctx, s.db.SQL(query), e.LaneID, e.Sequence); err != nil {
			return fmt.Errorf("forget environment %q of service %s: %w", e.EnvironmentID, e.ServiceID, err)
		}
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`DELETE FROM {possible_writes} WHERE lane_id = ?`), e.LaneID); err != nil {
		return err
	}
	return s.settings.Remove(ctx, tx, e.LaneID)
}

// cancelCopy drops a copy that nobody wants any more, with its items, and the
// barrier that its snapshot may be.
func (s *Store) cancelCopy(ctx context.Context, tx *sqlx.Tx, sequence int64) error {
	var sources []int64
	if err := tx.SelectContext(ctx, &sources, s.db.SQL(`
		DELETE FROM {copies} WHERE sequence = ? RETURNING source_lane`), sequence); err != nil {
		return wrap("cancel a copy", err)
	}
	for _, laneID := range sources {
		if err := s.openGate(ctx, tx, laneID); err != nil {
			return err
		}
	}
	return nil
}

// RecordDiscarded notes what discarded events may have written, lets their
// media join copies, and cancels copies whose event is discarded.
func (s *Store) RecordDiscarded(ctx context.Context, tx *sqlx.Tx, discarded []*outbox.Event, tainted map[int64]bool) error {
	var effects []ledger.Effects
	var endings []ending
	for _, e := range discarded {
		if e.Type == events.EnvironmentCreatedType {
			if err := s.cancelCopy(ctx, tx, e.Sequence); err != nil {
				return err
			}
			continue
		}
		if e.Media() == "" {
			continue
		}
		endings = append(endings, ending{e.LaneID, e.Media(), e.Sequence})
		if e.RecordedCount == 0 && !tainted[e.Sequence] {
			continue
		}
		possible, err := s.possibleWrite(ctx, tx, e)
		if err != nil {
			return err
		}
		effects = append(effects, ledger.Effects{Possible: possible})
	}
	if err := s.ledger.Apply(ctx, tx, effects); err != nil {
		return err
	}
	return s.join(ctx, tx, endings)
}

// possibleWrite is where an event that was attempted may have written.
func (s *Store) possibleWrite(ctx context.Context, tx *sqlx.Tx, e *outbox.Event) ([]ledger.PossibleWrite, error) {
	parsed, err := events.Parse(e.Type, e.ServiceID, e.EnvironmentID, e.Data)
	if err != nil {
		return nil, nil //nolint:nilerr // it never ran
	}
	var name string
	switch p := parsed.(type) {
	case events.MediaUploaded:
		name = p.FileName
	case events.MediaRenamed:
		name = p.To
	default:
		return nil, nil
	}
	settings, exists, err := s.settings.ByLane(ctx, tx, e.LaneID)
	if err != nil || !exists {
		return nil, err
	}
	key, err := bucket.Key(settings.Prefix, settings.Directory, name)
	if err != nil {
		return nil, nil //nolint:nilerr // it was refused before the bucket was touched
	}
	return []ledger.PossibleWrite{{LaneID: e.LaneID, MediaID: e.Media(), Key: key, Version: *e.Version}}, nil
}
