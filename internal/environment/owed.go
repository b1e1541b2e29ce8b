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
	// lookAgain is when an event that waits for another worker's copy is
	// started again; lookLater where an event of the source must end first.
	lookAgain = 100 * time.Millisecond
	lookLater = time.Second
)

// owing is an item that an event may have to wait for.
type owing struct {
	item
	CopyState  string `db:"copy_state"`
	TargetHeld bool   `db:"target_held"`
	// CreationDue tells that the copy's EnvironmentCreated will run by itself.
	CreationDue bool `db:"creation_due"`
	// Overtaken tells that an unfinished event of the target went past it.
	Overtaken bool `db:"overtaken"`
	// Leased tells that somebody is copying it, Begun that somebody was whose end
	// isn't known.
	Leased bool  `db:"leased"`
	Begun  bool  `db:"begun"`
	Now    int64 `db:"now_us"`
}

const owingColumns = itemColumns + `,
	(SELECT c.state FROM {copies} c WHERE c.sequence = copy_sequence) AS copy_state,
	(SELECT l.held FROM {lanes} l WHERE l.lane_id = target_lane) AS target_held,
	EXISTS (SELECT 1 FROM {outbox} e WHERE e.sequence = copy_sequence
		AND e.state IN ('available', 'running', 'retryable')) AS creation_due,
	` + overtaken + ` AS overtaken, coalesce(leased_until >= {now}, false) AS leased,
	(may_have_written OR leased_until IS NOT NULL) AS begun, {now} AS now_us`

// CopyFirst makes the copies that are owed of the event's media and file
// names, from its environment or into it. A copy that another worker is making
// is waited for. It looks again after each: a copy into the environment may be
// what copies from it have waited for.
func (s *Store) CopyFirst(ctx context.Context, d *outbox.Delivery, names []string) error {
	encoded, err := nameRows(names)
	if err != nil {
		return err
	}
	if err := s.awaitDeletion(ctx, d.Event, encoded); err != nil {
		return err
	}
	for again := true; again; {
		again = false
		items, err := s.owing(ctx, d.Event, encoded)
		if err != nil {
			return err
		}
		for i := range items {
			o := &items[i]
			switch {
			case o.SourceLane == d.Event.LaneID:
				again, err = true, s.copyFromHere(ctx, o)
			case o.CopyState != active && !o.CreationDue: // copied only if its creation is replayed
			case o.State == waiting:
				err = s.passWaiting(ctx, d.Event, o)
			case o.Overtaken && o.Leased: // the event was dead when that copy began
				err = &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first"}
			case o.Overtaken && o.Begun:
				err = s.noteBegun(ctx, o)
			case !o.Overtaken: // else it will find that it is late
				again, err = true, s.copyToHere(ctx, o)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
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

// awaitDeletion makes an event wait that needs an object which a later deletion
// of its environment has kept from being copied: that will supersede it.
func (s *Store) awaitDeletion(ctx context.Context, e *outbox.Event, names string) error {
	var lacks bool
	if err := s.db.GetContext(ctx, &lacks, s.db.SQL(`
		SELECT CASE WHEN `+outbox.DeletionComes+`
		THEN EXISTS (SELECT 1 FROM {copies} c JOIN {copy_items} i ON i.copy_sequence = c.sequence
			WHERE c.target_lane = ? AND c.sequence < ? AND i.state = 'cancelled'
			AND (i.media_id = ? OR i.file_name IN (SELECT name FROM {rows v(name text)})))
		ELSE false END`), e.LaneID, e.Sequence, e.LaneID, e.Sequence, e.Media(), names); err != nil {
		return wrap("look for a deletion that has begun", err)
	}
	if lacks {
		return &outbox.Wait{For: lookLater, Reason: "the environment is about to be deleted"}
	}
	return nil
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
			from+`state = 'owed' AND target_lane = ?`+byName+earlier+`) ORDER BY copy_sequence, media_id`),
		e.LaneID, e.Media(), e.LaneID, e.Media(), e.Sequence, e.LaneID, e.Media(), e.Sequence,
		e.LaneID, names, e.Sequence, e.LaneID, names, e.Sequence)
	return items, wrap("look for copies that come first", err)
}

// passWaiting lets an event go past an item of its media that is yet to join.
// An upload or a deletion needs no earlier object: the item then joins after
// it, and finds that it is late. A rename would find nothing to rename, and
// where a copy from here needs the item, it would get the event's object.
func (s *Store) passWaiting(ctx context.Context, e *outbox.Event, o *owing) error {
	var needed bool
	if err := s.db.GetContext(ctx, &needed, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {copy_items} WHERE state = 'waiting' AND source_lane = ? AND media_id = ?
			AND copy_sequence > ? AND copy_sequence < ?)`), e.LaneID, o.MediaID, o.CopySequence, e.Sequence); err != nil {
		return wrap("look whether a copy from here waits", err)
	}
	if needed || e.Type == events.MediaRenamedType {
		return &outbox.Wait{For: lookLater, Reason: "the media is yet to be copied to this environment"}
	}
	result, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET overtaken_by = ? WHERE copy_sequence = ? AND media_id = ? AND state = 'waiting'`),
		e.Sequence, o.CopySequence, o.MediaID)
	if err != nil {
		return wrap("go past an item that waits", err)
	}
	if n, err := result.RowsAffected(); err != nil || n > 0 {
		return err
	}
	return &outbox.Wait{For: lookAgain, Reason: "the media has just joined the copy to this environment"}
}

