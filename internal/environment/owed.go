package environment

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

const (
	// copyFirstFor is how long the source waits at most for a copy that fails,
	// or can't begin, for a while.
	copyFirstFor = time.Minute
	// runningFor is how long an event waits at most for an event that runs, and for a
	// copy that begins in its turn. One that has only not started yet is waited for
	// without a limit.
	runningFor = 10 * time.Minute
	// lookAgain is when an event that waits for another worker's copy is
	// started again.
	lookAgain = 100 * time.Millisecond
)

// owing is an item that an event may have to wait for.
type owing struct {
	item
	CopyState  string `db:"copy_state"`
	TargetHeld bool   `db:"target_held"`
	// CreationDue tells that the copy's EnvironmentCreated will run by itself.
	CreationDue bool `db:"creation_due"`
	// Overtaken tells that an unfinished event of the target went past it.
	Overtaken   bool   `db:"overtaken"`
	OvertakenBy *int64 `db:"overtaken_by"`
	// Needed tells that a copy from the target waits for it, and not for the event.
	Needed bool `db:"needed"`
	// Leased tells that somebody is copying it, Begun that somebody was whose end
	// isn't known.
	Leased bool  `db:"leased"`
	Begun  bool  `db:"begun"`
	InTurn bool  `db:"in_turn"`
	Now    int64 `db:"now_us"`
}

const owingColumns = itemColumns + `, overtaken_by,
	(SELECT c.state FROM {copies} c WHERE c.sequence = copy_sequence) AS copy_state,
	(SELECT l.held FROM {lanes} l WHERE l.lane_id = target_lane) AS target_held,
	EXISTS (SELECT 1 FROM {outbox} e WHERE e.sequence = copy_sequence AND ` + outbox.Unfinished + `) AS creation_due,
	` + needed + ` AS needed,
	` + overtaken + ` AS overtaken, ` + inTurn + ` AS in_turn, coalesce(leased_until >= {now}, false) AS leased,
	(may_have_written OR leased_until IS NOT NULL) AS begun, {now} AS now_us`

// inTurn tells of an item that its copy's event, or the event that went past it, is
// about to run, or runs.
const inTurn = `EXISTS (SELECT 1 FROM {outbox} p WHERE p.sequence IN (copy_sequence, overtaken_by)
	AND p.state IN ('available', 'running'))`

// needed tells of an item that one of a copy from its target waits for, and not for
// the event with that sequence: the event comes later than that copy, or is replayed
// and did not count for it.
const needed = `EXISTS (SELECT 1 FROM {copy_waits} w WHERE w.waits_for = {copy_items}.copy_sequence
		AND w.media_id = {copy_items}.media_id AND NOT EXISTS (SELECT 1 FROM {copy_waits} x
			WHERE x.waits_for = ? AND x.media_id = w.media_id AND x.copy_sequence = w.copy_sequence))`

// CopyFirst makes the copies that are owed of the event's media and file
// names, from its environment or into it. A copy that another worker is making
// is waited for. It looks again after each: a copy into the environment may be
// what copies from it have waited for.
func (s *Store) CopyFirst(ctx context.Context, d *outbox.Delivery, names []string) error {
	encoded, err := nameRows(names)
	if err != nil {
		return err
	}
	var unneeded []*owing
	for again := true; again; {
		again, unneeded = false, nil
		items, err := s.owing(ctx, d.Event, encoded)
		if err != nil {
			return err
		}
		for i := range items {
			if o := &items[i]; o.SourceLane != d.Event.LaneID && o.begins() && replaces(d.Event, o) {
				unneeded = append(unneeded, o)
				continue
			}
			more, err := s.first(ctx, d.Event, &items[i])
			if err != nil {
				return err
			}
			again = again || more
		}
	}
	// An event that still waited would keep these from being copied meanwhile.
	for _, o := range unneeded {
		if err := s.overtake(ctx, d.Event, o); err != nil {
			return err
		}
	}
	return nil
}

// begins tells whether the item's copy has begun, or will by itself.
func (o *owing) begins() bool { return o.CopyState == active || o.CreationDue }

