package worker_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// unmeasured hides the lengths of objects that are read.
type unmeasured struct{ http.RoundTripper }

func (u unmeasured) Do(r *http.Request) (*http.Response, error) {
	response, err := u.RoundTrip(r)
	if err == nil && r.Method == http.MethodGet {
		response.ContentLength, response.TransferEncoding = -1, []string{"chunked"}
		response.Header.Del("Content-Length")
	}
	return response, err
}

// heldUp holds back the PUT of one key until it is let go.
type heldUp struct {
	http.RoundTripper
	path    string
	arrived atomic.Bool
	let     chan struct{}
}

func (h *heldUp) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, h.path) {
		h.arrived.Store(true)
		select {
		case <-h.let:
		case <-r.Context().Done():
		}
	}
	return h.RoundTripper.RoundTrip(r)
}

func TestUploadsThatFindNoRoomInTheSpoolAreTriedUntilTheyDo(t *testing.T) {
	t.Parallel()
	const size = 3 << 19 // more than what is held in memory
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := stage.New(t, db)
		worker, err := s.AWS.AddUser(awslocal.User{Name: "worker", Policy: `{"Version":"2012-10-17","Statement":[
			{"Effect":"Allow","Action":["sts:AssumeRole","s3:GetObject"],"Resource":"*"}]}`})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AWS.CreateBucket("staging", awslocal.BucketOptions{Region: stage.Region}); err != nil {
			t.Fatal(err)
		}
		connections := &http.Transport{}
		t.Cleanup(connections.CloseIdleConnections)
		put := &heldUp{RoundTripper: connections, path: "/first", let: make(chan struct{})}
		s.Config.AWS = stage.AWSConfig(s.AWS, worker)
		s.Config.AWS.HTTPClient, s.Config.Transport = unmeasured{connections}, put
		s.Config.StagingBuckets = []string{"staging"}
		s.Config.MaxUpload, s.Config.SpoolLimit = size, 2*size
		s.Config.RetryAttempts = 1
		upload := func(p *stage.Place, name string) string {
			if _, err := s.AWS.PutDirect("staging", name, []byte(strings.Repeat("x", size)), awslocal.Stranger{}); err != nil {
				t.Fatal(err)
			}
			return p.Publish(events.MediaUploaded{MediaID: name, FileName: name, ContentType: "text/plain",
				Source: "s3://staging/" + name, Version: s.Version()})
		}
		a, b := s.Customer("A", "bucket-a", "media"), s.Customer("B", "bucket-b", "media")

		first := upload(a, "first")
		s.Start()
		letGo := sync.OnceFunc(func() { close(put.let) })
		t.Cleanup(letGo)
		s.Await("the first upload's PUT", put.arrived.Load)
		second := upload(a, "second")
		s.Await("a second upload that finds no room", func() bool { return s.Event(second).String() == "available spool_full" })
		others := upload(b, "other")
		s.Await("another customer's upload", func() bool { return s.Event(others).String() == "completed done" })
		letGo()
		for _, id := range []string{first, second, others} {
			s.Await("the upload's end", func() bool { return s.Event(id).String() == "completed done" })
			if e := s.Event(id); e.AttemptCount != 1 {
				t.Errorf("%d attempts were counted, want the last alone", e.AttemptCount)
			}
		}
	})
}
