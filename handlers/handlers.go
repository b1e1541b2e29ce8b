// Package handlers does what each event asks for in the customer's bucket: one
// file per event. A handler changes nothing in the database; it returns what
// the transaction that completes its event is to record.
package handlers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/media"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Handlers has what the handlers work with.
type Handlers struct {
	Ledger   *ledger.Store
	Settings *integration.Store
	Buckets  *bucket.Pool
	Sources  *media.Sources
	Outbox   *outbox.Store
	// Environments does the environments' events.
	Environments Environments
}

// Environments copies and deletes whole environments.
type Environments interface {
	// Create opens the copy that EnvironmentCreated stands for.
	Create(ctx context.Context, d *outbox.Delivery) (outcome string, err error)
	// Delete empties the environment's directory. It asks to be waited for,
	// by an *outbox.Wait, while copies out of it are owed.
	Delete(ctx context.Context, d *outbox.Delivery) (outcome string, err error)
	// CopyFirst makes copies that are owed and must come before the event.
	CopyFirst(ctx context.Context, d *outbox.Delivery, names []string) error
}

// Result is what a handled event leaves behind.
type Result struct {
	Outcome string
	Effects ledger.Effects
	// Target is where the event writes, and under which version; nil if it
	// writes nothing. Wrote tells that this attempt may have written there.
	// Both also count when the handler fails.
	Target *ledger.PossibleWrite
	Wrote  bool
	// VersionFell tells that the media had a higher version before: the clocks of
	// the CMS's nodes disagree.
	VersionFell bool
}

// lookAgain is after how long an event runs again whose key has just become
// free.
const lookAgain = 10 * time.Millisecond

// conflictRounds is how often a write that met something unexpected is
// decided anew, before it counts as contended.
const conflictRounds = 4

// job is one event at work in its customer's bucket.
type job struct {
	*Handlers
	delivery *outbox.Delivery
	settings integration.Settings
	bucket   *bucket.Bucket
	view     ledger.View
	mediaID  string
	version  int64
	// key is where the event writes or, without a ledger row, would delete.
	key    string
	result *Result
}

// prepare reads all that must be known before the bucket is touched. A nil job
// means that the result is final.
func (h *Handlers) prepare(ctx context.Context, d *outbox.Delivery, mediaID string, version int64,
	fileName string, writes bool) (*job, *Result, error) {
	result := &Result{}
	j := &job{Handlers: h, delivery: d, mediaID: mediaID, version: version, result: result}
	var unusable error
	found, ok, err := h.Settings.With(ctx, d.Event.LaneID, func(i integration.Integration) (_ int64, err error) {
		j.key, unusable = bucket.Key(i.Prefix, i.Directory, fileName)
		j.view, err = h.Ledger.View(ctx, d.Event.LaneID, mediaID, i.Bucket, j.key)
		return j.view.SettingsVersion, err
	})
	if ok && writes && unusable == nil {
		result.Target = &ledger.PossibleWrite{LaneID: d.Event.LaneID, MediaID: mediaID, Key: j.key, Version: version}
	}
	if err != nil {
		return nil, result, err
	}
	if !ok {
		outcome, err := h.withoutSettings(ctx, d)
		result.Outcome = outcome
		return nil, result, err
	}
	if unusable != nil && writes {
		return nil, result, unusable
	}
	j.settings = found.Settings
	result.VersionFell = j.view.Object != nil && j.view.Object.Sequence < d.Event.Sequence && j.view.Object.Version > version
	if j.view.Object.Newer(d.Event.Sequence) {
		result.Outcome = outbox.Superseded
		if d.MayHaveRun && writes {
			err = j.lookForLeftover(ctx, found)
		}
		return nil, result, err
	}
	if unusable != nil && !j.view.Object.Live() {
		return nil, result, unusable
	}
	if err := j.claimLeftovers(); err != nil {
		return nil, result, err
	}
	if j.bucket, err = h.Buckets.Bucket(found.Account()); err != nil {
		return nil, result, err
	}
	return j, result, nil
}

// lookForLeftover notes that an earlier attempt of a superseded event has left
// nothing, where that is so: a possible write would else be remembered, and lock
// the settings, until the media's next event, which may never come.
func (j *job) lookForLeftover(ctx context.Context, found integration.Integration) (err error) {
	if j.result.Target == nil {
		return nil
	}
	if j.view.HeldByOther() || j.view.Object.HoldsKey(j.key) {
		j.result.Target = nil
		return nil
	}
	if j.bucket, err = j.Buckets.Bucket(found.Account()); err != nil {
		return err
	}
	object, err := j.bucket.Head(ctx, j.key, false)
	if errors.Is(err, bucket.ErrNotFound) || err == nil && !j.ours(object) {
		j.result.Target = nil
		return nil
	}
	return err
}

