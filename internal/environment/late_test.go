package environment_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// Its transaction is often a CMS's longest one.
func TestADeletionThatCommitsLateTakesWhatRanMeanwhileWithIt(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.PostgreSQL(t))
	dev := s.prod.In("dev")
	s.prod.Publish(s.Upload("m1", "a.txt", "one"))
	dev.Publish(created("dev", ""))
	s.Work()
	s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "one"})
	late, err := s.DB.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback() }() // it may have ended
	deletion := s.publishIn(late, at{dev, deleted()})
	upload := dev.Publish(s.Upload("m2", "b.txt", "two"))
	s.Work()
	s.ends([]string{upload}, "completed done")
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Work()
	s.ends(deletion, "completed done")
	s.holds(map[string]string{"media/a.txt": "one"})
	var rows int
	s.get(&rows, `SELECT count(*) FROM {media_objects} m JOIN {lanes} l ON l.lane_id = m.lane_id WHERE l.environment_id = 'dev'`)
	if rows > 0 {
		t.Errorf("the ledger has %d rows of it", rows)
	}
}

// A deletion has cancelled copies into its environment when it died.
func TestWhatADeadDeletionHasCancelledIsCopiedByAnotherCreation(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		copies := s.AWS.Inject(conflicting(copiesTo("dev"), 0))
		dev.Publish(created("dev", ""))
		s.Work()
		deletion := s.deadDeletion(dev)
		copies.Remove()
		dev.Publish(s.Upload("m3", "c.txt", "three"))
		s.Work()
		s.retry(deletion)
		s.Work()
		s.ends([]string{deletion}, "completed superseded")
		if got := s.state("dev"); got != "" {
			t.Errorf("the copy is %s, want none", got)
		}
		dev.Publish(created("dev", ""))
		s.Work()
		s.copied("dev", "complete", 2, nil)
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two", directory("dev") + "a.txt": "one",
			directory("dev") + "b.txt": "two", directory("dev") + "c.txt": "three"})
	})
}

// A copy is older than what happened in its environment since, however long ago
// that was.
func TestATombstoneOutlastsACopyThatCanStillBeMade(t *testing.T) {
	t.Parallel()
	for name, await := range map[string]func(s *scene) (then func()){
		"it failed": func(s *scene) func() {
			s.prod.Publish(s.Upload("m1", "a.txt", "one"))
			s.Work()
			s.putStranger(directory("dev") + "a.txt")
			s.prod.In("dev").Publish(created("dev", ""))
			s.Work()
			s.AWS.DeleteDirect(store, directory("dev")+"a.txt")
			return func() { s.retryFailed("dev") }
		},
		"its source is paused": func(s *scene) func() {
			s.pause(s.prod)
			s.prod.Publish(s.Upload("m1", "a.txt", "one"))
			s.prod.In("dev").Publish(created("dev", ""))
			return func() { s.resume(s.prod) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				then := await(s)
				deletion := s.prod.In("dev").Publish(s.Delete("m1", "a.txt"))
				s.Work()
				s.ends([]string{deletion}, "completed skipped")
				if _, err := ledger.New(s.DB).PruneTombstones(s.t.Context(), 0, 1000); err != nil { // as if long ago
					s.t.Fatal(err)
				}
				then()
				s.Work()
				s.holds(map[string]string{"media/a.txt": "one"})
			})
		})
	}
}
