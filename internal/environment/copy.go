package environment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// lease takes an item that nobody else copies. It tells whether it got it.
func (s *Store) lease(ctx context.Context, it *item) (bool, error) {
	var tokens []int64
	err := s.db.SelectContext(ctx, &tokens, s.db.SQL(`
		UPDATE {copy_items} SET lease_token = lease_token + 1, leased_until = {now} + ?
		WHERE copy_sequence = ? AND media_id = ? AND state = 'owed'
			AND (leased_until IS NULL OR leased_until < {now})
		RETURNING lease_token`), s.options.Lease.Microseconds(), it.CopySequence, it.MediaID)
	if err != nil || len(tokens) == 0 {
		return false, wrap("lease a copy's item", err)
	}
	it.Token = tokens[0]
	return true, nil
}

// copyItem copies a leased item and records how that went. What it returns is
// how it failed; the failure is recorded already.
func (s *Store) copyItem(ctx context.Context, it *item) error {
	ctx, stop := s.keepLease(ctx, it)
	object, err := s.transfer(ctx, it)
	stop()
	// The record is made even when the lease went: its token decides.
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		return errors.Join(err, s.recordFailure(ctx, it, failure.Of(err)))
	}
	return s.recordCopy(ctx, it, object)
}

// keepLease renews the item's lease until stopped, and cancels the context
// when it can't be relied on any more.
func (s *Store) keepLease(ctx context.Context, it *item) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	lost := errors.New("the lease of a copy's item was lost")
	deadline := time.AfterFunc(s.options.Lease*4/5, func() { cancel(lost) })
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		tick := time.NewTicker(s.options.Lease / 4)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			asked := time.Now()
			result, err := s.db.ExecContext(ctx, s.db.SQL(`
				UPDATE {copy_items} SET leased_until = {now} + ?
				WHERE copy_sequence = ? AND media_id = ? AND lease_token = ? AND state = 'owed'`),
				s.options.Lease.Microseconds(), it.CopySequence, it.MediaID, it.Token)
			if err != nil {
				continue // the deadline decides
			}
			if n, err := result.RowsAffected(); err == nil && n == 0 {
				cancel(lost)
				return
			}
			if deadline.Stop() {
				deadline.Reset(time.Until(asked.Add(s.options.Lease * 4 / 5)))
			}
		}
	}()
	guarded := bucket.WithGuard(ctx, func() error {
		if ctx.Err() != nil {
			return failure.New(failure.Interrupted, failure.Canceled, "copy media %q: %w", it.MediaID, context.Cause(ctx))
		}
		return nil
	})
	return guarded, func() {
		deadline.Stop()
		cancel(nil)
		<-finished
	}
}

// transfer does the S3 work of an item. A nil object means that the target
// has gone past it.
func (s *Store) transfer(ctx context.Context, it *item) (*ledger.Object, error) {
	target, exists, err := s.settings.Of(ctx, it.TargetLane)
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, failure.New(failure.Permanent, failure.NoIntegration,
			"the environment that media %q is copied to has no settings", it.MediaID)
	}
	account, err := s.account(ctx, it, target)
	if err != nil {
		return nil, err
	}
	key, err := bucket.Key(target.Prefix, target.Directory, it.FileName)
	if err != nil {
		return nil, err
	}
	view, err := s.ledger.View(ctx, it.TargetLane, it.MediaID, target.Bucket, key)
	if err != nil {
		return nil, err
	}
	if view.Object.Newer(it.Version, it.CopySequence) {
		return nil, nil
	}
	if view.HeldByOther() {
		return nil, keyTaken(it, key, target)
	}
	b, err := s.buckets.Bucket(account)
	if err != nil {
		return nil, err
	}
	it.key = key
	etag, err := s.copyTo(ctx, b, it, target, key, view)
	if err != nil {
		return nil, err
	}
	return &ledger.Object{
		LaneID: it.TargetLane, MediaID: it.MediaID, Version: it.Version, Sequence: it.CopySequence,
		Bucket: &target.Bucket, Key: &key, ContentType: it.ContentType, Size: it.Size, ETag: etag,
	}, nil
}

// account is the target's, which may also read the source's prefix.
func (s *Store) account(ctx context.Context, it *item, target integration.Integration) (bucket.Account, error) {
	account := target.Account()
	source, exists, err := s.settings.Of(ctx, it.SourceLane)
	if err != nil {
		return account, err
	}
	otherOwner := exists && source.BucketOwner != "" && target.BucketOwner != "" && source.BucketOwner != target.BucketOwner
	if target.Bucket != it.SourceBucket || otherOwner {
		return account, failure.New(failure.Permanent, failure.OtherAccount,
			"media %q can't be copied from bucket %s to bucket %s: the environments use different buckets or accounts",
			it.MediaID, it.SourceBucket, target.Bucket)
	}
	if exists && source.Prefix != target.Prefix {
		account.ReadPrefix = &source.Prefix
	}
	return account, nil
}

