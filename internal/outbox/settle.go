package outbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// How a fence locks: shared keeps others from taking the lanes over, and
// nothing else; exclusive also keeps out whoever parks events or lets go of
// parked ones, and is taken before any event is touched.
const (
	shared    = `{for_key_share}`
	exclusive = `{for_no_key_update}`
)

// lease is what a fence found of a lane.
type lease struct {
	LaneID int64 `db:"lane_id"`
	Token  int64 `db:"lease_token"`
	// Snapshot is the highest one that was taken of the lane.
	Snapshot int64 `db:"snapshot_sequence"`
}

// fence locks lanes, so that nobody takes them over while the caller writes,
// and tells who has them: only who has that very token may go on.
func (s *Store) fence(ctx context.Context, tx *sqlx.Tx, held []Holding, lock string) (map[int64]lease, error) {
	ids, err := rows(heldIDs(held))
	if err != nil {
		return nil, err
	}
	var found []lease
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT lane_id, lease_token, snapshot_sequence FROM {lanes}
		WHERE lane_id {in_ids} AND `+leased+` ORDER BY lane_id `+lock), ids); err != nil {
		return nil, err
	}
	leases := make(map[int64]lease, len(found))
	for _, l := range found {
		leases[l.LaneID] = l
	}
	return leases, nil
}

// stillHeld are the events of those lanes that the caller has not lost.
func stillHeld(events []*Event, held []Holding, leases map[int64]lease) []*Event {
	kept := make(map[int64]bool, len(held))
	for _, h := range held {
		kept[h.LaneID] = h.Token == leases[h.LaneID].Token
	}
	var mine []*Event
	for _, e := range events {
		if kept[e.LaneID] {
			mine = append(mine, e)
		}
	}
	return mine
}

// Releases tells whether what is parked may have waited for the event. A
// deletion also ends what other parked events wait for.
func (s *Settlement) Releases() bool {
	return s.Ends() && (s.Event.Holding || s.Event.Type == events.EnvironmentDeletedType)
}

// Blocks tells whether the attempt showed that the integration is broken.
func (v *Verdict) Blocks() bool {
	return v.Kind == Yield && v.Failure != nil && v.Failure.Class == failure.Integration
}

// waits tells whether the event leaves its lane's reading window until its delay
// has passed. Else it is read again at once.
func (s *Settlement) waits() bool {
	return !s.Ends() && (s.Kind == Retry || s.Delay > 0 && len(s.newlyBehind()) == 0)
}

// newlyBehind are the resources that are to order the event, and don't yet.
func (s *Settlement) newlyBehind() []string {
	return slices.DeleteFunc(slices.Clone(s.Behind), s.Event.Shares)
}

// plain is the usual end: a first attempt that succeeded. Its facts stand in
// the event's own row.
func (s *Settlement) plain() bool {
	return s.Kind == Complete && s.Failure == nil && s.Event.RecordedCount == 0
}

// Settle writes how attempts ended: the events, their attempts, the order of
// what waits for them and, through the Recorder, their effects, all in one
// transaction. An event that doesn't end holds back what comes after it and shares
// a media or a name. Settlements of lanes that the caller has lost change nothing,
// nor do those whose event was settled or ended by somebody since it was read.
// It may be called again with the same settlements when it failed.
func (s *Store) Settle(ctx context.Context, settlements []*Settlement) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		held := make([]Holding, len(settlements))
		lock := shared
		for i, st := range settlements {
			held[i] = Holding{LaneID: st.Event.LaneID, Token: st.Token}
			if !st.Ends() || st.Releases() {
				lock = exclusive
			}
		}
		leases, err := s.fence(ctx, tx, held, lock)
		if err != nil {
			return err
		}
		var plain, others []*Settlement
		snapshots := make(map[int64]int64)
		for _, st := range inSequence(settlements) {
			l := leases[st.Event.LaneID]
			if l.Token != st.Token {
				continue
			}
			snapshots[l.LaneID] = l.Snapshot
			if st.plain() {
				plain = append(plain, st)
			} else {
				others = append(others, st)
			}
		}
		written := make(map[int64]bool)
		if err := s.complete(ctx, tx, plain, written); err != nil {
			return fmt.Errorf("complete: %w", err)
		}
		if err := s.update(ctx, tx, others, written); err != nil {
			return err
		}
		return s.followUp(ctx, tx, append(plain, others...), written, snapshots)
	})
	if err != nil {
		return fmt.Errorf("settle events: %w", err)
	}
	return nil
}

// inSequence sorts settlements as all do who write several events.
func inSequence(settlements []*Settlement) []*Settlement {
	return slices.SortedFunc(slices.Values(settlements), func(a, b *Settlement) int {
		return cmp.Compare(a.Event.Sequence, b.Event.Sequence)
	})
}

// followUp does what follows from the settlements that were written.
func (s *Store) followUp(ctx context.Context, tx *sqlx.Tx, settled []*Settlement, written map[int64]bool, snapshots map[int64]int64) error {
	settled = slices.DeleteFunc(inSequence(settled), func(st *Settlement) bool { return !written[st.Event.Sequence] })
	if len(settled) == 0 {
		return nil
	}
	if err := s.recorder.Record(ctx, tx, settled, snapshots); err != nil {
		return err
	}
	var ended []*Event
	for _, st := range settled {
		if st.Releases() {
			ended = append(ended, st.Event)
		}
	}
	if len(ended) == 0 {
		return nil
	}
	if err := s.release(ctx, tx, ended); err != nil {
		return fmt.Errorf("release what waited: %w", err)
	}
	return nil
}

// complete ends events by the one statement that writes most of them, and notes
// which it wrote.
func (s *Store) complete(ctx context.Context, tx *sqlx.Tx, plain []*Settlement, written map[int64]bool) error {
	if len(plain) == 0 {
		return nil
	}
	type completed struct {
		Sequence int64   `json:"sequence"`
		Outcome  string  `json:"outcome"`
		Started  int64   `json:"started_at"`
		Duration int64   `json:"duration_us"`
		Worker   string  `json:"worker"`
		LaneID   int64   `json:"lane_id"`
		MediaID  *string `json:"media_id"`
		Version  *int64  `json:"version"`
		Recorded int     `json:"recorded_count"`
		Waited   int     `json:"wait_count"`
	}
	list := make([]completed, len(plain))
	for i, st := range plain {
		list[i] = completed{
			st.Event.Sequence, st.Outcome, st.Started.UnixMicro(), st.Duration.Microseconds(), st.Worker,
			st.Event.LaneID, st.Event.MediaID, st.Event.Version, st.Event.RecordedCount, st.Event.WaitCount,
		}
	}
	return s.settled(ctx, tx, `
		UPDATE {outbox} AS e SET state = 'completed', outcome = v.outcome, attempt_count = e.attempt_count + 1,
			started_at = v.started_at, duration_us = v.duration_us, worker = v.worker,
			finished_at = {now}, requeued = false, holding = false,
			lane_id = v.lane_id, media_id = v.media_id, version = v.version
		FROM {rows v(sequence bigint, outcome text, started_at bigint, duration_us bigint, worker text,
			lane_id bigint, media_id text, version bigint, recorded_count integer, wait_count integer)}
		WHERE e.sequence = v.sequence AND e.finished_at IS NULL AND `+asRead+`
		RETURNING {returned_e}sequence`, list, written)
}

// settled runs a statement that writes settlements, and notes which it wrote.
func (s *Store) settled(ctx context.Context, tx *sqlx.Tx, query string, list any, written map[int64]bool) error {
	encoded, err := rows(list)
	if err != nil {
		return err
	}
	var sequences []int64
	if err := tx.SelectContext(ctx, &sequences, s.db.SQL(query), encoded); err != nil {
		return err
	}
	for _, sequence := range sequences {
		written[sequence] = true
	}
	return nil
}

type update struct {
	described
	State      string  `json:"state"`
	Outcome    *string `json:"outcome"`
	Attempts   int     `json:"attempt_count"`
	RecordedTo int     `json:"recorded_to"`
	Failures   int     `json:"failure_count"`
	Delay      *int64  `json:"delay"`
	Parked     bool    `json:"parked"`
	Requeued   bool    `json:"requeued"`
	Holding    bool    `json:"holding"`
	Finished   bool    `json:"finished"`
	Denied     bool    `json:"denied"`
	Alone      bool    `json:"alone"`
	Denials    int     `json:"denied_count"`
	Lapses     int     `json:"lapse_count"`
	Waits      int     `json:"waits"`
	WaitsFor   *int64  `json:"waits_for"`
	ForCopy    *int64  `json:"waits_for_copy"`
	Number     int     `json:"number"`
	Started    int64   `json:"started_at"`
	Duration   int64   `json:"duration_us"`
	Worker     string  `json:"worker"`
	ErrorClass *string `json:"error_class"`
	ErrorCode  *string `json:"error_code"`
	Error      *string `json:"error"`
	RequestID  *string `json:"aws_request_id"`
}

// update writes every other way in which an attempt can end, and the attempt
// as a row of its own. Deferring is no attempt and leaves none.
func (s *Store) update(ctx context.Context, tx *sqlx.Tx, others []*Settlement, written map[int64]bool) error {
	if len(others) == 0 {
		return nil
	}
	var updates, attempts []update
	var holds []hold
	for _, st := range others {
		u := newUpdate(st)
		updates = append(updates, u)
		if st.Kind != Defer && !st.Refused {
			attempts = append(attempts, u)
		}
		if !st.Ends() {
			e := *st.Event
			e.Resources = u.Resources
			holds = append(holds, holdsOf(&e)...)
		}
	}
	if err := s.settled(ctx, tx, `
		UPDATE {outbox} AS e SET state = v.state, outcome = v.outcome, attempt_count = v.attempt_count,
			recorded_count = v.recorded_to, failure_count = v.failure_count,
			next_attempt_at = {now} + v.delay, parked = v.parked, requeued = v.requeued, holding = v.holding,
			finished_at = CASE WHEN v.finished THEN {now} END,
			denied_at = CASE WHEN v.denied THEN {now} WHEN v.alone THEN e.denied_at END, denied_count = v.denied_count,
			lapse_count = v.lapse_count, wait_count = v.waits, waits_for = v.waits_for,
			waits_for_copy = v.waits_for_copy,
			lane_id = v.lane_id, media_id = v.media_id, version = v.version, resources = v.resources,
			error_class = v.error_class, error_code = v.error_code, error = v.error
		FROM {rows v(`+describedColumns+`, state text, outcome text, attempt_count integer, recorded_to integer,
			failure_count integer, delay bigint, parked boolean, requeued boolean, holding boolean,
			finished boolean, denied boolean, alone boolean, denied_count integer, lapse_count integer,
			waits integer, waits_for bigint, waits_for_copy bigint,
			error_class text, error_code text, error text)}
		WHERE e.sequence = v.sequence AND e.finished_at IS NULL AND `+asRead+`
		RETURNING {returned_e}sequence`, updates, written); err != nil {
		return fmt.Errorf("update events: %w", err)
	}
	attempts = slices.DeleteFunc(attempts, func(u update) bool { return !written[u.Sequence] })
	if len(attempts) > 0 {
		if err := s.exec(ctx, tx, `
			INSERT INTO {attempts} (sequence, number, started_at, duration_us, worker, error_class, error_code,
				error, aws_request_id)
			SELECT sequence, number, started_at, duration_us, worker, error_class, error_code, error, aws_request_id
			FROM {rows v(sequence bigint, number integer, started_at bigint, duration_us bigint, worker text,
				error_class text, error_code text, error text, aws_request_id text)} WHERE true`, attempts); err != nil {
			return fmt.Errorf("record attempts: %w", err)
		}
	}
	return s.insertHolds(ctx, tx, holds)
}

func newUpdate(st *Settlement) update {
	e := st.Event
	u := update{
		described:  describedRows([]*Event{e})[0],
		State:      Available,
		Attempts:   e.AttemptCount,
		RecordedTo: e.RecordedCount + 1,
		Failures:   e.FailureCount,
		// What is tried again alone needs no further probe. Any other end parts
		// the next denial from the probe that passed before.
		Denied:   st.Denied && st.Kind == Yield,
		Alone:    st.Denied && st.Kind != Yield,
		Denials:  e.DeniedCount,
		Number:   e.RecordedCount + 1,
		Started:  st.Started.UnixMicro(),
		Duration: st.Duration.Microseconds(),
		Worker:   st.Worker,
	}
	if behind := st.newlyBehind(); len(behind) > 0 {
		u.Resources = mustJSON(append(e.OrderedBy(), behind...))
	}
	if st.Failure != nil {
		class, code, words := string(st.Failure.Class), st.Failure.Code, text(st.Failure.Error())
		u.ErrorClass, u.ErrorCode, u.Error = &class, &code, &words
		if st.Failure.RequestID != "" {
			u.RequestID = &st.Failure.RequestID
		}
	}
	if st.Failure != nil && st.Failure.Code == failure.Lapsed {
		u.Lapses = AloneAfter // it goes on running alone
	}
	if u.Alone {
		u.Denials++
	}
	attempted := 1
	if st.Refused {
		attempted, u.RecordedTo, u.Waits = 0, e.RecordedCount, e.WaitCount+1
	}
	switch st.Kind {
	case Complete:
		u.State, u.Outcome, u.Attempts, u.Finished = Completed, &st.Outcome, e.AttemptCount+1, true
	case Die:
		u.State, u.Attempts, u.Failures, u.Finished = Dead, e.AttemptCount+attempted, e.FailureCount+attempted, true
	case Retry:
		u.State, u.Attempts, u.Failures = Retryable, e.AttemptCount+attempted, e.FailureCount+attempted
	case Defer:
		u.RecordedTo, u.Waits = e.RecordedCount, e.WaitCount+1
		if st.WaitsFor != 0 {
			u.WaitsFor = &st.WaitsFor
		}
		if st.WaitsForCopy != 0 {
			u.ForCopy = &st.WaitsForCopy
		}
	case Yield:
	}
	u.Holding, u.Requeued = !u.Finished, !u.Finished
	if st.waits() {
		delay := st.Delay.Microseconds()
		if st.Kind == Defer {
			delay = waitFor(st.Delay, e.WaitCount).Microseconds()
		}
		u.Delay, u.Parked, u.Requeued = &delay, true, false
	}
	return u
}

// longestWait bounds how long an event that was put off is left alone.
const longestWait = 5 * time.Second

// waitFor is the delay of an event that was put off so many times before. It grows
// by a quarter each time: an event that waits for long costs little, and starts at
// most a quarter later than it could.
func waitFor(delay time.Duration, before int) time.Duration {
	for range before {
		if delay >= longestWait {
			break
		}
		delay = min(delay+delay/4, longestWait)
	}
	return delay
}
