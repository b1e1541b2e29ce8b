package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

type eventsCommand struct {
	List    eventsList    `cmd:"" help:"List events in publish order."`
	Show    eventsShow    `cmd:"" help:"One event with its payload and every attempt."`
	Retry   eventsRetry   `cmd:"" help:"Run dead or waiting events again."`
	Discard eventsDiscard `cmd:"" help:"End events without running them."`
}

const states = "available,running,retryable,held,completed,dead,discarded"

// eventFilter are the filters that list, retry and discard share.
type eventFilter struct {
	EventIDs    []string `arg:"" optional:"" name:"event-id" help:"These events alone."`
	State       []string `group:"filter" placeholder:"STATE" help:"One or several of ${states}."`
	Type        *string  `group:"filter" placeholder:"TYPE" help:"MediaUploaded, MediaRenamed, …"`
	Service     *string  `group:"filter" placeholder:"ID" help:"Events of that service."`
	Environment *string  `group:"filter" placeholder:"ID" help:"Events of that environment; \"\" is production."`
	Media       *string  `group:"filter" placeholder:"ID" help:"Events of that media."`
	ErrorClass  *string  `group:"filter" placeholder:"CLASS" help:"transient, integration, permanent or interrupted."`
	ErrorCode   *string  `group:"filter" placeholder:"CODE" help:"key_taken, source_gone, …"`
}

// Validate is called by the parser.
func (f eventFilter) Validate() error {
	known := strings.Split(states, ",")
	for _, state := range f.State {
		if !slices.Contains(known, state) {
			return fmt.Errorf("--state %q is none of %s", state, states)
		}
	}
	if f.State != nil && len(f.State) == 0 {
		return errors.New("--state must not be empty")
	}
	// What a script left empty must not widen an action to everything.
	for _, filter := range []struct {
		flag  string
		value *string
	}{
		{"type", f.Type}, {"service", f.Service}, {"media", f.Media},
		{"error-class", f.ErrorClass}, {"error-code", f.ErrorCode},
	} {
		if filter.value != nil && *filter.value == "" {
			return fmt.Errorf("--%s must not be empty", filter.flag)
		}
	}
	for _, id := range f.EventIDs {
		if uuid.Validate(id) != nil {
			return fmt.Errorf("%q is no event ID: use a UUID", id)
		}
	}
	return nil
}

func (f eventFilter) filter() outbox.Filter {
	return outbox.Filter{EventIDs: f.EventIDs, States: f.State, Type: orEmpty(f.Type), ServiceID: orEmpty(f.Service),
		EnvironmentID: f.Environment, MediaID: orEmpty(f.Media), ErrorClass: orEmpty(f.ErrorClass), ErrorCode: orEmpty(f.ErrorCode)}
}

func orEmpty(value *string) string {
	if value == nil {
		return ""
	}
	return *value
}

type eventsList struct {
	eventFilter
	limited
}

// Validate is called by the parser. It calls what it embeds, since methods of
// one name aren't promoted.
func (c eventsList) Validate() error {
	return errors.Join(c.eventFilter.Validate(), c.limited.Validate())
}

func (eventsList) Help() string {
	return `Without a filter, all events are listed, oldest first.

Examples:
  ownbucket events list --state dead
  ownbucket events list --service S1 --environment "" --state held,retryable
  ownbucket events list --error-code key_taken --output json --limit 0`
}

func (c eventsList) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		if a.Output == "json" {
			return printEach(a, func(visit func(outbox.Listed) error) error {
				return openOutbox(db).Each(ctx, c.filter(), c.Limit, visit)
			})
		}
		listed, err := openOutbox(db).List(ctx, c.filter(), c.Limit)
		if err != nil {
			return err
		}
		a.noteCut(len(listed), c.limited)
		header := columns{"sequence", "event id", "type", "service", "environment", "media", "state", "attempts", "created", "error"}
		return printList(a, listed, header, func(e outbox.Listed) []string {
			return []string{strconv.FormatInt(e.Sequence, 10), e.EventID, e.Type, e.ServiceID, place(e.EnvironmentID),
				e.MediaID, withOutcome(e), strconv.Itoa(e.AttemptCount), at(e.CreatedAt), shorten(withCode(e), 60)}
		})
	})
}

func withOutcome(e outbox.Listed) string {
	if e.Outcome == "" {
		return e.State
	}
	return e.State + ": " + e.Outcome
}

func withCode(e outbox.Listed) string {
	if e.ErrorCode == "" {
		return e.Error
	}
	return e.ErrorCode + ": " + e.Error
}

type eventsShow struct {
	EventID string `arg:"" help:"The event's ID."`
}

// Validate is called by the parser.
func (c eventsShow) Validate() error {
	if uuid.Validate(c.EventID) != nil {
		return fmt.Errorf("%q is no event ID: use a UUID", c.EventID)
	}
	return nil
}

