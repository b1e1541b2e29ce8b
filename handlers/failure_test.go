package handlers_test

import (
	"slices"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/stage"
)

func TestATransientFailureIsRetriedAndEveryAttemptKept(t *testing.T) {
	answers := []struct {
		name string
		rule awslocal.Rule
		code string
	}{
		{"SlowDown", awslocal.Rule{Status: 503, Code: "SlowDown"}, "throttled"},
		{"InternalError", awslocal.Rule{Status: 500, Code: "InternalError"}, "server_error"},
		{"ConditionalRequestConflict", awslocal.Rule{Status: 409, Code: "ConditionalRequestConflict"}, "conflict"},
		{"connection reset", awslocal.Rule{Reset: true}, "server_error"},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, answers)
		ids := make([][]string, len(answers))
		for i, tc := range answers {
			// A stream is sent once an attempt: two attempts fail.
			rule := tc.rule
			rule.API, rule.Bucket, rule.Times = put, customers[i].Bucket, 2
			s.AWS.Inject(rule)
			ids[i] = publish(customers[i], s.Upload("m1", "a.txt", big))
		}
		finish(s)
		for i, tc := range answers {
			t.Run(tc.name, func(t *testing.T) {
				wantStates(t, customers[i], ids[i], "completed done")
				wantContents(t, customers[i], contents{"media/a.txt": big})
				if got, want := attempts(s, ids[i][0]), []string{tc.code, tc.code, ""}; !slices.Equal(got, want) {
					t.Errorf("attempts %q, want %q", got, want)
				}
				if e := s.Event(ids[i][0]); e.AttemptCount != 3 {
					t.Errorf("%d attempts counted, want 3", e.AttemptCount)
				}
			})
		}
	})
}

func TestATransientFailureThatLastsMakesTheEventDead(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		broken := p.AWS.Inject(awslocal.Rule{API: put, Key: "media/a.txt", Status: 503, Code: "SlowDown"})
		ids := run(p, p.Upload("m1", "a.txt", big), p.Upload("m2", "b.txt", "two"))
		wantStates(t, p, ids, "dead throttled", "completed done")
		if got, want := attempts(p.Stage, ids[0]), []string{"throttled", "throttled", "throttled", "throttled"}; !slices.Equal(got, want) {
			t.Errorf("attempts %q, want %q", got, want)
		}

		broken.Remove()
		retry(p, ids[0])
		finish(p.Stage)
		wantStates(t, p, ids, "completed done", "completed done")
		if got := attempts(p.Stage, ids[0]); len(got) != 5 || got[4] != "" {
			t.Errorf("a replay appends to the attempts: %q", got)
		}
		wantContents(t, p, contents{"media/a.txt": big, "media/b.txt": "two"})
	})
}

func TestADeniedIntegrationHoldsItsEventsAndLosesNone(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		var policy string
		change := func(edit func(*awslocal.Role)) {
			if err := p.AWS.ChangeRole(p.Role, edit); err != nil {
				t.Fatal(err)
			}
		}
		change(func(r *awslocal.Role) { policy, r.Policy = r.Policy, "" })
		ids := run(p, p.Upload("m1", "a.txt", "two"), p.Rename("m1", "a.txt", "b.txt"), p.Upload("m2", "a.txt", "three"), p.Delete("m1", "b.txt"))
		if state := p.Integration().State; state != integration.Blocked {
			t.Fatalf("the integration is %s\n%s", state, p.Dump())
		}
		for _, id := range ids {
			if e := p.Event(id); e.State != "available" || e.AttemptCount != 0 {
				t.Errorf("%s after %d attempts", e, e.AttemptCount)
			}
		}
		wantContents(t, p, contents{"media/a.txt": "one"})

		change(func(r *awslocal.Role) { r.Policy = policy })
		stop := p.Start()
		p.Await("the release of the events", func() bool { return p.Event(ids[3]).State == "completed" })
		stop()
		wantStates(t, p, ids, "completed done", "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"media/a.txt": "three"})
		if state := p.Integration().State; state != integration.Active {
			t.Errorf("the integration is %s", state)
		}
		for _, id := range ids {
			if got := p.Event(id).AttemptCount; got != 1 {
				t.Errorf("an event of a blocked integration took %d attempts", got)
			}
		}
	})
}

