package environment

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// conflictRounds is how often a copy that met something unexpected is decided
// anew, before it counts as contended.
const conflictRounds = 4

// copyItem copies a leased item and records how that went. What it returns is
// how it failed; the failure is recorded already. first: an event that is
// about to change the source waits for it.
func (s *Store) copyItem(ctx context.Context, it *item, first bool) error {
	it.unsure = it.MayHaveWritten
	leased, stop := s.keepLease(ctx, it)
	effects, err := failure.ContainResult(func() (ledger.Effects, error) { return s.transfer(leased, it) })
	if err != nil && leased.Err() != nil && ctx.Err() == nil {
		err = failure.New(failure.Interrupted, failure.Canceled, "copy media %q: %w", it.MediaID,
			errors.Join(context.Cause(leased), err))
	}
	stop()
	// The record is made even when the lease went: its token decides.
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		return errors.Join(err, s.recordFailure(ctx, it, failure.Of(err), first))
	}
	return s.recordCopy(ctx, it, effects)
}

// job is one item at work in the target's bucket.
type job struct {
	*item
	store  *Store
	target integration.Integration
	bucket *bucket.Bucket
	view   ledger.View
}

// transfer does the S3 work of an item, and returns what the target's ledger
// is to record.
func (s *Store) transfer(ctx context.Context, it *item) (ledger.Effects, error) {
	j := &job{item: it, store: s}
	var unusable error
	target, exists, err := s.settings.With(ctx, it.TargetLane, func(i integration.Integration) (_ int64, err error) {
		it.key, unusable = bucket.Key(i.Prefix, i.Directory, it.FileName)
		j.view, err = s.ledger.View(ctx, it.TargetLane, it.MediaID, i.Bucket, it.key)
		return j.view.SettingsVersion, err
	})
	if err != nil {
		return ledger.Effects{}, err
	}
	if !exists {
		return ledger.Effects{}, failure.New(failure.Permanent, failure.NoIntegration,
			"the environment that media %q is to be copied to has no settings", it.MediaID)
	}
	if unusable != nil {
		return ledger.Effects{}, unusable
	}
	j.target = target
	if j.view.Object.Newer(it.CopySequence) {
		return ledger.Effects{}, nil
	}
	account, err := s.account(ctx, it, target)
	if err != nil {
		return ledger.Effects{}, err
	}
	if j.view.HeldByOther() {
		return ledger.Effects{}, j.keyTaken()
	}
	if j.bucket, err = s.buckets.Bucket(account); err != nil {
		return ledger.Effects{}, err
	}
	etag, err := j.copy(ctx)
	if err != nil {
		return ledger.Effects{}, err
	}
	return j.effects(etag), j.deleteOld(ctx)
}

// account is the target's, which may also read below the source's prefix.
func (s *Store) account(ctx context.Context, it *item, target integration.Integration) (bucket.Account, error) {
	account := target.Account()
	source, exists, err := s.settings.Of(ctx, it.SourceLane)
	if err != nil {
		return account, err
	}
	if !exists {
		return account, failure.New(failure.Permanent, failure.SourceChanged,
			"media %q can't be copied: the environment that it comes from is gone", it.MediaID)
	}
	otherOwner := source.BucketOwner != "" && target.BucketOwner != "" && source.BucketOwner != target.BucketOwner
	if target.Bucket != it.SourceBucket || otherOwner {
		return account, failure.New(failure.Permanent, failure.OtherAccount,
			"media %q can't be copied from bucket %s to bucket %s: the environments use different buckets or accounts; "+
				"upload it again, or give the environment the bucket of its source and retry", it.MediaID, it.SourceBucket, target.Bucket)
	}
	if !strings.HasPrefix(it.SourceKey, bucket.KeyPrefix(target.Prefix, "")) {
		account.ReadPrefix = &source.Prefix
	}
	return account, nil
}

