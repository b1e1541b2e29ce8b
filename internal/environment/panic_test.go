package environment_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
)

// bug is a transport that copies of one file bring down.
type bug struct{ name string }

func (b bug) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasSuffix(req.Header.Get("X-Amz-Copy-Source"), b.name) {
		panic("a bug")
	}
	return http.DefaultTransport.RoundTrip(req)
}

func TestAPanicFailsItsItemAlone(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(s *scene){
		"by itself": func(*scene) {},
		"before an event of the source": func(s *scene) {
			s.prod.Publish(s.Upload("m1", "a.txt", "changed"), s.Upload("m2", "b.txt", "changed"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
				s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
				s.Work()
				s.Config.Transport = bug{"/a.txt"}
				s.prod.In("dev").Publish(created("dev", ""))
				change(s)
				s.Start()
				s.Await("the copy to end", func() bool { return s.state("dev") == "incomplete" })
				s.copied("dev", "incomplete", 1, map[string]string{"m1": "internal"})
				var failures int
				s.get(&failures, `SELECT failure_count FROM {copy_items} WHERE media_id = 'm1'`)
				if failures == 0 {
					t.Error("no attempt of the item was counted")
				}
			})
		})
	}
}
