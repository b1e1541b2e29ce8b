package bucket_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestHeadReadsTheStampAndTheChecksum(t *testing.T) {
	t.Parallel()
	w := newWire(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("ETag", `"e1"`)
		h.Set("Content-Length", "5")
		h.Set("Content-Type", "image/png")
		h.Set("X-Amz-Meta-Upload-Source", "microcms")
		h.Set("X-Amz-Meta-Microcms-Service", "=?UTF-8?B?44K144O844OT44K5?=")
		h.Set("X-Amz-Meta-Microcms-Version", "20250812154922")
		h.Set("X-Amz-Checksum-Sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")
	})
	got, err := w.bucket(t).Head(t.Context(), "media/a.png", true)
	if err != nil {
		t.Fatal(err)
	}
	want := bucket.Object{
		Key: "media/a.png", ETag: `"e1"`, Size: 5, ContentType: "image/png",
		UploadSource: "microcms", ServiceID: "サービス", Version: "20250812154922",
		SHA256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if mode := w.only(t).header.Get("X-Amz-Checksum-Mode"); mode != "ENABLED" {
		t.Errorf("checksum mode %q", mode)
	}
	own := bucket.Stamp{ServiceID: "サービス", Version: stamp.Version}
	if !got.HasStamp("microcms", own) {
		t.Error("our own object isn't known as such")
	}
}

func TestHasStampWantsSourceServiceAndVersion(t *testing.T) {
	t.Parallel()
	ours := bucket.Object{UploadSource: "microcms", ServiceID: service, Version: "20250812154922"}
	if !ours.HasStamp("microcms", stamp) {
		t.Fatal("not ours")
	}
	for name, change := range map[string]func(*bucket.Object){
		"source":  func(o *bucket.Object) { o.UploadSource = "" },
		"service": func(o *bucket.Object) { o.ServiceID = "other" },
		"version": func(o *bucket.Object) { o.Version = "20250812154923" },
	} {
		o := ours
		change(&o)
		if o.HasStamp("microcms", stamp) {
			t.Errorf("ours in spite of another %s", name)
		}
	}
}

func TestHeadRefusedIsCheckedByList(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		answers []http.HandlerFunc
		class   failure.Class
		code    string
	}{
		{"missing", []http.HandlerFunc{s3Error(404, "", "")}, failure.Permanent, failure.ObjectMissing},
		{"403, missing", []http.HandlerFunc{s3Error(403, "", ""), listing("", "media/a.png.bak")}, failure.Permanent, failure.ObjectMissing},
		{"403, there", []http.HandlerFunc{s3Error(403, "", ""), listing("", "media/a.png")}, failure.Integration, failure.Denied},
		{"403, and LIST says why", []http.HandlerFunc{s3Error(403, "", ""), s3Error(403, "InvalidAccessKeyId", "")}, failure.Integration, bucket.CredentialsRefused},
		{"400, and LIST says why", []http.HandlerFunc{s3Error(400, "", ""), s3Error(400, "ExpiredToken", "")}, failure.Transient, bucket.StaleCredentials},
		{"redirected", []http.HandlerFunc{s3Error(301, "", "")}, failure.Integration, bucket.WrongRegion},
		{"busy", []http.HandlerFunc{s3Error(503, "", ""), s3Error(503, "", ""), s3Error(503, "", "")}, failure.Transient, failure.Throttled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, each(t, tc.answers...))
			_, err := w.bucket(t).Head(t.Context(), "media/a.png", false)
			f := failure.Of(err)
			if f == nil || f.Class != tc.class || f.Code != tc.code {
				t.Errorf("got %v, want %s %s", err, tc.class, tc.code)
			}
			if missing := tc.code == failure.ObjectMissing; errors.Is(err, bucket.ErrNotFound) != missing {
				t.Errorf("ErrNotFound: want %t: %v", missing, err)
			}
		})
	}
}

func TestListDecodesKeysPageByPage(t *testing.T) {
	t.Parallel()
	w := newWire(t, each(t,
		listing("next page", "media/a+b%2B%25.png", "media/%01%E3%83%A0"),
		listing("", "media/z"),
	))
	b := w.bucket(t)
	page, next, err := b.List(t.Context(), "media/", "")
	if err != nil {
		t.Fatal(err)
	}
	want := []bucket.Listed{{Key: "media/a b+%.png", ETag: `"e1"`, Size: 3}, {Key: "media/\x01ム", ETag: `"e1"`, Size: 3}}
	if diff := cmp.Diff(want, page); diff != "" {
		t.Error(diff)
	}
	if page, next, err = b.List(t.Context(), "media/", next); err != nil || next != "" || len(page) != 1 {
		t.Errorf("%v %q %v", page, next, err)
	}
	queries := []string{w.calls()[0].query, w.calls()[1].query}
	if diff := cmp.Diff([]string{
		"encoding-type=url&list-type=2&max-keys=1000&prefix=media%2F",
		"continuation-token=next%20page&encoding-type=url&list-type=2&max-keys=1000&prefix=media%2F",
	}, queries); diff != "" {
		t.Error(diff)
	}
}

func TestListRefusesKeysOutsideItsPrefix(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"mediafoo/a", "other", "media%2", "Media/a"} {
		w := newWire(t, listing("", key))
		if page, _, err := w.bucket(t).List(t.Context(), "media/", ""); err == nil {
			t.Errorf("%q: listed %v", key, page)
		}
	}
}

func TestRegionIsReadEvenFromARedirect(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 301} {
		w := newWire(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-1")
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
		})
		if region, err := w.bucket(t).Region(t.Context()); err != nil || region != "eu-west-1" {
			t.Errorf("%d: %q %v", status, region, err)
		}
		w.only(t) // a redirect isn't followed: it would go unsigned
	}
}
