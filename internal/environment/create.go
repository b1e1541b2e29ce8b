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
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error { return s.activate(ctx, tx, d) })
	if err != nil {
		return "", fmt.Errorf("create environment %q of service %s: %w", e.EnvironmentID, e.ServiceID, err)
	}
	s.Wake()
	_, exists, err := s.settings.Of(ctx, e.LaneID)
	if err != nil || exists {
		return outbox.Done, err
	}
	used, err := s.settings.AnyOfService(ctx, e.ServiceID)
	if err != nil || !used {
		return outbox.Skipped, err
	}
	return "", failure.New(failure.Permanent, failure.NoIntegration,
		"environment %q of service %s has no integration, and neither has the one that it is made from: "+
			"set it with `ownbucket integration set`, then retry the event", e.EnvironmentID, e.ServiceID)
}

// activate begins the copy of an event that still stands. The lane's lock
// comes first: a deletion of the environment is then either still to come, or
// has dropped the copy.
func (s *Store) activate(ctx context.Context, tx *sqlx.Tx, d *outbox.Delivery) error {
	e := d.Event
	if err := s.lockLanes(ctx, tx, e.LaneID); err != nil {
		return err
	}
	if err := d.Guard(); err != nil {
		return err
	}
	var copies []struct {
		SourceLane           int64  `db:"source_lane"`
		EnvironmentServiceID string `db:"environment_service_id"`
	}
	if err := tx.SelectContext(ctx, &copies, s.db.SQL(`
		SELECT source_lane, environment_service_id FROM {copies} WHERE sequence = ? AND state <> 'pending'`),
		e.Sequence); err != nil || len(copies) == 0 {
		return err
	}
	if err := s.awaitSource(ctx, tx, copies[0].SourceLane, e.Sequence); err != nil {
		return err
	}
	if err := s.settings.CopySettings(ctx, tx, copies[0].SourceLane, e.LaneID, copies[0].EnvironmentServiceID); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`UPDATE {copies} SET state = 'active' WHERE sequence = ? AND state = 'planned'`), e.Sequence); err != nil {
		return err
	}
	return s.closeCopy(ctx, tx, e.Sequence)
}

// awaitSource waits for the creation of the environment that another is made
// from, which gives it its settings. One that is held has settings already.
func (s *Store) awaitSource(ctx context.Context, tx *sqlx.Tx, sourceLane, before int64) error {
	var creation int64
	if err := tx.GetContext(ctx, &creation, s.db.SQL(`
		SELECT coalesce((SELECT max(c.sequence) FROM {copies} c JOIN {outbox} e ON e.sequence = c.sequence
			JOIN {lanes} l ON l.lane_id = c.target_lane
			WHERE c.target_lane = ? AND c.sequence < ? AND c.state IN ('pending', 'planned') AND NOT l.held
			AND `+outbox.Unfinished+`), 0)`), sourceLane, before); err != nil {
		return err
	}
	if creation != 0 {
		return &outbox.Wait{For: lookAgain, Reason: "the environment that it is made from is about to be created", On: creation}
	}
	return nil
}

// cancelCopy drops a copy that nobody wants any more, with its items, and the
// barrier that its snapshot may be. The caller's transaction holds the target.
func (s *Store) cancelCopy(ctx context.Context, tx *sqlx.Tx, sequence int64) error {
	var unwanted []ending
	if err := tx.SelectContext(ctx, &unwanted, s.db.SQL(`
		SELECT copy_sequence AS waits_for, media_id, false AS failed FROM {copy_items}
		WHERE copy_sequence = ? AND state IN ('owed', 'waiting')`), sequence); err != nil {
		return wrap("cancel a copy", err)
	}
	var begun []item // by attempts whose end isn't known
	if err := tx.SelectContext(ctx, &begun, s.db.SQL(`
		UPDATE {copy_items} SET may_have_written = true WHERE copy_sequence = ? AND state IN ('owed', 'waiting')
		AND (may_have_written OR leased_until IS NOT NULL) RETURNING `+itemColumns), sequence); err != nil {
		return wrap("cancel a copy", err)
	}
	if err := s.noteLeftovers(ctx, tx, begun); err != nil {
		return err
	}
	var snapshots []int64
	if err := tx.SelectContext(ctx, &snapshots, s.db.SQL(`
		SELECT source_lane FROM {copies} WHERE sequence = ? AND state = 'pending'`), sequence); err != nil {
		return wrap("cancel a copy", err)
	}
	if err := s.lockLanes(ctx, tx, snapshots...); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`DELETE FROM {copies} WHERE sequence = ?`), sequence); err != nil {
		return wrap("cancel a copy", err)
	}
	for _, laneID := range snapshots {
		if err := s.openGate(ctx, tx, laneID); err != nil {
			return err
		}
	}
	return s.strike(ctx, tx, unwanted)
}

// RecordDiscarded notes what discarded events may have written, lets items
// join that waited for them, and cancels copies whose event is discarded.
func (s *Store) RecordDiscarded(ctx context.Context, tx *sqlx.Tx, discarded []*outbox.Event, tainted map[int64]bool) error {
	var effects []ledger.Effects
	var ended []ending
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
		ended = append(ended, ending{WaitsFor: e.Sequence, MediaID: e.Media()})
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
	return s.strike(ctx, tx, ended)
}

// possibleWrite is where an event that was attempted may have written.
func (s *Store) possibleWrite(ctx context.Context, tx *sqlx.Tx, e *outbox.Event) ([]ledger.PossibleWrite, error) {
	parsed, err := e.Parse()
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
		return nil, nil //nolint:nilerr // refused before the bucket was touched
	}
	return []ledger.PossibleWrite{{LaneID: e.LaneID, MediaID: e.Media(), Key: key, Version: *e.Version}}, nil
}
