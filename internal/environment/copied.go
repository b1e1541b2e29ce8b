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
	var endings []ending
	copies := make(map[int64]bool)
	for _, one := range mine {
		effects = append(effects, one.effects)
		endings = append(endings, ending{LaneID: one.TargetLane, MediaID: one.MediaID})
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
	return s.join(ctx, tx, endings)
}

// endCopied ends items, and returns those that their callers still had.
func (s *Store) endCopied(ctx context.Context, tx *sqlx.Tx, list []*copied) (mine []*copied, err error) {
	type key struct {
		CopySequence int64  `db:"copy_sequence" json:"copy_sequence"`
		MediaID      string `db:"media_id" json:"media_id"`
	}
	type leased struct {
		key
		Token int64 `json:"lease_token"`
	}
	all := make([]leased, len(list))
	for i, one := range list {
		all[i] = leased{key{one.CopySequence, one.MediaID}, one.Token}
	}
	encoded, err := rows(all)
	if err != nil {
		return nil, err
	}
	var ended []key
	if err := tx.SelectContext(ctx, &ended, s.db.SQL(`
		UPDATE {copy_items} SET state = 'done', error_code = NULL, error = NULL, leased_until = NULL
		WHERE (copy_sequence, media_id, lease_token) IN (SELECT copy_sequence, media_id, lease_token
			FROM {rows v(copy_sequence bigint, media_id text, lease_token bigint)})
		AND state IN ('owed', 'waiting') RETURNING copy_sequence, media_id`), encoded); err != nil {
		return nil, wrap("end copied items", err)
	}
	for i, one := range list {
		if slices.Contains(ended, all[i].key) {
			mine = append(mine, one)
		}
	}
	return mine, nil
}

// closeCopy ends a copy that owes nothing and that no media can join any more. One of
// which a deletion has cancelled items ends with that: until then events must see
// that they lack them.
// The caller holds the target's lane, as does who opens items again.
func (s *Store) closeCopy(ctx context.Context, tx *sqlx.Tx, sequence int64) error {
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copies} SET state = 'ended' WHERE sequence = ? AND state = 'active'
		AND NOT EXISTS (SELECT 1 FROM {copy_items} WHERE copy_sequence = ? AND state = 'owed')
		AND NOT EXISTS (SELECT 1 FROM {copy_items} WHERE copy_sequence = ? AND state = 'waiting')
		AND NOT EXISTS (SELECT 1 FROM {copy_items} WHERE copy_sequence = ? AND state = 'cancelled')`),
		sequence, sequence, sequence, sequence)
	return wrap("end a finished copy", err)
}