func (eventsShow) Help() string {
	return `Every attempt is shown: when, on which worker, how long, and what went wrong. Whatever may be secret in a URL is
hidden, in every text of the payload and its metadata: user name, password, query and fragment.

Example:
  ownbucket events show 01890a5d-ac96-774b-bcce-b302099a8057`
}

func (c eventsShow) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		shown, err := openOutbox(db).Show(ctx, c.EventID)
		if err != nil {
			return err
		}
		if err := printOne(a, shown, eventFields(shown)...); err != nil || a.Output == "json" || len(shown.Attempts) == 0 {
			return err
		}
		fmt.Fprintln(a.stdout)
		header := columns{"attempt", "started", "took", "worker", "request id", "error"}
		return printList(a, shown.Attempts, header, func(t outbox.Attempt) []string {
			took := time.Duration(t.DurationMS * float64(time.Millisecond)).Round(time.Millisecond)
			return []string{strconv.Itoa(t.Number), at(t.StartedAt), took.String(), t.Worker, t.AWSRequestID,
				strings.TrimPrefix(t.ErrorCode+": "+t.Error, ": ")}
		})
	})
}

func eventFields(e outbox.Shown) []field {
	return []field{
		{"sequence", strconv.FormatInt(e.Sequence, 10)}, {"event id", e.EventID}, {"type", e.Type},
		{"service", e.ServiceID}, {"environment", place(e.EnvironmentID)}, {"media", e.MediaID},
		{"state", withOutcome(e.Listed)}, {"attempts", strconv.Itoa(e.AttemptCount)},
		{"error class", e.ErrorClass}, {"error code", e.ErrorCode}, {"error", e.Error},
		{"created", at(e.CreatedAt)}, {"next attempt", maybeAt(e.NextAttemptAt)}, {"finished", maybeAt(e.FinishedAt)},
		{"data", compact(e.Data)}, {"metadata", compact(e.Metadata)},
	}
}

func compact(raw json.RawMessage) string {
	encoded, err := json.Marshal(raw)
	if err != nil {
		return string(raw)
	}
	return string(encoded)
}

// bulk is an action on all events that match.
type bulk struct {
	eventFilter

	Reason string `required:"" placeholder:"TEXT" help:"Why, for the audit."`
	DryRun bool   `help:"Only count what would change."`
}

// Validate is called by the parser.
func (c bulk) Validate() error {
	if err := c.eventFilter.Validate(); err != nil {
		return err
	}
	if c.filter().Empty() {
		return errors.New("name events, or filters that select some: an action on every event is refused")
	}
	if strings.TrimSpace(c.Reason) == "" {
		return errors.New("--reason must say why, for the audit")
	}
	return nil
}

type eventsRetry struct{ bulk }

func (eventsRetry) Help() string {
	return `Takes dead events and those that wait for a retry; others that match are skipped. They keep their publish
order and get all their attempts again. A filter is required, so that not everything is replayed by accident.

Examples:
  ownbucket events retry --state dead --service S1 --error-code no_integration --reason "settings are set now" --dry-run
  ownbucket events retry 01890a5d-ac96-774b-bcce-b302099a8057 --reason "the source is back"`
}

func (c eventsRetry) Run(ctx context.Context, a *app) error {
	return c.act(ctx, a, (*outbox.Store).Retry)
}

type eventsDiscard struct{ bulk }

func (eventsDiscard) Help() string {
	return `Takes events in every state but running, completed and discarded; others that match are skipped, and so are
available ones of an environment that a worker has at hand, which may be running: pause the integration to hold them.
What a discarded event may have written is settled by its media's next event. Discarding an EnvironmentCreated gives up
its copy. This can't be undone. A filter is required.

Examples:
  ownbucket events discard --state dead --error-code invalid_event --reason "published by a test" --dry-run
  ownbucket events discard 01890a5d-ac96-774b-bcce-b302099a8057 --reason "the customer deleted the file by hand"`
}

func (c eventsDiscard) Run(ctx context.Context, a *app) error {
	return c.act(ctx, a, (*outbox.Store).Discard)
}

func (c bulk) act(ctx context.Context, a *app,
	do func(*outbox.Store, context.Context, outbox.Filter, outbox.Action) (outbox.Counts, error)) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		store := openOutbox(db)
		if err := requireAll(ctx, store, c.EventIDs); err != nil {
			return err
		}
		result, err := do(store, ctx, c.filter(), outbox.Action{Actor: a.actor(), Reason: c.Reason, DryRun: c.DryRun})
		if err != nil {
			return err
		}
		return a.printCounts(counts(result), c.DryRun)
	})
}

// requireAll fails before anything is changed where an ID was mistyped.
func requireAll(ctx context.Context, store *outbox.Store, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	found, err := store.List(ctx, outbox.Filter{EventIDs: ids}, 0)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !slices.ContainsFunc(found, func(e outbox.Listed) bool { return strings.EqualFold(e.EventID, id) }) {
			return fmt.Errorf("%w: %s", outbox.ErrNotFound, id)
		}
	}
	return nil
}
