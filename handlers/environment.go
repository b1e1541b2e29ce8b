package handlers

import (
	"context"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// CreateEnvironment gives the new environment its settings and opens the copy
// of its source's media. The copy itself is a job of its own.
func (h *Handlers) CreateEnvironment(ctx context.Context, d *outbox.Delivery) (*Result, error) {
	outcome, err := h.Environments.Create(ctx, d)
	return &Result{Outcome: outcome}, err
}

// DeleteEnvironment deletes all that is below the environment's directory,
// with what others put there: the manual says everything.
func (h *Handlers) DeleteEnvironment(ctx context.Context, d *outbox.Delivery) (*Result, error) {
	outcome, err := h.Environments.Delete(ctx, d)
	return &Result{Outcome: outcome}, err
}