// copy copies under the rules that hold for every write: never over what we
// didn't write, and only the version that the snapshot saw.
func (j *job) copy(ctx context.Context) (etag string, err error) {
	condition := bucket.Condition{IfNoneMatch: true}
	if j.view.Object.HoldsKey(j.key) {
		condition = bucket.Condition{IfMatch: j.view.Object.ETag}
	}
	for range conflictRounds {
		before := j.unsure
		j.unsure = true
		etag, err = j.bucket.Copy(ctx, bucket.CopyInput{
			SourceKey: j.SourceKey, SourceETag: j.SourceETag, Key: j.key, ContentType: j.ContentType,
			Stamp: j.stamp(j.Version), Condition: condition,
		})
		sourceGone := errors.Is(err, bucket.ErrSourceNotFound) || errors.Is(err, bucket.ErrSourceChanged)
		switch {
		case err == nil:
			return etag, nil
		case !sourceGone && !errors.Is(err, bucket.ErrConditionFailed) && !errors.Is(err, bucket.ErrNotFound):
			return "", err
		case sourceGone && !before:
			j.unsure = false
			return "", j.sourceChanged()
		}
		if etag, condition, err = j.look(ctx); etag != "" || err != nil {
			return etag, err
		}
		if sourceGone {
			j.unsure = condition.IfMatch != ""
			return "", j.sourceChanged()
		}
	}
	return "", failure.New(failure.Transient, bucket.Conflict, "key %q in bucket %s changes faster than we can follow",
		j.key, j.target.Bucket)
}

// look decides by what is at the key: it is the copy that an earlier attempt
// made, and its ETag is returned; or the condition of the next attempt.
func (j *job) look(ctx context.Context) (etag string, next bucket.Condition, err error) {
	object, err := j.bucket.Head(ctx, j.key, false)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		j.unsure = false
		return "", bucket.Condition{IfNoneMatch: true}, nil
	case err != nil:
		return "", bucket.Condition{}, err
	case !j.ours(object):
		j.unsure = false
		return "", bucket.Condition{}, j.keyTaken()
	case strings.Trim(object.ETag, `"`) == strings.Trim(j.SourceETag, `"`) && j.written(object):
		return object.ETag, bucket.Condition{}, nil
	}
	return "", bucket.Condition{IfMatch: object.ETag}, nil
}

// ours tells whether an object at the key is one that we wrote for this media:
// of the item's version, the ledger's, or a possible write's. That no other
// media holds the key was seen before.
func (j *job) ours(object bucket.Object) bool {
	versions := []int64{j.Version}
	if j.view.Object.HoldsKey(j.key) {
		versions = append(versions, j.view.Object.Version)
	}
	for _, write := range j.view.PossibleWrites {
		if write.Key == j.key {
			versions = append(versions, write.Version)
		}
	}
	return slices.ContainsFunc(versions, func(v int64) bool { return object.HasStamp(j.store.buckets.Brand(), j.stamp(v)) })
}

// written tells whether an object was written for this very item.
func (j *job) written(object bucket.Object) bool {
	return object.HasStamp(j.store.buckets.Brand(), j.stamp(j.Version))
}

func (j *job) stamp(version int64) bucket.Stamp {
	return bucket.Stamp{ServiceID: j.target.StampServiceID(), Version: version}
}

// deleteOld deletes what the target held of the media under another name.
func (j *job) deleteOld(ctx context.Context) error {
	old := j.view.Object
	if !old.Live() || *old.Key == j.key || *old.Bucket != j.target.Bucket {
		return nil
	}
	err := j.bucket.Delete(ctx, *old.Key, old.ETag)
	if errors.Is(err, bucket.ErrNotFound) || errors.Is(err, bucket.ErrConditionFailed) {
		return nil // gone, or somebody else's by now
	}
	return err
}

func (j *job) effects(etag string) ledger.Effects {
	object := &ledger.Object{
		LaneID: j.TargetLane, MediaID: j.MediaID, Version: j.Version, Sequence: j.CopySequence,
		Bucket: &j.target.Bucket, Key: &j.key, ContentType: j.ContentType, Size: j.Size, ETag: etag,
	}
	effects := ledger.Effects{Put: object, Frees: j.view.Frees(object)}
	for _, write := range j.view.PossibleWrites {
		if write.Key == j.key {
			effects.Settled = append(effects.Settled, write)
		}
	}
	return effects
}

func (j *job) sourceChanged() error {
	return failure.New(failure.Permanent, failure.SourceChanged,
		"media %q can't be copied: its object at %q in bucket %s was replaced or removed since the environment was made",
		j.MediaID, j.SourceKey, j.SourceBucket)
}

func (j *job) keyTaken() error {
	return failure.New(failure.Permanent, failure.KeyTaken,
		"media %q can't be copied to key %q in bucket %s: another object is there; have it moved away, then retry",
		j.MediaID, j.key, j.target.Bucket)
}