// first does what an item asks for that comes before an event. It tells whether
// that may have changed what else comes first.
func (s *Store) first(ctx context.Context, e *outbox.Event, o *owing) (again bool, err error) {
	switch {
	case o.SourceLane == e.LaneID:
		if o.State == waiting {
			return false, nil // it waits for events that come before this one
		}
		return true, s.copyFromHere(ctx, o)
	case !o.begins():
		return false, nil // it is copied only if its creation is replayed
	case o.Overtaken:
		if behind, err := s.fallBehind(ctx, e, o); err != nil || behind {
			return behind, err
		}
		return false, s.awaitItem(ctx, o, &outbox.Wait{On: *o.OvertakenBy})
	case o.State == waiting:
		return false, s.awaitItem(ctx, o, &outbox.Wait{OnCopy: o.CopySequence})
	}
	return true, s.copyToHere(ctx, o)
}

// replaces tells whether an event makes an item of its media unneeded: an upload or
// a deletion needs no earlier object, unless a copy from here does.
func replaces(e *outbox.Event, o *owing) bool {
	return o.MediaID == e.Media() && !o.Needed && (e.Type == events.MediaUploadedType || e.Type == events.MediaDeletedType)
}

// noteBegun records what attempts of an item may have written while the event
// that has gone past it was dead: the event settles that.
func (s *Store) noteBegun(ctx context.Context, o *owing) error {
	o.MayHaveWritten = true
	return wrap("note what a copy may have written", s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockLanes(ctx, tx, o.TargetLane); err != nil {
			return err
		}
		return s.noteLeftovers(ctx, tx, []item{o.item})
	}))
}

// nameRows are file names for use in a query.
func nameRows(names []string) (string, error) {
	list := make([]map[string]string, len(names))
	for i, name := range names {
		list[i] = map[string]string{"name": name}
	}
	return rows(list)
}

// owing looks up what comes before the event. Of its own media, that is all
// that is owed from here, also where the event was published earlier but came
// too late for the snapshot: the object would be gone.
func (s *Store) owing(ctx context.Context, e *outbox.Event, names string) ([]owing, error) {
	const from = `SELECT copy_sequence, media_id FROM {copy_items} WHERE `
	const earlier = ` AND copy_sequence < ?`
	const byName = ` AND file_name IN (SELECT name FROM {rows v(name text)})`
	var items []owing
	err := s.db.SelectContext(ctx, &items, s.db.SQL(
		`SELECT `+owingColumns+` FROM {copy_items} WHERE (copy_sequence, media_id) IN (`+
			from+`state = 'owed' AND source_lane = ? AND media_id = ? UNION `+
			from+`state = 'owed' AND target_lane = ? AND media_id = ?`+earlier+` UNION `+
			from+`state = 'waiting' AND target_lane = ? AND media_id = ?`+earlier+` UNION `+
			from+`state = 'owed' AND source_lane = ?`+byName+earlier+` UNION `+
			from+`state = 'owed' AND target_lane = ?`+byName+earlier+` UNION
			SELECT copy_sequence, media_id FROM {copy_names} WHERE target_lane = ?`+byName+earlier+`) ORDER BY copy_sequence, media_id`),
		e.Sequence, e.LaneID, e.Media(), e.LaneID, e.Media(), e.Sequence, e.LaneID, e.Media(), e.Sequence,
		e.LaneID, names, e.Sequence, e.LaneID, names, e.Sequence, e.LaneID, names, e.Sequence)
	return items, wrap("look for copies that come first", err)
}

