package outbox

import (
	"context"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// sweep remembers up to which sequence every event was found, so that the next
// look begins there. An event may become visible below others that were seen
// before: its transaction was open for longer. So a sequence counts as passed
// only once no transaction is open any more that was when it was seen; a look
// then finds late events in their order, and what has ended is not walked
// again, however long a transaction elsewhere keeps it from being cleaned up.
type sweep struct {
	// passed: every event at or below was found, and is not left for another
	// worker.
	passed int64
	// closed: no event at or below is still to become visible.
	closed int64
	marks  []mark
}

// mark is a sequence that was seen, and the transactions that wrote to the
// outbox at the next look, of which none has been seen to end.
type mark struct {
	sequence int64
	open     []string
	fresh    bool // open is not known yet
}

// looked notes a look that began while those transactions were open, and found
// all that is visible up to the highest sequence. Where it is not complete,
// there is more above.
func (w *sweep) looked(open []string, highest int64, complete bool) {
	kept := w.marks[:0]
	for _, m := range w.marks {
		if m.fresh {
			m.open = slices.Clone(open)
		} else {
			m.open = slices.DeleteFunc(m.open, func(tx string) bool { return !slices.Contains(open, tx) })
		}
		if len(m.open) == 0 {
			w.closed = max(w.closed, m.sequence) // what they wrote is visible: this look found it
		} else {
			kept = append(kept, mark{sequence: m.sequence, open: m.open})
		}
	}
	w.marks = kept
	if complete {
		w.passed = max(w.passed, w.closed)
	} else {
		w.passed = max(w.passed, min(w.closed, highest))
	}
	w.saw(highest)
}

// saw notes that a sequence was given before the transactions are listed that
// the next look is told of.
func (w *sweep) saw(sequence int64) {
	if n := len(w.marks); sequence > max(w.passed, w.closed) && (n == 0 || sequence > w.marks[n-1].sequence) {
		w.marks = append(w.marks, mark{sequence: sequence, fresh: true})
	}
	w.merge()
}

// merge keeps the marks few while a transaction stays open for long: of those
// that wait for the same ones, the last counts.
func (w *sweep) merge() {
	merged := w.marks[:0]
	for i, m := range w.marks {
		if i+1 < len(w.marks) && !m.fresh && slices.Equal(m.open, w.marks[i+1].open) && !w.marks[i+1].fresh {
			continue
		}
		merged = append(merged, m)
	}
	w.marks = merged
}

// back makes the next look find an event again that was found and let go.
func (w *sweep) back(sequence int64) {
	w.passed = min(w.passed, sequence-1)
	w.closed, w.marks = 0, nil
}

// assigner takes the right to assign until the transaction ends, and lists the
// other transactions that have written to the outbox, or are about to, and
// have not ended. A publisher's lock on the table is there before its
// sequences are given out and until after they are visible.
func (s *Store) assigner(ctx context.Context, tx *sqlx.Tx) (mine bool, open []string, err error) {
	if s.db.Dialect == database.SQLite {
		return true, nil, nil // one writer at a time: sequences become visible in order
	}
	var names string
	err = tx.QueryRowxContext(ctx, s.db.SQL(`
		SELECT pg_try_advisory_xact_lock(hashtextextended(?, 0)),
			coalesce((SELECT string_agg(virtualtransaction, ' ' ORDER BY virtualtransaction) FROM pg_locks
				WHERE locktype = 'relation' AND relation = CAST(? AS regclass) AND mode = 'RowExclusiveLock'
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
				AND pid IS DISTINCT FROM pg_backend_pid()), '')`),
		s.db.Schema+".outbox.assign", s.db.SQL(`{outbox}`)).Scan(&mine, &names)
	return mine, strings.Fields(names), err
}
