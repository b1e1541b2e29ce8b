package environment_test

import (
	"fmt"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// BenchmarkCopy copies an environment of b.N media. The ledger's rows and the
// objects of its source are made directly: they aren't what is measured.
func BenchmarkCopy(b *testing.B) {
	b.Run("PostgreSQL", func(b *testing.B) { copyEnvironment(b, dbtest.PostgreSQL(b)) })
	b.Run("SQLite", func(b *testing.B) { copyEnvironment(b, dbtest.SQLite(b)) })
}

func copyEnvironment(b *testing.B, db *database.DB) {
	s := newScene(b, db)
	s.fill(b.N)
	s.publish(at{s.prod.In("copy"), created("copy", "")})
	b.ResetTimer()
	s.Work()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
	s.copied("copy", "complete", int64(b.N), nil)
}

// fill gives production n media.
func (s *scene) fill(n int) {
	s.t.Helper()
	laneID := s.prod.Integration().LaneID
	effects := make([]ledger.Effects, n)
	for i := range effects {
		key := fmt.Sprintf("media/file-%d.txt", i)
		object, err := s.AWS.PutDirect(store, key, []byte("content"), awslocal.Stranger{})
		if err != nil {
			s.t.Fatal(err)
		}
		bucket := store
		effects[i].Put = &ledger.Object{LaneID: laneID, MediaID: fmt.Sprintf("media-%d", i), Version: 1, Sequence: 1,
			Bucket: &bucket, Key: &key, ContentType: "text/plain", Size: object.Size, ETag: object.ETag}
	}
	if err := s.DB.Tx(s.t.Context(), func(tx *sqlx.Tx) error {
		return ledger.New(s.DB).Apply(s.t.Context(), tx, effects)
	}); err != nil {
		s.t.Fatal(err)
	}
}
