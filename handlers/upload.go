package handlers

import (
	"context"
	"errors"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Upload puts a media's bytes at its key. A re-upload under another name then
// deletes the object at the old one: put first, delete after, so that a crash
// between the two leaves both and never neither.
func (h *Handlers) Upload(ctx context.Context, d *outbox.Delivery, e events.MediaUploaded) (*Result, error) {
	j, result, err := h.prepare(ctx, d, e.MediaID, e.Version.Micros(), e.FileName, true)
	if j == nil || err != nil {
		return result, err
	}
	if err := j.refusePinned(e.FileName, e.PreviousFileName); err != nil {
		return result, err
	}
	if err := j.claimKey(ctx); err != nil {
		return result, err
	}
	stored, err := j.put(ctx, e)
	if err != nil {
		return result, err
	}
	if old := j.view.Object; old.Live() && *old.Key != j.key {
		if err := j.deleteOurs(ctx, *old.Key, old.ETag); err != nil {
			return result, err
		}
	}
	if err := j.settleWrites(ctx, j.key); err != nil {
		return result, err
	}
	stored.ContentType = e.ContentType
	j.stored(stored)
	return result, nil
}

// refusePinned holds names fixed where the customer wants that (manual:
// メディアのファイル名を固定する).
func (j *job) refusePinned(name, previous string) error {
	old := j.view.Object
	if old.Live() {
		previous = bucket.FileName(*old.Key)
	}
	if !j.settings.PinFileNames || previous == "" || previous == name {
		return nil
	}
	return failure.New(failure.Permanent, failure.FileNamePinned,
		"media %q of service %s keeps its file name %q: the integration pins file names, so %q is refused",
		j.mediaID, j.delivery.Event.ServiceID, previous, name)
}

// put sends the bytes under the condition that the key is as the ledger has
// it, or finds that an earlier attempt did.
func (j *job) put(ctx context.Context, e events.MediaUploaded) (bucket.Object, error) {
	condition := bucket.Condition{IfNoneMatch: true}
	if j.view.Object.HoldsKey(j.key) {
		condition = bucket.Condition{IfMatch: j.view.Object.ETag}
	}
	look := j.delivery.MayHaveRun
	for range conflictRounds {
		if look {
			object, found, err := j.look(ctx, e, &condition)
			if found || err != nil {
				return object, err
			}
		}
		object, err := j.send(ctx, e, condition)
		if !errors.Is(err, bucket.ErrConditionFailed) && !errors.Is(err, bucket.ErrNotFound) {
			return object, err
		}
		look = true
	}
	return bucket.Object{}, j.contended(j.key)
}

// look decides anew by what is at the key: it is what this event wrote and is
// taken up, it is ours and may be overwritten, nothing is there, or it is a
// stranger's.
func (j *job) look(ctx context.Context, e events.MediaUploaded, condition *bucket.Condition) (bucket.Object, bool, error) {
	object, err := j.bucket.Head(ctx, j.key, true)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		*condition = bucket.Condition{IfNoneMatch: true}
		return object, false, nil
	case err != nil:
		return object, false, err
	case !j.ours(object):
		return object, false, j.keyTaken(j.key)
	case j.complete(e, object):
		j.result.Wrote = true
		return object, true, nil
	}
	*condition = bucket.Condition{IfMatch: object.ETag}
	return object, false, nil
}

// complete tells whether an object is what this event would write, so that its
// bytes needn't be sent again, even if the source is gone meanwhile.
func (j *job) complete(e events.MediaUploaded, object bucket.Object) bool {
	switch {
	case !j.stamped(object, j.version), j.view.Object.HoldsKey(j.key) && object.ETag == j.view.Object.ETag:
		return false
	case e.Size != nil && *e.Size != object.Size:
		return false
	case e.ChecksumSHA256 != "":
		return e.ChecksumSHA256 == object.SHA256
	}
	return j.written(object)
}

func (j *job) send(ctx context.Context, e events.MediaUploaded, condition bucket.Condition) (bucket.Object, error) {
	content, err := j.Sources.Open(ctx, media.Upload{
		ServiceID: j.delivery.Event.ServiceID, Source: e.Source, Size: e.Size, SHA256: e.ChecksumSHA256,
		Slow: j.delivery.Slow,
	})
	if err != nil {
		return bucket.Object{}, err
	}
	// The bytes are verified while they are read: closing has nothing to say.
	defer func() { _ = content.Body.Close() }()
	j.result.Wrote = true
	etag, err := j.bucket.Put(ctx, bucket.PutInput{
		Key: j.key, Body: content.Body, Size: content.Size, SHA256: e.ChecksumSHA256,
		ContentType: e.ContentType, Stamp: j.stamp(j.version), Condition: condition,
	})
	return bucket.Object{Key: j.key, ETag: etag, Size: content.Size}, err
}
