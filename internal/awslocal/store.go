package awslocal

import (
	"encoding/hex"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// store holds all buckets. One lock covers conditions and their effects, so
// that a race for a key has one winner.
type store struct {
	mu      sync.Mutex
	buckets map[string]*bucket
	domains map[string]*bucket // delivery domains, by host name
}

type bucket struct {
	name, region, owner string
	kmsKey              string // ARN; empty: not encrypted by KMS
	// rules are replaced while calls run.
	rules atomic.Pointer[bucketRules]

	objects map[string]*object
	order   keyOrder
}

// bucketRules are what a customer may change of a bucket. They don't change
// themselves: a change makes new ones.
type bucketRules struct {
	policy *policy // nil when the bucket has none
	// kmsDenied holds the keys of objects whose KMS key refuses everyone.
	kmsDenied map[string]bool
}

// object is one key's content; it is replaced, never changed.
type object struct {
	key         string
	body        *blob
	etag        string // quoted
	contentType string
	metadata    map[string]string
	tags        map[string]string
	modified    time.Time
	// checksum is the algorithm whose sum is kept and shown: the one that the
	// client sent, else S3's own.
	checksum string
	// system holds headers kept as they came: Cache-Control and its like.
	system map[string]string
}

// keyOrder lists keys in UTF-8 byte order. Deletions cost nothing and
// insertions are merged when somebody lists, so that neither a stream of
// writes nor a listing that deletes page by page sorts again and again.
type keyOrder struct {
	sorted []string // may hold deleted keys
	added  []string // since the last listing
}

// keys returns the sorted keys of the bucket. The caller holds the lock and
// must not keep the slice beyond it.
func (b *bucket) keys() []string {
	if len(b.order.added) > 0 || len(b.order.sorted) > 2*len(b.objects)+1000 {
		slices.Sort(b.order.added)
		merged := merge(b.order.sorted, b.order.added)
		b.order.sorted = slices.DeleteFunc(merged, func(key string) bool { return b.objects[key] == nil })
		b.order.added = nil
	}
	return b.order.sorted
}

// merge joins two sorted lists, each key once.
func merge(a, b []string) []string {
	merged := make([]string, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0] < b[0] {
			merged, a = append(merged, a[0]), a[1:]
		} else {
			merged, b = append(merged, b[0]), b[1:]
		}
	}
	return slices.Compact(append(append(merged, a...), b...))
}

// put replaces what stands at the object's key. The caller holds the lock and
// hands over its reference to the body.
func (b *bucket) put(o *object) {
	if old := b.objects[o.key]; old != nil {
		old.body.release()
	} else {
		b.order.added = append(b.order.added, o.key)
	}
	b.objects[o.key] = o
}

// remove deletes a key. The caller holds the lock.
func (b *bucket) remove(key string) {
	if old := b.objects[key]; old != nil {
		old.body.release()
		delete(b.objects, key)
	}
}

// newETag is the content's MD5, except under KMS, where it is nothing that a
// client could compute.
func (b *bucket) newETag(body *blob) string {
	if b.kmsKey != "" {
		return `"` + hex.EncodeToString([]byte(newID(16))) + `"`
	}
	return `"` + hex.EncodeToString(body.sums.md5) + `"`
}

// checkWrite tells whether a PUT's or COPY's conditions hold for what stands
// at the key. The caller holds the lock until the write is done.
func checkWrite(key string, old *object, ifMatch, ifNoneMatch string) error {
	switch {
	case ifNoneMatch != "" && old != nil:
		return preconditionFailed("If-None-Match")
	case ifMatch != "" && old == nil:
		return noSuchKey(key)
	case ifMatch != "" && !sameETag(ifMatch, old.etag):
		return preconditionFailed("If-Match")
	}
	return nil
}

// checkDelete is checkWrite for a DELETE.
func checkDelete(key string, old *object, ifMatch string) error {
	switch {
	case ifMatch == "":
		return nil
	case old == nil:
		return noSuchKey(key)
	case !sameETag(ifMatch, old.etag):
		return preconditionFailed("If-Match")
	}
	return nil
}

// sameETag compares a condition with an ETag; S3 takes it with and without
// quotes, and * for any.
func sameETag(condition, etag string) bool {
	return condition == "*" || condition == etag || `"`+condition+`"` == etag
}
