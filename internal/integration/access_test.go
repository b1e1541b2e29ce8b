package integration_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
)

// accessOf gives settings of a service a role and an external ID.
func accessOf(serviceID, roleARN, externalID string) integration.Change {
	change := production(serviceID)
	change.RoleARN, change.ExternalID = &roleARN, &externalID
	return change
}

func TestNoServiceUsesAnothersExternalID(t *testing.T) {
	t.Parallel()
	const theirs, own = "arn:aws:iam::123456789012:role/Victim", "arn:aws:iam::210987654321:role/Own"
	const secretOfTheirs = "the-victims-external-id"
	for name, c := range map[string]struct {
		role, externalID string
		refused          bool
	}{
		"everything is the victim's":           {theirs, secretOfTheirs, true},
		"the victim's external ID":             {own, secretOfTheirs, true},
		"a role and an external ID of its own": {own, "external-id-of-its-own", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				store := integration.New(db)
				set(t, store, accessOf("victim", theirs, secretOfTheirs))
				created := accessOf("other", c.role, c.externalID)
				changed := integration.Change{ServiceID: "changing", RoleARN: &c.role, ExternalID: &c.externalID}
				if !c.refused {
					changed.ExternalID, changed.RoleARN = new(c.externalID+"-2"), new(c.role+"-2")
				}
				set(t, store, accessOf("changing", "arn:aws:iam::210987654321:role/Former", "former-external-id"))
				for what, attempt := range map[string]func(context.Context, integration.Change) (integration.Saved, error){
					"preview": store.Preview, "set": store.Set,
				} {
					for _, change := range []integration.Change{created, changed} {
						_, err := attempt(t.Context(), change)
						var field *integration.FieldError
						switch {
						case !c.refused && err != nil:
							t.Errorf("%s: %v", what, err)
						case c.refused && (!errors.As(err, &field) || field.Setting != "external_id"):
							t.Errorf("%s: %v, want the external ID refused", what, err)
						case err != nil && (strings.Contains(err.Error(), "victim") || strings.Contains(err.Error(), secretOfTheirs)):
							t.Errorf("%s: the error tells of the other service: %v", what, err)
						}
					}
				}
			})
		})
	}
}

// Each has an external ID of its own, which the role's trust policy names.
func TestTwoServicesShareARoleWhereAnOperatorSaysSo(t *testing.T) {
	t.Parallel()
	const theirs = "arn:aws:iam::123456789012:role/Victim"
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		set(t, store, accessOf("victim", theirs, "the-victims-external-id"))
		set(t, store, accessOf("changing", "arn:aws:iam::210987654321:role/Former", "former-external-id"))
		change := integration.Change{ServiceID: "changing", RoleARN: new(theirs)}
		for _, change := range []integration.Change{accessOf("other", theirs, "external-id-of-its-own"), change} {
			_, err := store.Set(t.Context(), change)
			var field *integration.FieldError
			if !errors.As(err, &field) || field.Setting != "role_arn" || strings.Contains(err.Error(), "victim") {
				t.Errorf("%v, want the role refused, and no other service named", err)
			}
			change.ConfirmSharedRole = true
			if _, err := store.Set(t.Context(), change); err == nil {
				t.Error("a confirmation without a reason passed")
			}
			change.Reason = "one customer has both"
			set(t, store, change)
			set(t, store, integration.Change{ServiceID: change.ServiceID, Memo: new("confirmed before")})
		}
	})
}

func TestEnvironmentsOfOneServiceShareTheirExternalID(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		set(t, store, production("s"))
		set(t, store, environment("s", "staging", "s-staging"))
		set(t, store, integration.Change{ServiceID: "s", ExternalID: new("another-external-id")})
	})
}

func TestOfTwoServicesThatTakeOneExternalIDAtOnceOneIsRefused(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		for round := range 10 {
			var errs [2]error
			var both sync.WaitGroup
			for n := range errs {
				change := accessOf(fmt.Sprintf("s-%d-%d", round, n), fmt.Sprintf("%s-%d-%d", role, round, n), fmt.Sprintf("external-id-%d", round))
				both.Go(func() { _, errs[n] = store.Set(t.Context(), change) })
			}
			both.Wait()
			if (errs[0] == nil) == (errs[1] == nil) {
				t.Fatalf("want one of the two refused, got %v and %v", errs[0], errs[1])
			}
		}
	})
}