func TestWhatTheCustomerHasToMendBlocksTheIntegration(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(t *testing.T, p *stage.Place)
		code  string
	}{
		{"the role is gone", func(_ *testing.T, p *stage.Place) { p.AWS.DeleteRole(p.Role) }, "assume_role_denied"},
		{"another external ID", func(t *testing.T, p *stage.Place) {
			if err := p.AWS.ChangeRole(p.Role, func(r *awslocal.Role) { r.ExternalID = "another" }); err != nil {
				t.Fatal(err)
			}
		}, "assume_role_denied"},
		{"no bucket", func(_ *testing.T, p *stage.Place) { p.AWS.DeleteBucket(p.Bucket) }, "no_such_bucket"},
		{"bucket policy", func(t *testing.T, p *stage.Place) {
			if err := p.AWS.SetBucketPolicy(p.Bucket, `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*",
				"Action":"s3:PutObject","Resource":"arn:aws:s3:::`+p.Bucket+`/*"}]}`); err != nil {
				t.Fatal(err)
			}
		}, "denied"},
		{"account", func(_ *testing.T, p *stage.Place) {
			p.AWS.Inject(awslocal.Rule{API: put, Bucket: p.Bucket, Status: 403, Code: "AllAccessDisabled"})
		}, "account_suspended"},
	}
	eachStageRefused(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		healthy := s.Customer("SERVICE#healthy", "healthy-bucket", "media")
		ids := make([][]string, len(cases))
		for i, tc := range cases {
			tc.spoil(t, customers[i])
			ids[i] = publish(customers[i], s.Upload("m1", "a.txt", "one"))
		}
		passing := publish(healthy, s.Upload("m1", "a.txt", "one"))
		finish(s)
		wantStates(t, healthy, passing, "completed done")
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				settings := customers[i].Integration()
				if settings.State != integration.Blocked || settings.BlockedCode != tc.code {
					t.Errorf("the integration is %s by %q: %s", settings.State, settings.BlockedCode, settings.BlockedReason)
				}
				if e := s.Event(ids[i][0]); e.State != "available" || e.AttemptCount != 0 || *e.ErrorClass != "integration" {
					t.Errorf("the event is %s of class %s after %d attempts", e, *e.ErrorClass, e.AttemptCount)
				}
			})
		}
	})
}

// One object lies under a KMS key that the role can't use. The probe passes,
// so it is that event's trouble alone.
func TestAnEventThatAloneIsDeniedDiesAlone(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		if err := p.AWS.DenyKMS(p.Bucket, "media/a.txt"); err != nil {
			t.Fatal(err)
		}
		blocked := 0
		stop := p.Start()
		denied := p.Publish(p.Upload("m1", "a.txt", "two"))
		p.Await("the block", func() bool { return p.Integration().State == integration.Blocked })
		p.Await("the release", func() bool { return p.Integration().State == integration.Active })
		var others []string
		p.Await("the event's death", func() bool {
			if p.Integration().State == integration.Blocked {
				blocked++
			}
			m := "n" + string(rune('a'+len(others)%26))
			if len(others) < 20 {
				others = append(others, p.Publish(p.Upload(m, m+".txt", m)))
			}
			return p.Event(denied).State == "dead"
		})
		p.Await("the others", func() bool {
			return !slices.ContainsFunc(others, func(id string) bool { return p.Event(id).State != "completed" })
		})
		stop()
		wantStates(t, p, []string{denied}, "dead denied")
		if e := p.Event(denied); e.AttemptCount != 3 || *e.ErrorClass != "permanent" {
			t.Errorf("%d attempts, class %s", e.AttemptCount, *e.ErrorClass)
		}
		if blocked > 0 {
			t.Error("the integration was blocked again by the event that alone is denied")
		}
		if got := p.Contents()["media/a.txt"]; got != "one" {
			t.Errorf("a.txt holds %q", got)
		}

		if err := p.AWS.DenyKMS(p.Bucket); err != nil {
			t.Fatal(err)
		}
		retry(p, denied)
		finish(p.Stage)
		wantStates(t, p, []string{denied}, "completed done")
		wantLedgerTrue(t, p, "m1")
	})
}