// withoutSettings: a service that uses the feature nowhere has nothing to do;
// one that does lacks settings that an operator can still supply.
func (h *Handlers) withoutSettings(ctx context.Context, d *outbox.Delivery) (string, error) {
	used, err := h.Settings.AnyOfService(ctx, d.Event.ServiceID)
	if err != nil || !used {
		return outbox.Skipped, err
	}
	return "", failure.New(failure.Permanent, failure.NoIntegration,
		"environment %q of service %s has no integration: set it with `ownbucket integration set`, then retry the event",
		d.Event.EnvironmentID, d.Event.ServiceID)
}

// claimLeftovers puts the event among those of the names at which it will settle
// what earlier events of its media may have left. What another media's event is
// just writing there may bear the same metadata, and is in no ledger yet.
func (j *job) claimLeftovers() error {
	var names []string
	for _, write := range j.view.PossibleWrites {
		name := outbox.NameResource(bucket.FileName(write.Key))
		if !j.delivery.Event.Shares(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return &outbox.Wait{For: lookAgain, Behind: names, Reason: "something that an earlier event may have left is to be settled"}
}

// claimKey refuses a key that another media holds. Where an earlier event of
// that media may still give it up, this event waits for it.
func (j *job) claimKey(ctx context.Context) error {
	if !j.view.HeldByOther() {
		return nil
	}
	holder := j.view.Holder
	earlier, err := j.Outbox.Unfinished(ctx, holder.LaneID, holder.MediaID, j.delivery.Event.Sequence)
	if err != nil {
		return err
	}
	if earlier != 0 && holder.LaneID == j.delivery.Event.LaneID {
		return &outbox.Wait{
			For: time.Second, Behind: []string{outbox.MediaResource(holder.MediaID)}, Reason: "an earlier event may free the key", On: earlier,
		}
	}
	if earlier != 0 {
		return &outbox.Wait{For: time.Second, Reason: "an earlier event of another environment may free the key", On: earlier}
	}
	// The holder's last event may have ended since the ledger was read.
	now, err := j.Ledger.Holder(ctx, j.settings.Bucket, j.key)
	if err != nil {
		return err
	}
	if now == nil || now.LaneID != holder.LaneID || now.MediaID != holder.MediaID {
		return &outbox.Wait{For: lookAgain, Reason: "the key was given up just now"}
	}
	// Another environment's may be another service's, which is not named.
	name := "another environment's media"
	if holder.LaneID == j.delivery.Event.LaneID {
		name = fmt.Sprintf("media %q", holder.MediaID)
	}
	return failure.New(failure.Permanent, failure.KeyTaken,
		"media %q of service %s can't have key %q in bucket %s: %s holds it; rename one of them",
		j.mediaID, j.delivery.Event.ServiceID, j.key, j.settings.Bucket, name)
}

// keyTaken refuses a key where a stranger's object was seen. So nothing of ours
// is there, and nothing that is still on its way will get there.
func (j *job) keyTaken(key string) error {
	j.result.Target = nil
	return failure.New(failure.Permanent, failure.KeyTaken,
		"media %q of service %s can't have key %q in bucket %s: an object that isn't ours is there; "+
			"rename the media, or have the customer move the object away",
		j.mediaID, j.delivery.Event.ServiceID, key, j.settings.Bucket)
}

// ours tells whether an object at a key is one that we wrote: for this media, of
// this event's version, the ledger's, or a possible write's; or, where the event
// writes, what another media may have left there. That no other media holds the
// key is the caller's to know.
func (j *job) ours(object bucket.Object) bool {
	versions := []int64{j.version}
	if j.view.Object.HoldsKey(object.Key) {
		versions = append(versions, j.view.Object.Version)
	}
	for _, write := range j.view.PossibleWrites {
		if write.Key == object.Key {
			versions = append(versions, write.Version)
		}
	}
	if object.Key == j.key && j.result.Target != nil {
		for _, write := range j.view.OthersWrites {
			versions = append(versions, write.Version)
		}
	}
	return slices.ContainsFunc(versions, func(v int64) bool { return j.stamped(object, v) })
}

// written tells whether an object was written for this very event. Where another
// event of the same second may have written at the key, be it of this media or
// another, nobody can tell: the metadata's version has no more than seconds. A
// possible write of this version is another event's where this one never ran.
func (j *job) written(object bucket.Object) bool {
	if !j.stamped(object, j.version) {
		return false
	}
	if object.Key == j.key && slices.ContainsFunc(j.view.OthersWrites, func(w ledger.PossibleWrite) bool {
		return j.stamped(object, w.Version)
	}) {
		return false
	}
	return !slices.ContainsFunc(j.view.PossibleWrites, func(w ledger.PossibleWrite) bool {
		return w.Key == object.Key && (w.Version != j.version || !j.delivery.MayHaveRun) && j.stamped(object, w.Version)
	})
}

func (j *job) stamped(object bucket.Object, version int64) bool {
	return object.HasStamp(j.Buckets.Brand(), j.stamp(version))
}

func (j *job) stamp(version int64) bucket.Stamp {
	return bucket.Stamp{ServiceID: j.settings.StampServiceID(), Version: version}
}

// deleteOurs deletes the object at a key that should have the given ETag. What
// is there instead goes only if it is ours; a stranger's object stays.
func (j *job) deleteOurs(ctx context.Context, key, etag string) error {
	for range conflictRounds {
		err := j.bucket.Delete(ctx, key, etag)
		switch {
		case err == nil, errors.Is(err, bucket.ErrNotFound):
			return nil
		case !errors.Is(err, bucket.ErrConditionFailed):
			return err
		}
		object, err := j.bucket.Head(ctx, key, false)
		if errors.Is(err, bucket.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if !j.ours(object) {
			return nil
		}
		etag = object.ETag
	}
	return j.contended(key)
}

func (j *job) contended(key string) error {
	return failure.New(failure.Transient, bucket.Conflict,
		"key %q in bucket %s of service %s changes faster than we can follow", key, j.settings.Bucket,
		j.delivery.Event.ServiceID)
}

// settleWrites removes what earlier events that ended without completing may
// have left, at keys that aren't in use after this event.
func (j *job) settleWrites(ctx context.Context, inUse ...string) error {
	j.result.Effects.Settled = j.view.PossibleWrites
	done := make(map[string]bool)
	for _, write := range j.view.PossibleWrites {
		if done[write.Key] || slices.Contains(inUse, write.Key) {
			continue
		}
		done[write.Key] = true
		if err := j.settleWrite(ctx, write); err != nil {
			return fmt.Errorf("remove what an earlier event left: %w", err)
		}
	}
	return nil
}

// settleWrite removes what was left at one key. Who holds the key is asked anew
// whenever something else is there than was seen: a copy into the environment, or
// another service's event, which no name keeps away, may just have written there.
func (j *job) settleWrite(ctx context.Context, write ledger.PossibleWrite) error {
	for range conflictRounds {
		object, err := j.bucket.Head(ctx, write.Key, false)
		if errors.Is(err, bucket.ErrNotFound) {
			return nil
		}
		if err != nil || !j.ours(object) {
			return err
		}
		holder, err := j.Ledger.Holder(ctx, j.settings.Bucket, write.Key)
		if err != nil {
			return err
		}
		if holder != nil && (holder.LaneID != write.LaneID || holder.MediaID != write.MediaID) {
			return nil
		}
		switch err := j.bucket.Delete(ctx, write.Key, object.ETag); {
		case err == nil, errors.Is(err, bucket.ErrNotFound):
			return nil
		case !errors.Is(err, bucket.ErrConditionFailed):
			return err
		}
	}
	return j.contended(write.Key)
}

// stored records the object that the event leaves at its key.
func (j *job) stored(object bucket.Object) {
	j.becomes(outbox.Done, &ledger.Object{
		Bucket: &j.settings.Bucket, Key: &j.key,
		ContentType: object.ContentType, Size: object.Size, ETag: object.ETag,
	})
}

// buried records that the media is gone.
func (j *job) buried(outcome string) { j.becomes(outcome, &ledger.Object{}) }

func (j *job) becomes(outcome string, object *ledger.Object) {
	object.LaneID, object.MediaID = j.delivery.Event.LaneID, j.mediaID
	object.Version, object.Sequence = j.version, j.delivery.Event.Sequence
	j.result.Outcome = outcome
	j.result.Effects.Put, j.result.Effects.Frees = object, j.view.Frees(object)
}