// overtake lets an event go past an item that it makes unneeded. Until the event has
// ended nothing is copied; then the item finds that it is late, or is copied after
// all, where the event has died. What attempts of the item may have written, the
// event settles.
func (s *Store) overtake(ctx context.Context, e *outbox.Event, o *owing) error {
	result, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET overtaken_by = ? WHERE copy_sequence = ? AND media_id = ? AND state = ?
		AND (leased_until IS NULL OR leased_until < {now})
		AND NOT `+needed),
		e.Sequence, o.CopySequence, o.MediaID, o.State, e.Sequence)
	if err != nil {
		return wrap("go past an item", err)
	}
	n, err := result.RowsAffected()
	switch {
	case err != nil:
		return err
	case n == 0:
		return &outbox.Wait{For: lookAgain, Reason: "the media is just being copied to this environment", OnCopy: o.CopySequence}
	case o.Begun:
		return s.noteBegun(ctx, o)
	}
	return nil
}

// fallBehind lets an item be copied again before the event that had gone past it, and
// tells whether it does: where that is the very event, which died, was replayed and
// needs the item by now, and where it is a later one that is parked. Such a one may
// wait behind this event.
func (s *Store) fallBehind(ctx context.Context, e *outbox.Event, o *owing) (bool, error) {
	if *o.OvertakenBy < e.Sequence {
		return false, nil
	}
	result, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET overtaken_by = NULL WHERE copy_sequence = ? AND media_id = ? AND overtaken_by = ?
		AND (overtaken_by = ? OR EXISTS (SELECT 1 FROM {outbox} p WHERE p.sequence = overtaken_by AND p.parked))`),
		o.CopySequence, o.MediaID, o.OvertakenBy, e.Sequence)
	if err != nil {
		return false, wrap("fall behind an item", err)
	}
	n, err := result.RowsAffected()
	return n > 0 || *o.OvertakenBy == e.Sequence, wrap("fall behind an item", err)
}

// awaitItem waits for an item that can't be copied yet, for as long as what it waits
// for goes on, and else for a minute.
func (s *Store) awaitItem(ctx context.Context, o *owing, wait *outbox.Wait) error {
	wait.For, wait.Reason = 2*lookAgain, "a media is yet to be copied to this environment"
	what := scope{copySequence: o.CopySequence, targetLane: o.TargetLane, mediaID: o.MediaID}
	if !o.tired() {
		if err := s.startWaiting(ctx, what); err != nil {
			return err
		}
		return wait
	}
	goesOn, err := s.goesOn(ctx, o)
	if err != nil {
		return err
	}
	if goesOn {
		return wait
	}
	// What it waited for may have ended since it was looked up, so that it is ready.
	what.since = o.FirstFailedAt
	return s.giveUpOne(ctx, what, "an event of the environment that it is copied to has waited for it for too long")
}

// goesOn tells whether what an item waits for is in its turn: an event that has only
// not started yet, a retry that is due, one that has not run or failed for too long,
// likewise a copy to the source, or the event that went past the item.
func (s *Store) goesOn(ctx context.Context, o *owing) (bool, error) {
	var found bool
	err := s.db.GetContext(ctx, &found, s.db.SQL(`
		WITH RECURSIVE w AS (
			SELECT waits_for, media_id FROM {copy_waits} WHERE copy_sequence = ? AND media_id = ?
			UNION SELECT x.waits_for, x.media_id FROM {copy_waits} x
				JOIN w ON x.copy_sequence = w.waits_for AND x.media_id = w.media_id)
		SELECT EXISTS (SELECT 1 FROM {outbox} e
				JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id
				WHERE e.sequence IN (SELECT waits_for FROM w UNION ALL SELECT CAST(? AS bigint)) AND NOT l.held
				AND (e.state = 'available' OR e.state = 'running' AND (CAST(? AS integer) = 1 OR e.sequence = ?)
					OR e.state = 'retryable' AND (e.next_attempt_at <= {now} OR NOT EXISTS (SELECT 1 FROM {attempts} a
						WHERE a.sequence = e.sequence AND a.error_class = 'transient' AND a.started_at + a.duration_us < {now} - ?))))
			OR EXISTS (SELECT 1 FROM w JOIN {copy_items} i ON i.copy_sequence = w.waits_for AND i.media_id = w.media_id
				JOIN {lanes} l ON l.lane_id = i.target_lane WHERE i.state = 'owed' AND NOT l.held
					AND (i.failure_count = 0 OR i.next_attempt_at <= {now} OR i.first_failed_at >= {now} - ?))`),
		o.CopySequence, o.MediaID, o.OvertakenBy, number(o.waitedFor() < runningFor), o.OvertakenBy,
		copyFirstFor.Microseconds(), copyFirstFor.Microseconds())
	return found, wrap("look what a copy waits for", err)
}