// copyTo copies under the rules that hold for every write: never over what we
// didn't write, and only the version that the snapshot saw.
func (s *Store) copyTo(ctx context.Context, b *bucket.Bucket, it *item, target integration.Integration,
	key string, view ledger.View) (string, error) {
	condition := bucket.Condition{IfNoneMatch: true}
	if view.Object.HoldsKey(key) {
		condition = bucket.Condition{IfMatch: view.Object.ETag}
	}
	const rounds = 4
	for range rounds {
		etag, err := b.Copy(ctx, bucket.CopyInput{
			SourceKey: it.SourceKey, SourceETag: it.SourceETag, Key: key, ContentType: it.ContentType,
			Stamp:     bucket.Stamp{ServiceID: target.StampServiceID(), Version: it.Version},
			Condition: condition,
		})
		switch {
		case err == nil:
			return etag, nil
		case errors.Is(err, bucket.ErrSourceNotFound), errors.Is(err, bucket.ErrSourceChanged):
			return "", failure.New(failure.Permanent, failure.SourceChanged,
				"media %q can't be copied: its object at %q in bucket %s was replaced or removed since the environment was made",
				it.MediaID, it.SourceKey, it.SourceBucket)
		case !errors.Is(err, bucket.ErrConditionFailed) && !errors.Is(err, bucket.ErrNotFound):
			return "", err
		}
		object, err := b.Head(ctx, key, false)
		switch {
		case errors.Is(err, bucket.ErrNotFound):
			condition = bucket.Condition{IfNoneMatch: true}
			continue
		case err != nil:
			return "", err
		}
		stamp := bucket.Stamp{ServiceID: target.StampServiceID(), Version: it.Version}
		ours := object.HasStamp(s.buckets.Brand(), stamp)
		if ours && !view.Object.HoldsKey(key) && object.Size == it.Size {
			return object.ETag, nil // an earlier attempt's copy
		}
		if view.Object.HoldsKey(key) {
			stamp.Version = view.Object.Version
			ours = ours || object.HasStamp(s.buckets.Brand(), stamp)
		}
		if !ours {
			return "", keyTaken(it, key, target)
		}
		condition = bucket.Condition{IfMatch: object.ETag}
	}
	return "", failure.New(failure.Transient, bucket.Conflict, "key %q in bucket %s changes faster than we can follow",
		key, target.Bucket)
}

func keyTaken(it *item, key string, target integration.Integration) error {
	return failure.New(failure.Permanent, failure.KeyTaken,
		"media %q can't be copied to key %q in bucket %s: another object is there", it.MediaID, key, target.Bucket)
}

// recordCopy writes the copied object into the target's ledger and ends the
// item, unless another worker has it by now.
func (s *Store) recordCopy(ctx context.Context, it *item, object *ledger.Object) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockLane(ctx, tx, it.TargetLane); err != nil {
			return err
		}
		mine, err := s.end(ctx, tx, it, done, nil)
		if err != nil || !mine {
			return err
		}
		if object != nil {
			if err := s.ledger.Apply(ctx, tx, []ledger.Effects{{Put: object}}); err != nil {
				return err
			}
		}
		return s.join(ctx, tx, []ending{{it.TargetLane, it.MediaID, it.CopySequence}})
	})
	return wrap("record a copied media", err)
}

// end ends an item that the caller still has.
func (s *Store) end(ctx context.Context, tx *sqlx.Tx, it *item, state string, failed *failure.Error) (bool, error) {
	var code, words *string
	if failed != nil {
		text := failed.Error()
		code, words = &failed.Code, &text
	}
	result, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET state = ?, error_code = ?, error = ?, leased_until = NULL
		WHERE copy_sequence = ? AND media_id = ? AND lease_token = ? AND state = 'owed'`),
		state, code, words, it.CopySequence, it.MediaID, it.Token)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// recordFailure decides what becomes of an item by the class of its failure.
// It never touches the source's integration.
func (s *Store) recordFailure(ctx context.Context, it *item, f *failure.Error) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		switch {
		case f.Class == failure.Interrupted:
			return s.putOff(ctx, tx, it, nil, 0)
		case f.Class == failure.Integration && it.crossPrefix(ctx, s, tx):
			return s.fail(ctx, tx, it, f)
		case f.Class == failure.Integration:
			if err := s.settings.BlockTx(ctx, tx, it.TargetLane, f.Code, f.Error()); err != nil {
				return err
			}
			return s.putOff(ctx, tx, it, nil, 0)
		case f.Class == failure.Transient && it.FailureCount+1 < s.options.Attempts:
			return s.putOff(ctx, tx, it, f, s.options.Backoff(it.FailureCount+1))
		default:
			return s.fail(ctx, tx, it, f)
		}
	})
	return wrap("record a failed copy", err)
}

// fail ends an item for good, until somebody tries it again. What an attempt
// may have written is settled by the media's next event in the target.
func (s *Store) fail(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error) error {
	mine, err := s.end(ctx, tx, it, failed, f)
	if err != nil || !mine || it.key == "" {
		return err
	}
	return s.ledger.Apply(ctx, tx, []ledger.Effects{{Possible: []ledger.PossibleWrite{
		{LaneID: it.TargetLane, MediaID: it.MediaID, Key: it.key, Version: it.Version}}}})
}

// crossPrefix tells whether the copy reads outside of the target's own prefix:
// a denial there is the item's.
func (it *item) crossPrefix(ctx context.Context, s *Store, tx *sqlx.Tx) bool {
	source, ok, err := s.settings.ByLane(ctx, tx, it.SourceLane)
	if err != nil || !ok {
		return false
	}
	target, ok, err := s.settings.ByLane(ctx, tx, it.TargetLane)
	return err == nil && ok && source.Prefix != target.Prefix
}

// putOff gives an item back, to be tried again after the delay.
func (s *Store) putOff(ctx context.Context, tx *sqlx.Tx, it *item, f *failure.Error, delay time.Duration) error {
	counted := 0
	var code, words *string
	if f != nil {
		text := f.Error()
		counted, code, words = 1, &f.Code, &text
	}
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET leased_until = NULL, failure_count = failure_count + ?,
			first_failed_at = coalesce(first_failed_at, CASE WHEN CAST(? AS integer) = 1 THEN {now} END),
			error_code = ?, error = ?, next_attempt_at = {now} + ?
		WHERE copy_sequence = ? AND media_id = ? AND lease_token = ? AND state = 'owed'`),
		counted, counted, code, words, delay.Microseconds(), it.CopySequence, it.MediaID, it.Token)
	return err
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
