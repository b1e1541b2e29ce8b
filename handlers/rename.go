package handlers

import (
	"context"
	"errors"

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
	old := j.view.Object
	target, source, err := j.copy(ctx)
	if err != nil {
		return result, err
	}
	if *old.Key != j.key {
		if err := j.deleteOurs(ctx, *old.Key, source); err != nil {
			return result, err
		}
	}
	if err := j.settleWrites(ctx, j.key); err != nil {
		return result, err
	}
	j.stored(target, old.ContentType, old.Size)
	return result, nil
}

// renameNothing: a media whose upload died can be renamed once that is
// replayed; one that we never had is none of ours.
func (j *job) renameNothing(ctx context.Context) (string, error) {
	dead, err := j.Outbox.DeadBefore(ctx, j.delivery.Event.LaneID, j.mediaID, j.delivery.Event.Sequence)
	if err != nil || !dead {
		return outbox.Skipped, err
	}
	return "", failure.New(failure.Permanent, failure.PredecessorDead,
		"media %q of service %s can't be renamed: an earlier event of it is dead; retry that one first, then this",
		j.mediaID, j.delivery.Event.ServiceID)
}

// copy brings the object to its new key, or finds that an earlier attempt did.
// It returns the ETags of the copy and of what was copied.
func (j *job) copy(ctx context.Context) (target, source string, err error) {
	condition := bucket.Condition{IfNoneMatch: true}
	old := j.view.Object
	source = old.ETag
	if *old.Key == j.key {
		condition = bucket.Condition{IfMatch: source}
	}
	for range conflictRounds {
		j.result.Wrote = true
		target, err = j.bucket.Copy(ctx, bucket.CopyInput{
			SourceKey: *old.Key, SourceETag: source, Key: j.key,
			ContentType: old.ContentType, Stamp: j.stamp(j.version), Condition: condition,
		})
		switch {
		case err == nil:
			return target, source, nil
		case errors.Is(err, bucket.ErrSourceNotFound), errors.Is(err, bucket.ErrSourceChanged):
			source, err = j.sourceNow(ctx, err)
			if source == "" || err != nil {
				target, err = j.finished(ctx, err)
				return target, old.ETag, err
			}
			if *old.Key == j.key {
				condition = bucket.Condition{IfMatch: source}
			}
		case errors.Is(err, bucket.ErrConditionFailed), errors.Is(err, bucket.ErrNotFound):
			object, found, err := j.targetNow(ctx, &condition)
			if found || err != nil {
				return object.ETag, source, err
			}
		default:
			return "", "", err
		}
	}
	return "", "", j.contended(j.key)
}

// sourceNow looks at what stands at the old key where it isn't what the ledger
// says. Only what is ours is copied on: empty means that nothing of ours is there.
func (j *job) sourceNow(ctx context.Context, missing error) (string, error) {
	if errors.Is(missing, bucket.ErrSourceNotFound) {
		return "", nil
	}
	object, err := j.bucket.Head(ctx, *j.view.Object.Key, false)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		return "", nil
	case err != nil:
		return "", err
	case !j.ours(object):
		return "", nil
	}
	return object.ETag, nil
}

// finished ends a rename whose source is gone: an earlier attempt did it all,
// or the object is missing.
func (j *job) finished(ctx context.Context, err error) (string, error) {
	if err != nil {
		return "", err
	}
	object, err := j.bucket.Head(ctx, j.key, false)
	if err == nil && j.written(object) && *j.view.Object.Key != j.key {
		return object.ETag, nil
	}
	if err != nil && !errors.Is(err, bucket.ErrNotFound) {
		return "", err
	}
	return "", failure.New(failure.Permanent, failure.ObjectMissing,
		"media %q of service %s can't be renamed: our object at %q in bucket %s is gone or was replaced by somebody; "+
			"upload the media again", j.mediaID, j.delivery.Event.ServiceID, *j.view.Object.Key, j.settings.Bucket)
}

// targetNow decides anew by what is at the new key.
func (j *job) targetNow(ctx context.Context, condition *bucket.Condition) (bucket.Object, bool, error) {
	object, err := j.bucket.Head(ctx, j.key, false)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		*condition = bucket.Condition{IfNoneMatch: true}
		return object, false, nil
	case err != nil:
		return object, false, err
	case !j.ours(object):
		return object, false, j.keyTaken(j.key)
	case j.written(object) && *j.view.Object.Key != j.key && object.Size == j.view.Object.Size:
		return object, true, nil
	}
	*condition = bucket.Condition{IfMatch: object.ETag}
	return object, false, nil
}
