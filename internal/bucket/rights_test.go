package bucket_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestASessionEndsAtItsPrefixWhateverTheRoleAllows(t *testing.T) {
	t.Parallel()
	c := newCustomer(t, func(_ *awslocal.Config, c *awslocal.Customer) { c.Policy = everything })
	for _, key := range []string{"mediafoo/a", "production/a"} {
		if _, err := c.PutDirect(c.Bucket, key, []byte("x"), awslocal.Stranger{}); err != nil {
			t.Fatal(err)
		}
	}
	b := c.open(t)
	for _, key := range []string{"mediafoo/a", "production/a"} {
		if _, _, err := b.Get(t.Context(), key, 10); failure.Of(err) == nil || failure.Of(err).Code != failure.Denied {
			t.Errorf("%s: %v", key, err)
		}
		if _, err := b.Head(t.Context(), key, false); failure.Of(err) == nil || failure.Of(err).Code != failure.Denied {
			t.Errorf("%s: %v", key, err)
		}
	}
	copying := c.open(t, func(a *bucket.Account) { a.ReadPrefix = aws.String("production") })
	if _, err := copying.Copy(t.Context(), bucket.CopyInput{
		SourceKey: "production/a", Key: "media/a", Stamp: stamp, Condition: bucket.Condition{IfNoneMatch: true},
	}); err != nil {
		t.Errorf("an environment's copy: %v", err)
	}
}

func TestASessionEndsAtAPrefixThatLooksLikeAPattern(t *testing.T) {
	t.Parallel()
	for prefix, outside := range map[string]string{
		"a*b": "axb/k", "a?b": "axb/k", "${*}": "*/k", "${aws:username}": "/k", "${aws:PrincipalAccount}": "123456789012/k",
		"${a, 'all'}": "all/k", "a${": "a/k", "${a": "a/k", "$": "k",
	} {
		c := newCustomer(t, func(_ *awslocal.Config, c *awslocal.Customer) { c.Policy, c.Prefix = everything, prefix })
		b := c.open(t)
		c.put(t, b, prefix+"/k", "x")
		if _, _, err := b.Get(t.Context(), outside, 10); failure.Of(err) == nil || failure.Of(err).Code != failure.Denied {
			t.Errorf("below the prefix %s, a session reads %s: %v", prefix, outside, err)
		}
	}
}

func TestManyCallersShareOneSession(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			b := c.open(t)
			in := put(stream("x"), 1)
			in.Key = fmt.Sprintf("media/%d", i)
			if _, err := b.Put(t.Context(), in); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := c.Counts()["sts:AssumeRole"]; n != 1 {
		t.Errorf("%d calls of AssumeRole", n)
	}
}

func TestAnExpiredSessionCostsOneAttempt(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	b := c.open(t)
	etag := c.put(t, b, "media/a", "x")
	c.ExpireSessions()
	err := b.Delete(t.Context(), "media/a", etag)
	if f := failure.Of(err); f == nil || f.Class != failure.Transient || f.Code != bucket.StaleCredentials {
		t.Errorf("got %v", err)
	}
	if err := b.Delete(t.Context(), "media/a", etag); err != nil {
		t.Error(err)
	}
	c.put(t, b, "media/a", "x")
	c.ExpireSessions()
	if _, err := b.Head(t.Context(), "media/a", false); failure.Of(err) == nil || failure.Of(err).Code != bucket.StaleCredentials {
		t.Errorf("HEAD, which has no body to say why: %v", err)
	}
}

func TestTheOwnerIsHeldToOnEveryCall(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	etag := c.put(t, c.open(t), "media/a", "x")
	right := c.open(t, func(a *bucket.Account) { a.Owner = "123456789012" })
	wrong := c.open(t, func(a *bucket.Account) { a.Owner = "210987654321" })
	calls := map[string]func(*bucket.Bucket) error{
		"put": func(b *bucket.Bucket) error {
			in := put(stream("x"), 1)
			in.Condition = bucket.Condition{IfNoneMatch: true}
			in.Key = "media/b"
			_, err := b.Put(t.Context(), in)
			return err
		},
		"head":   func(b *bucket.Bucket) error { _, err := b.Head(t.Context(), "media/a", false); return err },
		"get":    func(b *bucket.Bucket) error { _, _, err := b.Get(t.Context(), "media/a", 10); return err },
		"list":   func(b *bucket.Bucket) error { _, _, err := b.List(t.Context(), "media/", ""); return err },
		"region": func(b *bucket.Bucket) error { _, err := b.Region(t.Context()); return err },
		"copy": func(b *bucket.Bucket) error {
			_, err := b.Copy(t.Context(), bucket.CopyInput{SourceKey: "media/a", SourceETag: etag, Key: "media/c", Stamp: stamp, Condition: bucket.Condition{IfNoneMatch: true}})
			return err
		},
		"delete many": func(b *bucket.Bucket) error { _, err := b.DeleteMany(t.Context(), []string{"media/none"}); return err },
		"delete":      func(b *bucket.Bucket) error { return b.Delete(t.Context(), "media/b", "") },
	}
	for _, name := range []string{"put", "head", "get", "list", "region", "copy", "delete many", "delete"} {
		if err := calls[name](wrong); failure.Of(err) == nil || failure.Of(err).Class != failure.Integration {
			t.Errorf("%s in another's bucket: %v", name, err)
		}
		if err := calls[name](right); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
