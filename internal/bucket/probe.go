package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// cleanUpTimeout is how long a probe that was cut off still takes to remove
// what it wrote.
const cleanUpTimeout = 15 * time.Second

// Probe uses every permission that events need: it lists, puts, reads, copies
// and deletes an object of its own below the prefix. It leaves nothing behind, or
// its error says what.
func (b *Bucket) Probe(ctx context.Context) error {
	err := b.probe(ctx)
	if err != nil && failure.Of(err).Class == failure.Integration {
		// The customer may mend it by what a running session doesn't notice,
		// such as by revoking older sessions: the next probe opens a new one.
		b.session.credentials.Invalidate()
	}
	return err
}

func (b *Bucket) probe(ctx context.Context) (err error) {
	name := fmt.Sprintf(".%s-probe-%s", b.pool.brand, rand.Text())
	key, err := Key(b.account.Prefix, "", name)
	if err != nil {
		return err
	}
	// A space, a plus sign and Japanese: where encodings go wrong.
	copied, err := Key(b.account.Prefix, "", name+" +コピー")
	if err != nil {
		return err
	}
	content := []byte("A test of the connection. It may be deleted.\n")
	stamp := Stamp{ServiceID: b.account.ServiceID, Version: time.Now().UnixMicro()}

	// What can't be deleted isn't written: such an account is probed again and
	// again. A condition that no object meets leaves no delete marker.
	if err := b.Delete(ctx, key, `"none"`); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConditionFailed) {
		return err
	}
	if _, err := b.exists(ctx, key); err != nil {
		return err
	}

	maybeWritten := map[string]bool{}
	defer func() { err = b.cleanUp(ctx, maybeWritten, err) }()
	// Whoever gets no clear answer can't know whether the object is there.
	written := func(key string, err error) {
		maybeWritten[key] = err == nil || failure.Of(err).Class == failure.Transient || failure.Of(err).Class == failure.Interrupted
	}

	etag, err := b.Put(ctx, PutInput{
		Key: key, Body: bytes.NewReader(content), Size: int64(len(content)), ContentType: "text/plain",
		Stamp: stamp, Condition: Condition{IfNoneMatch: true},
	})
	written(key, err)
	if err != nil {
		return err
	}
	seen, object, err := b.Get(ctx, key, 1<<10)
	if err != nil {
		return err
	}
	if !bytes.Equal(seen, content) || !object.HasStamp(b.pool.brand, stamp) {
		return failure.New(failure.Integration, NotAsWritten, "%s: the object reads differently from how it was written", b.call("GetObject", key))
	}
	copyETag, err := b.Copy(ctx, CopyInput{
		SourceKey: key, SourceETag: etag, Key: copied, ContentType: "text/plain",
		Stamp: stamp, Condition: Condition{IfNoneMatch: true},
	})
	written(copied, err)
	if err != nil {
		return err
	}
	for _, object := range []struct{ key, etag string }{{copied, copyETag}, {key, etag}} {
		if err := b.Delete(ctx, object.key, object.etag); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		delete(maybeWritten, object.key)
	}
	return nil
}

// cleanUp deletes what may have been written, cancelled or not. The keys are
// random, so that nobody else's object is met.
func (b *Bucket) cleanUp(ctx context.Context, maybeWritten map[string]bool, cause error) error {
	ctx, cancel := context.WithTimeout(withoutGuard(context.WithoutCancel(ctx)), cleanUpTimeout)
	defer cancel()
	if errors.Is(cause, ErrInDoubt) {
		// What was cancelled may take effect after it would be removed.
		select {
		case <-time.After(LateWrites):
		case <-ctx.Done():
		}
	}
	for key, maybe := range maybeWritten {
		if !maybe {
			continue
		}
		if err := b.Delete(ctx, key, ""); err != nil && !errors.Is(err, ErrNotFound) {
			cause = fmt.Errorf("%w; the test object %q may be left in bucket %q", cause, key, b.account.Bucket)
		}
	}
	if cause == nil {
		return nil
	}
	return failure.Of(cause)
}
