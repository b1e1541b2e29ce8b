package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

type eventsCommands struct {
	List    eventsList    `cmd:"" help:"List events in publish order."`
	Show    eventsShow    `cmd:"" help:"Show one event with its payload and attempts."`
	Retry   eventsRetry   `cmd:"" help:"Run dead events, and those that wait for a retry, again now."`
	Discard eventsDiscard `cmd:"" help:"End events for good without running them."`
}

// eventFilter selects events: those that match all that is given.
type eventFilter struct {
	EventIDs    []string `arg:"" optional:"" name:"event-id" help:"Event IDs."`
	State       []string `help:"available, running, retryable, held, completed, dead or discarded." enum:"available,running,retryable,held,completed,dead,discarded"`
	Type        string   `help:"MediaUploaded, MediaRenamed, MediaDeleted, EnvironmentCreated or EnvironmentDeleted."`
	Service     string   `help:"Service ID."`
	Environment *string  `help:"Environment ID; an empty one is production."`
	Media       string   `help:"Media ID."`
	ErrorClass  string   `help:"transient, integration, permanent or interrupted."`
	ErrorCode   string   `help:"As in key_taken or source_gone."`
}

func (f *eventFilter) filter() (outbox.Filter, error) {
	for _, id := range f.EventIDs {
		if _, err := uuid.Parse(id); err != nil {
			return outbox.Filter{}, misused("%q is no event ID: use a UUID", id)
		}
	}
	return outbox.Filter{EventIDs: f.EventIDs, States: f.State, Type: f.Type, ServiceID: f.Service,
		EnvironmentID: f.Environment, MediaID: f.Media, ErrorClass: f.ErrorClass, ErrorCode: f.ErrorCode}, nil
}

// outbox opens the outbox for an operator.
func (e *environment) outbox(ctx context.Context, use func(*outbox.Store) error) (err error) {
	db, err := e.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return use(outbox.New(db, recorder(db)))
}

type eventsList struct {
	eventFilter
	listing
}

// Help teaches by example.
func (eventsList) Help() string {
	return `Examples:
  ownbucket events list --state dead --error-code key_taken
  ownbucket events list --service S1 --environment "" --output json --limit 0`
}

func (c *eventsList) Run(ctx context.Context, e *environment) error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	return e.outbox(ctx, func(store *outbox.Store) error {
		listed, err := store.List(ctx, filter, c.Limit)
		if err != nil {
			return err
		}
		return e.print(listed, func(t table.Writer) {
			t.AppendHeader(table.Row{"SEQ", "EVENT", "TYPE", "SERVICE", "ENV", "MEDIA", "STATE", "ATTEMPTS", "CREATED", "WHY"})
			for _, l := range listed {
				t.AppendRow(table.Row{l.Sequence, l.EventID, l.Type, l.ServiceID, l.EnvironmentID, l.MediaID,
					strings.TrimSpace(l.State + " " + l.Outcome), l.AttemptCount, clock(l.CreatedAt), l.ErrorCode})
			}
		})
	})
}

type eventsShow struct {
	EventID string `arg:"" help:"Event ID."`
}

func (c *eventsShow) Run(ctx context.Context, e *environment) error {
	return e.outbox(ctx, func(store *outbox.Store) error {
		shown, err := store.Show(ctx, c.EventID)
		if err != nil {
			return err
		}
		return e.print(shown, func(t table.Writer) {
			fields(t, "event", shown.EventID, "sequence", shown.Sequence, "type", shown.Type,
				"service", shown.ServiceID, "environment", shown.EnvironmentID, "media", shown.MediaID,
				"state", shown.State, "outcome", shown.Outcome, "created", clock(shown.CreatedAt),
				"next attempt", optionalClock(shown.NextAttemptAt), "finished", optionalClock(shown.FinishedAt),
				"error class", shown.ErrorClass, "error code", shown.ErrorCode, "error", shown.Error,
				"data", compact(shown.Data), "metadata", compact(shown.Metadata))
			for _, a := range shown.Attempts {
				ended := "done"
				if a.ErrorCode != "" {
					ended = a.ErrorCode + ": " + a.Error
				}
				t.AppendRow(table.Row{fmt.Sprintf("attempt %d", a.Number),
					fmt.Sprintf("%s, %.0f ms, %s: %s", clock(a.StartedAt), a.DurationMS, a.Worker, ended)})
			}
		})
	})
}

func compact(raw json.RawMessage) string {
	var value any
	if json.Unmarshal(raw, &value) != nil {
		return string(raw)
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return string(raw)
	}
	return string(encoded)
}

// bulk is what every action on many events takes.
type bulk struct {
	eventFilter
	Reason string `help:"Why, for the audit." required:""`
	DryRun bool   `help:"Only count what would change."`
}

func (b *bulk) act(ctx context.Context, e *environment,
	action func(*outbox.Store, context.Context, outbox.Filter, outbox.Action) (outbox.Counts, error)) error {
	filter, err := b.filter()
	if err != nil {
		return err
	}
	if filter.Empty() {
		return misused("an empty filter would match every event: give event IDs or filters")
	}
	if strings.TrimSpace(b.Reason) == "" {
		return misused("--reason must say why")
	}
	return e.outbox(ctx, func(store *outbox.Store) error {
		for _, id := range filter.EventIDs {
			if _, err := store.Show(ctx, id); err != nil {
				return err
			}
		}
		counts, err := action(store, ctx, filter, outbox.Action{Actor: e.actor(), Reason: b.Reason, DryRun: b.DryRun})
		if err != nil {
			return err
		}
		return e.print(counts, func(t table.Writer) {
			fields(t, "matched", counts.Matched, "changed", counts.Changed, "skipped", counts.Skipped)
		})
	})
}

type eventsRetry struct{ bulk }

// Help teaches by example.
func (eventsRetry) Help() string {
	return `Retries keep publish order. Other states than dead and retryable are skipped.

Examples:
  ownbucket events retry 0198c5f2-1f5e-7c55-b1f3-0f4a4d6c9a10 --reason "source restored"
  ownbucket events retry --state dead --error-code no_integration --service S1 --reason "settings made" --dry-run`
}

func (c *eventsRetry) Run(ctx context.Context, e *environment) error {
	return c.act(ctx, e, (*outbox.Store).Retry)
}

type eventsDiscard struct{ bulk }

// Help teaches by example.
func (eventsDiscard) Help() string {
	return `Running, completed and discarded events are skipped. What a discarded event may have written is removed by the
next event of its media.

Example:
  ownbucket events discard --state dead --error-code source_gone --reason "the uploads were abandoned"`
}

func (c *eventsDiscard) Run(ctx context.Context, e *environment) error {
	return c.act(ctx, e, (*outbox.Store).Discard)
}

type statsCommand struct{}

func (statsCommand) Run(ctx context.Context, e *environment) error {
	return e.outbox(ctx, func(store *outbox.Store) error {
		stats, err := store.Stats(ctx)
		if err != nil {
			return err
		}
		return e.print(stats, func(t table.Writer) {
			for _, state := range []string{outbox.Available, outbox.Running, outbox.Retryable, outbox.Held,
				outbox.Completed, outbox.Dead, outbox.Discarded} {
				fields(t, state, stats.Events[state])
			}
			fields(t, "oldest available", fmt.Sprintf("%.1f s", stats.OldestAvailableSeconds))
		})
	})
}