func TestARetryOfAnEventThatOnceWasDeniedAloneBlocksABrokenIntegration(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		if err := p.AWS.DenyKMS(p.Bucket, "media/a.txt"); err != nil {
			t.Fatal(err)
		}
		stop := p.Start()
		denied := p.Publish(p.Upload("m1", "a.txt", "one"))
		p.Await("the event's death", func() bool { return p.Event(denied).State == "dead" })
		stop()
		if err := p.AWS.ChangeRole(p.Role, func(r *awslocal.Role) { r.Policy = "" }); err != nil {
			t.Fatal(err)
		}
		retry(p, denied)
		finish(p.Stage)
		if e := p.Event(denied); e.State != "available" {
			t.Errorf("the event is %s, although its whole integration is denied", e)
		}
		if state := p.Integration().State; state != integration.Blocked {
			t.Errorf("the integration is %s", state)
		}
	})
}

// What a probe showed before a pause says nothing about the account after it.
func TestAnEventThatAloneIsDeniedBlocksWhatBrokeDuringAPause(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		p.Config.RetryBase = time.Hour
		if err := p.AWS.DenyKMS(p.Bucket, "media/a.txt"); err != nil {
			t.Fatal(err)
		}
		stop := p.Start()
		denied := p.Publish(p.Upload("m1", "a.txt", "one"))
		p.Await("the event's denial alone", func() bool { return p.Event(denied).State == "retryable" })
		stop()
		ctx := t.Context()
		if err := p.Settings.Pause(ctx, p.Service, p.Environment, "test", "test"); err != nil {
			t.Fatal(err)
		}
		if err := p.AWS.ChangeRole(p.Role, func(r *awslocal.Role) { r.Policy = "" }); err != nil {
			t.Fatal(err)
		}
		if err := p.Settings.Resume(ctx, p.Service, p.Environment, "test", "test"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.DB.ExecContext(ctx, p.DB.SQL(`UPDATE {outbox} SET next_attempt_at = 0 WHERE next_attempt_at > 0`)); err != nil {
			t.Fatal(err)
		}
		finish(p.Stage)
		if e := p.Event(denied); e.State != "available" {
			t.Errorf("the event is %s, although its whole integration is denied", e)
		}
		if state := p.Integration().State; state != integration.Blocked {
			t.Errorf("the integration is %s", state)
		}
	})
}

func TestWithoutAnyIntegrationAnEventIsSkipped(t *testing.T) {
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		nobody := &stage.Place{Stage: s, Service: "SERVICE#nobody"}
		ids := run(nobody, s.Upload("m1", "a.txt", "one"), s.Rename("m1", "a.txt", "b.txt"), s.Delete("m1", "b.txt"))
		wantStates(t, nobody, ids, "completed skipped", "completed skipped", "completed skipped")
		if counts := s.AWS.Counts(); len(counts) > 0 {
			t.Errorf("calls %v", counts)
		}
	})
}

func TestWithoutThisEnvironmentsIntegrationAnEventIsDeadUntilItIsSet(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		dev := p.In("dev")
		ids := run(dev, p.Upload("m1", "a.txt", "one"), p.Upload("m1", "a.txt", "two"))
		wantStates(t, dev, ids, "dead no_integration", "dead no_integration")
		development(p)
		retry(dev, ids...)
		finish(p.Stage)
		wantStates(t, dev, ids, "completed done", "completed done")
		wantContents(t, p, contents{dev.KeyPrefix() + "a.txt": "two"})
	})
}

func TestTheGapBetweenAttemptsHoldsBackOnlyWhatSharesAMediaOrName(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		p.Config.RetryBase = 24 * time.Hour
		p.AWS.Inject(awslocal.Rule{API: put, Key: "media/a.txt", Times: 1, Status: 500, Code: "InternalError"})
		ids := publish(p, p.Upload("m1", "a.txt", big),
			p.Rename("m1", "a.txt", "b.txt"), p.Upload("m2", "b.txt", "waits"), p.Upload("m3", "c.txt", "runs"))
		p.Work()
		wantStates(t, p, ids, "retryable server_error", "available", "available", "completed done")
		retry(p, ids[0])
		p.Work()
		wantStates(t, p, ids, "completed done", "completed done", "dead key_taken", "completed done")
		wantContents(t, p, contents{"media/b.txt": big, "media/c.txt": "runs"})
	})
}

