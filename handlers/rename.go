package handlers

import (
	"context"
	"errors"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Rename copies a media's object to its new key and then deletes the old one.
// What it copies is what the ledger says, never a name from the payload.
func (h *Handlers) Rename(ctx context.Context, d *outbox.Delivery, e events.MediaRenamed) (*Result, error) {
	j, result, err := h.prepare(ctx, d, e.MediaID, e.Version.Micros(), e.To, true)
	if j == nil || err != nil {
		return result, err
	}
	if !j.view.Object.Live() {
		result.Outcome, err = j.renameNothing(ctx)
		return result, err
	}
	if err := j.refusePinned(e.To, ""); err != nil {
		return result, err
	}
	if err := j.claimKey(ctx); err != nil {
		return result, err
	}
	target, source, err := j.copy(ctx)
	if err != nil {
		return result, err
	}
	if source.Key != j.key {
		if err := j.deleteOurs(ctx, source.Key, source.ETag); err != nil {
			return result, err
		}
	}
	if err := j.settleWrites(ctx, j.key); err != nil {
		return result, err
	}
	j.stored(target)
	return result, nil
}

// renameNothing: a media whose upload died can be renamed once that is
// replayed; one that we never had is none of ours.
func (j *job) renameNothing(ctx context.Context) (string, error) {
	dead, err := j.Outbox.DeadBefore(ctx, j.delivery.Event.LaneID, j.mediaID, j.delivery.Event.Sequence)
	if err != nil {
		return "", err
	}
	if !dead {
		j.result.Target = nil // without an object in the ledger no attempt has copied one
		return outbox.Skipped, j.settleWrites(ctx)
	}
	return "", failure.New(failure.Permanent, failure.PredecessorDead,
		"media %q of service %s can't be renamed: an earlier event of it is dead; retry that one first, then this",
		j.mediaID, j.delivery.Event.ServiceID)
}

// copy brings the object to its new key, or finds that an earlier attempt did.
// It returns the copy, and what stands, or stood, at the old key.
func (j *job) copy(ctx context.Context) (target, source bucket.Object, err error) {
	old := j.view.Object
	source = bucket.Object{Key: *old.Key, ETag: old.ETag, Size: old.Size, ContentType: old.ContentType}
	condition := bucket.Condition{IfNoneMatch: true}
	if source.Key == j.key {
		condition = bucket.Condition{IfMatch: source.ETag}
	}
	for range conflictRounds {
		j.result.Wrote = true
		etag, err := j.bucket.Copy(ctx, bucket.CopyInput{
			SourceKey: source.Key, SourceETag: source.ETag, Key: j.key,
			ContentType: source.ContentType, Stamp: j.stamp(j.version), Condition: condition,
		})
		found := false
		switch {
		case err == nil:
			return bucket.Object{Key: j.key, ETag: etag, Size: source.Size, ContentType: source.ContentType}, source, nil
		case errors.Is(err, bucket.ErrSourceNotFound):
			target, err = j.finished(ctx)
			return target, source, err
		case errors.Is(err, bucket.ErrSourceChanged):
			if found, err = j.sourceNow(ctx, &source); err == nil && !found {
				target, err = j.finished(ctx)
				return target, source, err
			}
			if source.Key == j.key {
				condition = bucket.Condition{IfMatch: source.ETag}
			}
		case errors.Is(err, bucket.ErrConditionFailed), errors.Is(err, bucket.ErrNotFound):
			if target, found, err = j.targetNow(ctx, source, &condition); err == nil && found {
				return target, source, nil
			}
		}
		if err != nil {
			return bucket.Object{}, source, err
		}
	}
	return bucket.Object{}, source, j.contended(j.key)
}

// sourceNow looks at what stands at the old key where it isn't what the ledger
// says. Only what is ours is copied on: what a re-upload wrote that is dead.
func (j *job) sourceNow(ctx context.Context, source *bucket.Object) (found bool, err error) {
	object, err := j.bucket.Head(ctx, source.Key, false)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case !j.ours(object):
		return false, nil
	}
	*source = object
	return true, nil
}

// finished ends a rename whose source is gone: an earlier attempt did it all, or
// the object is missing. A deletion of the environment that was cut off may have
// taken it: that one will supersede the event.
func (j *job) finished(ctx context.Context) (bucket.Object, error) {
	old := *j.view.Object.Key
	object, err := j.bucket.Head(ctx, j.key, false)
	if err == nil && j.written(object) && old != j.key {
		return object, nil
	}
	if err != nil && !errors.Is(err, bucket.ErrNotFound) {
		return bucket.Object{}, err
	}
	deleted, err := j.Outbox.DeletionAfter(ctx, j.delivery.Event.LaneID, j.delivery.Event.Sequence)
	if err != nil {
		return bucket.Object{}, err
	}
	if deleted {
		return bucket.Object{}, &outbox.Wait{For: time.Second, Reason: "the environment is about to be deleted"}
	}
	return bucket.Object{}, failure.New(failure.Permanent, failure.ObjectMissing,
		"media %q of service %s can't be renamed: our object at %q in bucket %s is gone or was replaced by somebody; "+
			"upload the media again", j.mediaID, j.delivery.Event.ServiceID, old, j.settings.Bucket)
}

// targetNow decides anew by what is at the new key.
func (j *job) targetNow(ctx context.Context, source bucket.Object, condition *bucket.Condition) (bucket.Object, bool, error) {
	object, err := j.bucket.Head(ctx, j.key, false)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		*condition = bucket.Condition{IfNoneMatch: true}
		return object, false, nil
	case err != nil:
		return object, false, err
	case !j.ours(object):
		return object, false, j.keyTaken(j.key)
	case j.written(object) && source.Key != j.key && object.Size == source.Size && object.ETag == source.ETag:
		return object, true, nil
	}
	*condition = bucket.Condition{IfMatch: object.ETag}
	return object, false, nil
}
