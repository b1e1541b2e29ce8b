package bucket_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func noContent(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }

func TestDeleteMeansOneVersionOfAnObject(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		answer http.HandlerFunc
		want   error
	}{
		{noContent, nil},
		{s3Error(412, "PreconditionFailed", ""), bucket.ErrConditionFailed},
		{s3Error(404, "NoSuchKey", ""), bucket.ErrNotFound},
	} {
		w := newWire(t, tc.answer)
		if err := w.bucket(t).Delete(t.Context(), "media/a", `"e1"`); !errors.Is(err, tc.want) {
			t.Errorf("got %v, want %v", err, tc.want)
		}
		if got := w.only(t); got.method != http.MethodDelete || got.header.Get("If-Match") != `"e1"` {
			t.Errorf("sent %s %v", got.method, got.header)
		}
	}
}

// deleted answers DeleteObjects with failures for keys.
func deleted(failures map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<DeleteResult>`)
		for key, code := range failures {
			fmt.Fprintf(w, `<Error><Key>%s</Key><Code>%s</Code><Message>no</Message></Error>`, key, code)
		}
		fmt.Fprint(w, `</DeleteResult>`)
	}
}

func TestDeleteManyReportsEachKeyThatStayed(t *testing.T) {
	t.Parallel()
	w := newWire(t, deleted(map[string]string{"media/a": "AccessDenied", "media/b": "SlowDown", "media/c": "NoSuchKey"}))
	failed, err := w.bucket(t).DeleteMany(t.Context(), []string{"media/a", "media/b", "media/c", "media/d"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range failed {
		got[f.Key] = f.Err.Code
	}
	if diff := cmp.Diff(map[string]string{"media/a": failure.Denied, "media/b": failure.Throttled}, got); diff != "" {
		t.Error(diff)
	}
}

func TestDeleteManySendsKeysThatXMLCannotHoldAlone(t *testing.T) {
	t.Parallel()
	w := newWire(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			deleted(nil)(w, r)
			return
		}
		noContent(w, r)
	})
	odd := []string{"media/\x01", "media/\xff", "media/\uffff", "media/a\nb", "media/a\rb"}
	if _, err := w.bucket(t).DeleteMany(t.Context(), append([]string{"media/ム & <b>"}, odd...)); err != nil {
		t.Fatal(err)
	}
	calls := w.calls()
	if len(calls) != 1+len(odd) || strings.Contains(calls[0].body, "\ufffd") || !strings.Contains(calls[0].body, "ム &amp; &lt;b&gt;") {
		t.Errorf("sent %q", calls)
	}
	if strings.Count(calls[0].body, "<Key>") != 1 {
		t.Errorf("together: %s", calls[0].body)
	}
	want := []string{"/alpha/media/%01", "/alpha/media/%FF", "/alpha/media/%EF%BF%BF", "/alpha/media/a%0Ab", "/alpha/media/a%0Db"}
	var alone []string
	for _, call := range calls[1:] {
		alone = append(alone, call.path)
	}
	if diff := cmp.Diff(want, alone); diff != "" {
		t.Error(diff)
	}
}

// Keys that are sent alone are told apart like those of the one request.
func TestDeleteManyReportsKeysThatWereSentAloneLikeTheOthers(t *testing.T) {
	t.Parallel()
	answers := map[string]http.HandlerFunc{
		"/alpha/media/gone%01":   s3Error(404, "NoSuchKey", ""),
		"/alpha/media/denied%01": s3Error(403, "AccessDenied", ""),
		"/alpha/media/there%01":  noContent,
	}
	w := newWire(t, func(w http.ResponseWriter, r *http.Request) { answers[r.URL.EscapedPath()](w, r) })
	keys := []string{"media/gone\x01", "media/denied\x01", "media/there\x01"}
	failed, err := w.bucket(t).DeleteMany(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	if len(failed) != 1 || failed[0].Key != "media/denied\x01" || failed[0].Err.Code != failure.Denied {
		t.Errorf("got %v", failed)
	}

	// An interruption is no key's failure: those that follow weren't tried.
	ctx, cancel := context.WithCancel(t.Context())
	w = newWire(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	failed, err = w.bucket(t).DeleteMany(ctx, keys)
	if err == nil || failure.Of(err).Class != failure.Interrupted || len(failed) != 0 {
		t.Errorf("got %v, %v", failed, err)
	}
}

func TestDeleteManyTakesAPageAndNoMore(t *testing.T) {
	t.Parallel()
	w := newWire(t, deleted(nil))
	b := w.bucket(t)
	keys := make([]string, bucket.PageSize+1)
	for i := range keys {
		keys[i] = fmt.Sprintf("media/%d", i)
	}
	if _, err := b.DeleteMany(t.Context(), keys); err == nil {
		t.Error("1,001 keys passed")
	}
	if _, err := b.DeleteMany(t.Context(), nil); err != nil || len(w.calls()) != 0 {
		t.Errorf("no keys: %v, %d requests", err, len(w.calls()))
	}
	if _, err := b.DeleteMany(t.Context(), keys[1:]); err != nil || strings.Count(w.only(t).body, "<Key>") != bucket.PageSize {
		t.Error(err)
	}
}