// A probe that passed long ago says nothing about a denial of today: between the
// two, the event had other trouble.
func TestADenialAfterOtherTroubleBlocksTheIntegrationAnew(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		p.Config.RetryAttempts = 100
		p.AWS.Inject(awslocal.Rule{API: put, Key: "media/a.txt", Times: 1, Status: 403, Code: "AccessDenied"})
		trouble := p.AWS.Inject(awslocal.Rule{API: put, Key: "media/a.txt", Status: 500, Code: "InternalError"})
		stop := p.Start()
		id := p.Publish(p.Upload("m1", "a.txt", big))
		p.Await("the trouble after the release", func() bool { return slices.Contains(attempts(p.Stage, id), "server_error") })
		if err := p.AWS.ChangeRole(p.Role, func(r *awslocal.Role) { r.Policy = "" }); err != nil {
			t.Fatal(err)
		}
		trouble.Remove()
		p.Await("the denial", func() bool {
			return p.Event(id).State == "dead" || p.Integration().State == integration.Blocked
		})
		stop()
		if e := p.Event(id); e.State != "available" {
			t.Errorf("the event is %s, although its whole integration is denied: %q", e, attempts(p.Stage, id))
		}
		if state := p.Integration().State; state != integration.Blocked {
			t.Errorf("the integration is %s", state)
		}
	})
}

// An operator sets a role that doesn't exist while a probe with the former one,
// which works again, is under way.
func TestAProbeWithFormerSettingsReleasesNothing(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		p.AWS.Inject(awslocal.Rule{API: put, Key: "media/a.txt", Times: 1, Status: 403, Code: "AccessDenied"})
		reached, letGo := hold(p, "s3:GetObject", "media/.microcms-probe-*")
		stop := p.Start()
		id := p.Publish(p.Upload("m1", "a.txt", "one"))
		reached()
		p.Set(integration.Change{RoleARN: new("arn:aws:iam::123456789012:role/NoSuchRole")})
		p.Await("the probe with the new role", func() bool { return p.Integration().BlockedCode == "assume_role_denied" })
		letGo()
		p.Await("the former probe's last DELETE", func() bool { return calls(p)[copied] > 0 && len(p.AWS.Keys(p.Bucket)) == 0 })
		stop()
		if i := p.Integration(); i.State != integration.Blocked {
			t.Errorf("the integration is %s by a probe with settings that are no longer its own; %s", i.State, p.Dump())
		}
		finish(p.Stage)
		if e := p.Event(id); e.State != "available" {
			t.Errorf("the event is %s after %q", e, attempts(p.Stage, id))
		}
	})
}

// Without ListBucket no directory can be listed: every event that needs to is
// denied, not one alone.
func TestWithoutListBucketTheIntegrationIsBlocked(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		dev := development(p)
		run(dev, p.Upload("m1", "a.txt", "one"))
		if err := p.AWS.SetBucketPolicy(p.Bucket, `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*",
			"Action":"s3:ListBucket","Resource":"arn:aws:s3:::`+p.Bucket+`"}]}`); err != nil {
			t.Fatal(err)
		}
		stop := p.Start()
		id := dev.Publish(events.EnvironmentDeleted{})
		probed := func() bool { return dev.Integration().ProbeFailures > 0 }
		p.Await("a probe", func() bool { return p.Event(id).State == "dead" || probed() })
		stop()
		if e := p.Event(id); e.State != "available" {
			t.Errorf("the deletion is %s after %q", e, attempts(p.Stage, id))
		}
		if err := p.AWS.SetBucketPolicy(p.Bucket, ""); err != nil {
			t.Fatal(err)
		}
		p.Start()
		p.Await("the deletion", func() bool { return p.Event(id).State == "completed" })
		wantContents(t, p, contents{})
	})
}
