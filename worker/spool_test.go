package worker_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// spooledSize is that of each upload: more than what is held in memory.
const spooledSize = 3 << 19

// unmeasured hides the lengths of staged objects, and holds up the one whose key
// is slow before its last bytes until it is let go.
type unmeasured struct {
	http.RoundTripper
	reached, let chan struct{}
}

func (u *unmeasured) Do(r *http.Request) (*http.Response, error) {
	response, err := u.RoundTrip(r)
	if err != nil || !strings.HasPrefix(r.URL.Path, "/staging/") {
		return response, err
	}
	response.ContentLength, response.TransferEncoding = -1, []string{"chunked"}
	response.Header.Del("Content-Length")
	if strings.HasSuffix(r.URL.Path, "/slow") {
		response.Body = &heldUp{ReadCloser: response.Body, left: spooledSize - 1, unmeasured: u}
	}
	return response, nil
}

type heldUp struct {
	io.ReadCloser
	left int
	once sync.Once
	*unmeasured
}

func (h *heldUp) Read(p []byte) (int, error) {
	if h.left == 0 {
		h.once.Do(func() { close(h.reached) })
		<-h.let
		return h.ReadCloser.Read(p)
	}
	n, err := h.ReadCloser.Read(p[:min(len(p), h.left)])
	h.left -= n
	return n, err
}

func TestUploadsThatFindNoRoomInTheSpoolAreTriedUntilTheyDo(t *testing.T) {
	t.Parallel()
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
		staging := &unmeasured{RoundTripper: connections, reached: make(chan struct{}), let: make(chan struct{})}
		s.Config.AWS = stage.AWSConfig(s.AWS, worker)
		s.Config.AWS.HTTPClient = staging
		s.Config.StagingBuckets = []string{"staging"}
		s.Config.MaxUpload, s.Config.SpoolLimit = spooledSize, 2*spooledSize
		s.Config.RetryAttempts = 1
		upload := func(p *stage.Place, name string) string {
			if _, err := s.AWS.PutDirect("staging", name, []byte(strings.Repeat("x", spooledSize)), awslocal.Stranger{}); err != nil {
				t.Fatal(err)
			}
			return p.Publish(events.MediaUploaded{MediaID: name, FileName: name, ContentType: "text/plain",
				Source: "s3://staging/" + name, Version: s.Version()})
		}
		a, b := s.Customer("A", "bucket-a", "media"), s.Customer("B", "bucket-b", "media")

		uploads := []string{upload(a, "slow")}
		s.Start()
		letGo := sync.OnceFunc(func() { close(staging.let) })
		t.Cleanup(letGo)
		s.Await("the slow upload", func() bool {
			select {
			case <-staging.reached:
				return true
			default:
				return false
			}
		})
		for _, name := range []string{"second", "third"} {
			uploads = append(uploads, upload(a, name))
		}
		for _, id := range uploads[1:] {
			s.Await("an upload that finds no room", func() bool { return s.Event(id).String() == "available spool_full" })
		}
		others := upload(b, "other")
		s.Await("another customer's upload", func() bool { return s.Event(others).String() == "completed done" })
		letGo()
		for _, id := range uploads {
			s.Await("the upload's end", func() bool { return s.Event(id).String() == "completed done" })
			if e := s.Event(id); e.AttemptCount != 1 {
				t.Errorf("%d attempts were counted, want the last alone", e.AttemptCount)
			}
		}
	})
}