// copyFromHere makes a copy whose source the event will change. The source
// never waits for long for another environment's troubles.
func (s *Store) copyFromHere(ctx context.Context, o *owing) error {
	what := scope{copySequence: o.CopySequence, targetLane: o.TargetLane, mediaID: o.MediaID}
	switch {
	case o.TargetHeld, !o.begins():
		return s.giveUpOne(ctx, what, "the environment that it is copied to can't take it now")
	case (o.CopyState != active || o.Overtaken) && o.tired():
		return s.giveUpOne(ctx, what, "the environment that it is copied to was not ready in time")
	case o.CopyState != active || o.Overtaken:
		if err := s.startWaiting(ctx, what); err != nil {
			return err
		}
		return &outbox.Wait{For: lookAgain, Reason: "a copy from here is about to begin", OnCopy: o.CopySequence}
	}
	mine, err := s.lease(ctx, &o.item)
	if err != nil {
		return err
	}
	if !mine {
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first", OnCopy: o.CopySequence}
	}
	if err = s.copyItem(ctx, &o.item, true); err == nil {
		return nil
	}
	switch f := failure.Of(err); {
	case f.Class == failure.Permanent:
		return nil // the item has failed, which is none of the event's business
	case f.Class == failure.Interrupted:
		return err
	case f.Class == failure.Integration || o.FailureCount > 0 && o.tired():
		return s.giveUpOne(ctx, what, f.Error())
	}
	delay := min(s.options.Backoff(o.FailureCount+1), copyFirstFor/6)
	return &outbox.Wait{For: max(delay, lookAgain), Reason: "a copy that comes first failed for now", OnCopy: o.CopySequence}
}

// copyToHere makes a copy that stands before the event in its own environment.
func (s *Store) copyToHere(ctx context.Context, o *owing) error {
	if o.CopyState != active || o.TargetHeld {
		return &outbox.Wait{For: lookAgain, Reason: "the environment's copy is about to begin", OnCopy: o.CopySequence}
	}
	mine, err := s.lease(ctx, &o.item)
	if err != nil {
		return err
	}
	if !mine {
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first", OnCopy: o.CopySequence}
	}
	if err = s.copyItem(ctx, &o.item, false); err == nil {
		return nil
	}
	switch f := failure.Of(err); f.Class {
	case failure.Interrupted:
		return err
	case failure.Permanent:
		if f.Code != failure.SourceChanged {
			return nil
		}
		// It may be looked at again, after an event of the source.
		return &outbox.Wait{For: lookAgain, Reason: "a copy that comes first waits for its source", OnCopy: o.CopySequence}
	case failure.Transient, failure.Integration:
	}
	return &outbox.Wait{
		For: max(s.options.Backoff(o.FailureCount+1), lookAgain), Reason: "a copy that comes first failed for now", OnCopy: o.CopySequence,
	}
}

// tired tells whether an item has failed, or was waited for, for as long as
// anybody waits.
func (o *owing) tired() bool {
	if o.InTurn {
		return o.waitedFor() >= runningFor
	}
	return o.waitedFor() >= copyFirstFor
}

// waitedFor is how long ago an item first failed or, before that, was first waited
// for.
func (o *owing) waitedFor() time.Duration {
	if o.FirstFailedAt == nil {
		return 0
	}
	return time.Duration(o.Now-*o.FirstFailedAt) * time.Microsecond
}

// noteLeftovers records what earlier attempts of items may have written.
func (s *Store) noteLeftovers(ctx context.Context, tx *sqlx.Tx, items []item) error {
	byTarget := make(map[int64][]*item)
	for i := range items {
		if it := &items[i]; it.MayHaveWritten {
			byTarget[it.TargetLane] = append(byTarget[it.TargetLane], it)
		}
	}
	var possible []ledger.PossibleWrite
	for laneID, written := range byTarget {
		target, exists, err := s.settings.ByLane(ctx, tx, laneID)
		if err != nil {
			return err
		}
		if !exists {
			continue
		}
		for _, it := range written {
			if it.key, err = bucket.Key(target.Prefix, target.Directory, it.FileName); err != nil {
				return fmt.Errorf("name what an item may have written: %w", err)
			}
			possible = append(possible, it.possibleWrite())
		}
	}
	return s.ledger.Apply(ctx, tx, []ledger.Effects{{Possible: possible}})
}
