package subscriber

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// settleLoop writes results in batches: while one transaction runs, the next
// batch gathers. Where many events end, it waits for a few more, and where more
// end than one transaction takes, two of them run at a time.
func (s *Subscriber) settleLoop(ctx context.Context) {
	const (
		most   = 512
		gather = 8 * time.Millisecond
		many   = 8 // in that time
		atOnce = 2
	)
	var settling sync.WaitGroup
	defer settling.Wait()
	full := make(chan struct{}, atOnce)
	for first := range s.results {
		batch := []*result{first}
		if len(s.results) < many && s.recently() > many*int(flowWindow/gather) {
			wait(ctx, gather)
		}
	gather:
		for len(batch) < most {
			select {
			case r, ok := <-s.results:
				if !ok {
					break gather
				}
				batch = append(batch, r)
			default:
				break gather
			}
		}
		if len(batch) < most {
			s.settleBatch(ctx, batch)
			continue
		}
		full <- struct{}{}
		settling.Go(func() {
			s.settleBatch(ctx, batch)
			<-full
		})
	}
}

func (s *Subscriber) settleBatch(ctx context.Context, batch []*result) {
	unsettled := s.settleSafely(ctx, batch)

	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range unsettled {
		r.lane.lost = true
		r.lane.cancel(outbox.ErrLeaseLost)
	}
	for _, r := range batch {
		s.finished(r)
	}
	s.dispatch()
	if s.wantsFetch(batch) {
		s.fetchSoon()
	}
}

// wantsFetch tells whether the fetch loop has something to do at once: to claim
// lanes, or to read on in those of settled events or give them back. The mutex is
// held.
func (s *Subscriber) wantsFetch(batch []*result) bool {
	if s.hurried && s.unsettled == 0 || s.more && s.lanesWanted() > 0 {
		return true
	}
	return slices.ContainsFunc(batch, func(r *result) bool {
		l := r.lane
		return l.wantsMore() || l.leaving || l.status.Held || l.ctx.Err() != nil
	})
}

// settleSafely tries again while the database is away and a lease is left. A
// batch that is refused is settled one by one; an event for which that fails
// too counts as failed, so that its trouble stays its own. It returns what
// could not be settled at all: other workers take those lanes over.
func (s *Subscriber) settleSafely(ctx context.Context, batch []*result) (unsettled []*result) {
	settlements := make([]*outbox.Settlement, len(batch))
	for i, r := range batch {
		settlements[i] = &r.settled
	}
	refused := false
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := s.store.Settle(ctx, settlements)
		switch {
		case err == nil:
			return nil
		case database.IsTransient(err):
		case len(batch) > 1:
			for i := range batch {
				unsettled = append(unsettled, s.settleSafely(ctx, batch[i:i+1])...)
			}
			return unsettled
		case !refused && settlements[0].Ends() && s.config.Failed != nil:
			refused = true
			settlements[0].Verdict = s.config.Failed(settlements[0].Event, err)
		default:
			s.config.Logger.Error("an event could not be settled: its lane is taken over when its lease lapses",
				"event_id", settlements[0].Event.EventID, "error", err)
			return batch
		}
		if !slices.ContainsFunc(batch, func(r *result) bool { return r.lane.alive(time.Now()) }) {
			s.config.Logger.Error("events could not be settled: other workers take them over", "error", err)
			return batch
		}
		s.config.Logger.Warn("settling is tried again", "error", err, "events", len(batch))
		wait(ctx, pause)
	}
}

// finished takes a settled event out of its lane. The mutex is held.
func (s *Subscriber) finished(r *result) {
	l, st := r.lane, &r.settled
	l.schedule.finish(st.Event.Sequence, st.Ends(), st.Behind)
	if l.ended != nil {
		l.ended[st.Event.Sequence] = true
		l.halted = l.halted || !st.Ends()
	}
	s.unsettled--
	if st.Ends() {
		s.flow.n++
	}
	if st.Event.Type == events.EnvironmentDeletedType {
		s.deletionFinished(l, st)
	}
	if st.Blocks() {
		l.status.Held = true
	}
	// A dead event may already have been replayed.
	if st.Kind != outbox.Complete || st.Releases() || st.Event.Type == events.EnvironmentCreatedType {
		l.refill = true
	}
	if s.lanes[l.LaneID] == l {
		s.enqueue(l)
	}
}

// deletionFinished takes what a deletion has superseded out of its lane. The
// mutex is held.
func (s *Subscriber) deletionFinished(l *lane, st *outbox.Settlement) {
	if st.Event.Emptying || st.Kind == outbox.Complete && st.Outcome != outbox.Superseded {
		l.status.DeletedSequence = max(l.status.DeletedSequence, st.Event.Sequence)
		l.schedule.forget(0, st.Event.Sequence-1)
	}
}

// recently is how many events ended in the last tenth of a second.
func (s *Subscriber) recently() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flow.recently(time.Now())
}
