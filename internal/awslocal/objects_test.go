package awslocal_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

func TestObjectComesBackAsItWasPut(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Prefix: "media"})
	client := w.session()
	etag, err := w.put(client, "media/a.png", "picture", func(in *s3.PutObjectInput) {
		in.ContentType = aws.String("image/png")
		in.Metadata = map[string]string{"upload-source": "microcms", "microcms-status": "public"}
	})
	check(t, err, "")
	got, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("media/a.png")})
	check(t, err, "")
	type seen struct {
		Body, ETag, Type string
		Length           int64
		Meta             map[string]string
	}
	want := seen{"picture", etag, "image/png", 7, map[string]string{"upload-source": "microcms", "microcms-status": "public"}}
	if diff := cmp.Diff(want, seen{readAll(t, got.Body), *got.ETag, *got.ContentType, *got.ContentLength, got.Metadata}); diff != "" {
		t.Error(diff)
	}
	if refused := w.Refused(); len(refused) != 0 {
		t.Errorf("refused: %+v", refused)
	}
}

func TestConditionsOfWritesAndDeletes(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	none, wrong := aws.String("*"), aws.String(`"0123"`)

	_, err := w.put(client, "k", "one", func(in *s3.PutObjectInput) { in.IfNoneMatch = none })
	check(t, err, "")
	_, err = w.put(client, "k", "two", func(in *s3.PutObjectInput) { in.IfNoneMatch = none })
	check(t, err, "PreconditionFailed")
	_, err = w.put(client, "k", "two", func(in *s3.PutObjectInput) { in.IfMatch = wrong })
	check(t, err, "PreconditionFailed")
	_, err = w.put(client, "absent", "two", func(in *s3.PutObjectInput) { in.IfMatch = wrong })
	check(t, err, "NoSuchKey")
	check(t, w.copy(client, "k", "copy", func(in *s3.CopyObjectInput) { in.IfNoneMatch = none }), "")
	check(t, w.copy(client, "k", "copy", func(in *s3.CopyObjectInput) { in.IfNoneMatch = none }), "PreconditionFailed")
	check(t, w.copy(client, "k", "copy", func(in *s3.CopyObjectInput) { in.IfMatch = wrong }), "PreconditionFailed")
	check(t, w.copy(client, "k", "absent", func(in *s3.CopyObjectInput) { in.IfMatch = wrong }), "NoSuchKey")
	check(t, w.copy(client, "k", "other", func(in *s3.CopyObjectInput) { in.CopySourceIfMatch = wrong }), "PreconditionFailed")
	check(t, w.copy(client, "absent", "other"), "NoSuchKey")
	check(t, w.copy(client, "k", "k"), "InvalidRequest")

	remove := func(key string, etag *string) error {
		_, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &w.customer.Bucket, Key: &key, IfMatch: etag})
		return err
	}
	check(t, remove("k", wrong), "PreconditionFailed")
	check(t, remove("absent", wrong), "NoSuchKey")
	check(t, remove("absent", nil), "")
	object, _, _ := w.GetDirect(w.customer.Bucket, "k")
	check(t, remove("k", &object.ETag), "")
	if diff := cmp.Diff([]string{"copy"}, w.Keys(w.customer.Bucket)); diff != "" {
		t.Error(diff)
	}
}

func TestRaceForAKeyHasOneWinner(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	_, err := w.put(client, "source", "x")
	check(t, err, "")
	attempts := map[string]func(n int) error{
		"PUT": func(n int) error {
			_, err := w.put(client, "put", fmt.Sprint(n), func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
			return err
		},
		"COPY": func(int) error {
			return w.copy(client, "source", "copy", func(in *s3.CopyObjectInput) { in.IfNoneMatch = aws.String("*") })
		},
	}
	for name, attempt := range attempts {
		var won, lost atomic.Int32
		var all sync.WaitGroup
		for n := range 32 {
			all.Go(func() {
				switch codeOf(attempt(n)) {
				case "":
					won.Add(1)
				case "PreconditionFailed":
					lost.Add(1)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 || lost.Load() != 31 {
			t.Errorf("%s: %d won and %d lost, want 1 and 31", name, won.Load(), lost.Load())
		}
	}
}

func TestOddKeysSurviveByteForByte(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	keys := []string{
		" lead", "a", "a b+c", "a/b", "a//b", "./dot", "../up", "100%.png", "%2F", "quote'\"", "emoji😀", "日本語\u30AC.png", "日本語\u30AB\u3099.png",
		"#hash", "q?x=1&y", "til~de", "star*", "a\tb", "<&>", "a;b", "@:=,$!()[]{}|^`\\", "k" + strings.Repeat("é", 509) + "zzzzz",
	}
	want := map[string]string{}
	for _, key := range keys {
		// Every key is a PUT's, a COPY's source, its target and a DELETE's.
		source := "\U0001F600" + key[:len(key)-4*(len(key)/1024)]
		_, err := w.put(client, source, key)
		check(t, err, "")
		check(t, w.copy(client, source, key), "")
		_, err = client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &w.customer.Bucket, Key: &source})
		check(t, err, "")
		want[key] = key
	}
	got := map[string]string{}
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{
		Bucket: &w.customer.Bucket, MaxKeys: aws.Int32(4), EncodingType: types.EncodingTypeUrl,
	})
	last := ""
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		check(t, err, "")
		for _, o := range page.Contents {
			key := must(url.QueryUnescape(*o.Key))
			got[key] = w.content(key)
			if key <= last {
				t.Errorf("%q is listed after %q", key, last)
			}
			last = key
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := w.put(client, strings.Repeat("k", 1025), ""); codeOf(err) != "KeyTooLongError" {
		t.Errorf("1,025 bytes: %v", err)
	}
}

func TestDeleteObjectsTellsOfEachKey(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Prefix: "media"})
	client := w.session()
	for _, key := range []string{"media/a", "media/b", "mediafoo/c"} {
		must(w.PutDirect(w.customer.Bucket, key, []byte(key), awslocal.Stranger{}))
	}
	out, err := client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: &w.customer.Bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{
		{Key: aws.String("media/a")}, {Key: aws.String("media/b"), ETag: aws.String(`"wrong"`)}, {Key: aws.String("mediafoo/c")}, {Key: aws.String("media/absent")},
	}}})
	check(t, err, "")
	got := map[string]string{}
	for _, one := range out.Deleted {
		got[*one.Key] = "deleted"
	}
	for _, one := range out.Errors {
		got[*one.Key] = *one.Code
	}
	want := map[string]string{"media/a": "deleted", "media/b": "PreconditionFailed", "mediafoo/c": "AccessDenied", "media/absent": "deleted"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"media/b", "mediafoo/c"}, w.Keys(w.customer.Bucket)); diff != "" {
		t.Error(diff)
	}
	if refused := w.Refused(); len(refused) != 1 || refused[0].Key != "mediafoo/c" || refused[0].API != "s3:DeleteObjects" {
		t.Errorf("refused: %+v", refused)
	}
	many := make([]types.ObjectIdentifier, 1001)
	for i := range many {
		many[i].Key = aws.String(fmt.Sprint("media/", i))
	}
	_, err = client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: &w.customer.Bucket, Delete: &types.Delete{Objects: many}})
	check(t, err, "MalformedXML")
}
