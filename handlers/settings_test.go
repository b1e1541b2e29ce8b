package handlers_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/handlers"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// A running worker has the former settings in memory: nothing more may go into
// the former bucket.
func TestSettingsThatChangedAreHeededAtOnce(t *testing.T) {
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		p := s.Customer(service, customer, "media")
		p.Start()
		done := func(id string) {
			t.Helper()
			s.Await("the event's end", func() bool { return s.Event(id).Outcome != nil || s.Event(id).State == "dead" })
			wantStates(t, p, []string{id}, "completed done")
		}
		done(p.Publish(p.Upload("m1", "a.txt", "one")))
		done(p.Publish(p.Delete("m1", "a.txt")))
		former := *p
		unlocked := func() bool { return !p.Integration().Locked }
		s.Await("the lane to be given back", unlocked)

		other, err := s.AWS.AddCustomer(awslocal.Customer{Bucket: "other-bucket", Region: stage.Region, Prefix: "files"})
		if err != nil {
			t.Fatal(err)
		}
		p.Bucket = "other-bucket"
		p.Set(integration.Change{Bucket: &p.Bucket, RoleARN: &other.RoleARN, ExternalID: &other.ExternalID, Prefix: new("files")})
		done(p.Publish(p.Upload("m2", "a.txt", "two")))
		wantContents(t, p, contents{"files/a.txt": "two"})
		wantContents(t, &former, contents{})

		p.Set(integration.Change{PinFileNames: new(true)})
		renamed := p.Publish(p.Rename("m2", "a.txt", "b.txt"))
		s.Await("the refusal", func() bool { return s.Event(renamed).State == "dead" })
		wantStates(t, p, []string{renamed}, "dead file_name_pinned")

		done(p.Publish(p.Delete("m2", "a.txt")))
		s.Await("the lane to be given back", unlocked)
		if err := s.Settings.Delete(t.Context(), p.Service, p.Environment, "test", "they left"); err != nil {
			t.Fatal(err)
		}
		left := p.Publish(p.Upload("m3", "a.txt", "three"))
		s.Await("its end", func() bool { return !strings.HasPrefix(s.Event(left).String(), "available") })
		wantStates(t, p, []string{left}, "completed skipped")
		wantContents(t, p, contents{})
	})
}

// An attempt before it may have written: what it left is to be known, should
// this one be the last.
func TestALedgerThatCantBeReadHidesNoPossibleWrite(t *testing.T) {
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		p := s.Customer(service, customer, "media")
		away := dbtest.SQLite(t)
		if err := away.Close(); err != nil {
			t.Fatal(err)
		}
		h := &handlers.Handlers{Settings: s.Settings, Ledger: ledger.New(away)}
		lane := p.Integration().LaneID
		upload := p.Upload("m1", "a.txt", "one")
		result, err := h.Upload(t.Context(), &outbox.Delivery{Event: &outbox.Event{LaneID: lane}}, upload)
		if err == nil {
			t.Fatal("a ledger that is closed was read")
		}
		want := &ledger.PossibleWrite{LaneID: lane, MediaID: "m1", Key: "media/a.txt", Version: upload.Version.Micros()}
		if diff := cmp.Diff(want, result.Target); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

// Settings that a waiting event will need stay, whoever has looked at it yet.
func TestSettingsAreLockedByAnEventThatNoWorkerHasSeen(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"), p.Delete("m1", "a.txt"))
		id := p.Publish(p.Upload("m2", "b.txt", "two"))
		if i := p.Integration(); !i.Locked || i.WaitingEvents != 1 {
			t.Errorf("locked: %t, with %d waiting events", i.Locked, i.WaitingEvents)
		}
		if err := p.Settings.Delete(t.Context(), p.Service, "", "test", "they leave"); err == nil {
			t.Error("the settings were deleted under a waiting event")
		}
		finish(p.Stage)
		wantStates(t, p, []string{id}, "completed done")
	})
}
