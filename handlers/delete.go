package handlers

import (
	"context"
	"errors"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Delete deletes the object that the ledger has of a media, and leaves a
// tombstone. The payload's file name counts only where there is no row.
func (h *Handlers) Delete(ctx context.Context, d *outbox.Delivery, e events.MediaDeleted) (*Result, error) {
	j, result, err := h.prepare(ctx, d, e.MediaID, e.Version.Micros(), e.FileName, false)
	if j == nil || err != nil {
		return result, err
	}
	outcome := outbox.Done
	if old := j.view.Object; old.Live() {
		err = j.deleteOurs(ctx, *old.Key, old.ETag)
	} else {
		outcome, err = j.deleteUnknown(ctx)
	}
	if err != nil {
		return result, err
	}
	if err := j.settleWrites(ctx); err != nil {
		return result, err
	}
	j.buried(outcome)
	return result, nil
}

// deleteUnknown looks for a media that the ledger doesn't have: only what is
// ours is deleted.
func (j *job) deleteUnknown(ctx context.Context) (string, error) {
	if j.view.HeldByOther() {
		return outbox.Skipped, nil
	}
	object, err := j.bucket.Head(ctx, j.key, false)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		return outbox.Skipped, nil
	case err != nil:
		return "", err
	case !j.ours(object):
		return outbox.Skipped, nil
	}
	return outbox.Done, j.deleteOurs(ctx, j.key, object.ETag)
}