// copyFromHere makes a copy whose source the event will change. The source
// never waits for long for another environment's troubles.
func (s *Store) copyFromHere(ctx context.Context, o *owing) error {
	what := scope{copySequence: o.CopySequence, targetLane: o.TargetLane, mediaID: o.MediaID}
	switch {
	case o.TargetHeld, o.CopyState != active && !o.CreationDue:
		return s.giveUpOne(ctx, what, "the environment that it is copied to can't take it now")
	case (o.CopyState != active || o.Overtaken) && o.tired():
		return s.giveUpOne(ctx, what, "the environment that it is copied to was not ready in time")
	case o.CopyState != active || o.Overtaken:
		if err := s.startWaiting(ctx, what); err != nil {
			return err
		}
		return &outbox.Wait{For: lookAgain, Reason: "a copy from here is about to begin"}
	}
	mine, err := s.lease(ctx, &o.item)
	if err != nil {
		return err
	}
	if !mine {
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first"}
	}
	if err = s.copyItem(ctx, &o.item, true); err == nil {
		return nil
	}
	switch f := failure.Of(err); {
	case f.Class == failure.Permanent:
		return nil // the item has failed, which is none of the event's business
	case f.Class == failure.Interrupted:
		return err
	case f.Class == failure.Integration || o.tired():
		return s.giveUpOne(ctx, what, f.Error())
	}
	delay := min(s.options.Backoff(o.FailureCount+1), copyFirstFor/6)
	return &outbox.Wait{For: max(delay, lookAgain), Reason: "a copy that comes first failed for now"}
}

// copyToHere makes a copy that stands before the event in its own environment.
func (s *Store) copyToHere(ctx context.Context, o *owing) error {
	if o.CopyState != active || o.TargetHeld {
		return &outbox.Wait{For: lookAgain, Reason: "the environment's copy is about to begin"}
	}
	mine, err := s.lease(ctx, &o.item)
	if err != nil {
		return err
	}
	if !mine {
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first"}
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
		return &outbox.Wait{For: lookAgain, Reason: "a copy that comes first waits for its source"}
	case failure.Transient, failure.Integration:
	}
	return &outbox.Wait{For: max(s.options.Backoff(o.FailureCount+1), lookAgain), Reason: "a copy that comes first failed for now"}
}

// tired tells whether an item has failed, or was waited for, for as long as
// the source waits.
func (o *owing) tired() bool {
	return o.FirstFailedAt != nil && o.Now-*o.FirstFailedAt >= copyFirstFor.Microseconds()
}

// scope is which items of a copy are meant: one media's, or all where that is
// empty, or those only that have been waited for too long, or that events of
// the target went past.
type scope struct {
	copySequence, targetLane int64
	mediaID                  string
	tired, overtaken         bool
}

const inScope = `copy_sequence = ? AND (CAST(? AS text) = '' OR media_id = ?) AND state = 'owed'`

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
		return &outbox.Wait{For: lookAgain, Reason: "another worker makes a copy that comes first"}
	}
	return err
}

// giveUp fails items that nobody copies right now. It tells whether any are
// left.
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
			AND (CAST(? AS integer) = 0 OR first_failed_at < {now} - ?) RETURNING `+itemColumns),
			failure.SourceChanged, reasonWords, what.copySequence, what.mediaID, what.mediaID,
			number(what.tired), copyFirstFor.Microseconds()); err != nil {
			return err
		}
		if err := s.closeCopy(ctx, tx, what.copySequence); err != nil {
			return err
		}
		if err := s.letGo(ctx, tx, given, true); err != nil {
			return err
		}
		return tx.GetContext(ctx, &left, s.db.SQL(`SELECT EXISTS (SELECT 1 FROM {copy_items} WHERE `+inScope+`)`),
			what.copySequence, what.mediaID, what.mediaID)
	})
	return left, wrap("give up items of a copy", err)
}

// letGo ends the waiting for items that won't bring their media, and records what
// they may have left. failed: a deletion is not why.
func (s *Store) letGo(ctx context.Context, tx *sqlx.Tx, items []item, failed bool) error {
	if err := s.noteLeftovers(ctx, tx, items); err != nil {
		return err
	}
	endings := make([]ending, len(items))
	for i, it := range items {
		endings[i] = ending{LaneID: it.TargetLane, MediaID: it.MediaID, Failed: failed}
	}
	return s.join(ctx, tx, endings)
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

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
