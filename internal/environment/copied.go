package environment

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// copied is an item whose object stands in the target's bucket.
type copied struct {
	*item
	effects ledger.Effects
}

// recordCopy writes the copied object into the target's ledger and ends the
// item, unless another worker has it by now. Items that are copied at the same
// time share a transaction.
func (s *Store) recordCopy(ctx context.Context, it *item, effects ledger.Effects) error {
	own, err := s.copied.Get(ctx, &copied{it, effects})
	return wrap("record a copied media", cmp.Or(err, own))
}

// recordCopies records items together or, where that is refused, one by one, so
// that the trouble of one stays its own. It returns those errors.
func (s *Store) recordCopies(ctx context.Context, list []*copied) (map[*copied]error, error) {
	slices.SortFunc(list, func(a, b *copied) int {
		return cmp.Or(cmp.Compare(a.CopySequence, b.CopySequence), cmp.Compare(a.MediaID, b.MediaID))
	})
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error { return s.recordTogether(ctx, tx, list) })
	if err == nil || len(list) == 1 || database.IsTransient(err) {
		return nil, err
	}
	own := make(map[*copied]error)
	for i, one := range list {
		if _, err := s.recordCopies(ctx, list[i:i+1]); err != nil {
			own[one] = err
		}
	}
	return own, nil
}

func (s *Store) recordTogether(ctx context.Context, tx *sqlx.Tx, list []*copied) error {
	targets := make([]int64, len(list))
	for i, one := range list {
		targets[i] = one.TargetLane
	}
	if err := s.lockLanes(ctx, tx, targets...); err != nil {
		return err
	}
	mine, err := s.endCopied(ctx, tx, list)
	if err != nil || len(mine) == 0 {
		return err
	}
	var effects []ledger.Effects
	var ended []ending
	copies := make(map[int64]bool)
	for _, one := range mine {
		effects = append(effects, one.effects)
		ended = append(ended, ending{WaitsFor: one.CopySequence, MediaID: one.MediaID})
		copies[one.CopySequence] = true
	}
	if err := s.ledger.Apply(ctx, tx, effects); err != nil {
		return err
	}
	for _, sequence := range slices.Sorted(maps.Keys(copies)) {
		if err := s.closeCopy(ctx, tx, sequence); err != nil {
			return err
		}
	}
	return s.strike(ctx, tx, ended)
}

// endCopied ends items, and returns those that their callers still had.
func (s *Store) endCopied(ctx context.Context, tx *sqlx.Tx, list []*copied) (mine []*copied, err error) {
	type leased struct {
		itemKey
		Token int64 `json:"lease_token"`
	}
	all := make([]leased, len(list))
	for i, one := range list {
		all[i] = leased{itemKey{one.CopySequence, one.MediaID}, one.Token}
	}
	encoded, err := rows(all)
	if err != nil {
		return nil, err
	}
	var ended []itemKey
	if err := tx.SelectContext(ctx, &ended, s.db.SQL(`
		UPDATE {copy_items} SET state = 'done', error_code = NULL, error = NULL, leased_until = NULL
		WHERE (copy_sequence, media_id, lease_token) IN (SELECT copy_sequence, media_id, lease_token
			FROM {rows v(copy_sequence bigint, media_id text, lease_token bigint)})
		AND state IN ('owed', 'waiting') RETURNING copy_sequence, media_id`), encoded); err != nil {
		return nil, wrap("end copied items", err)
	}
	for i, one := range list {
		if slices.Contains(ended, all[i].itemKey) {
			mine = append(mine, one)
		}
	}
	return mine, nil
}

// open holds for a copy c that has items which are yet to be made.
const open = `(EXISTS (SELECT 1 FROM {copy_items} i WHERE i.copy_sequence = c.sequence AND i.state = 'owed')
	OR EXISTS (SELECT 1 FROM {copy_items} i WHERE i.copy_sequence = c.sequence AND i.state = 'waiting'))`

// closeCopies ends copies that owe nothing any more. The lanes of their targets
// are locked, as by those who open items again.
func (s *Store) closeCopies(ctx context.Context) error {
	var over []struct {
		Sequence   int64 `db:"sequence"`
		TargetLane int64 `db:"target_lane"`
	}
	if err := s.db.SelectContext(ctx, &over, s.db.SQL(`
		SELECT c.sequence, c.target_lane FROM {copies} c WHERE c.state = 'active' AND NOT `+open)); err != nil {
		return wrap("look for finished copies", err)
	}
	for _, c := range over {
		if err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
			if err := s.lockLanes(ctx, tx, c.TargetLane); err != nil {
				return err
			}
			return s.closeCopy(ctx, tx, c.Sequence)
		}); err != nil {
			return err
		}
	}
	return nil
}

// closeCopy ends a copy if it owes nothing. The caller holds the target's lane.
func (s *Store) closeCopy(ctx context.Context, tx *sqlx.Tx, sequence int64) error {
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copies} AS c SET state = 'ended' WHERE c.sequence = ? AND c.state = 'active' AND NOT `+open), sequence)
	return wrap("end a finished copy", err)
}
