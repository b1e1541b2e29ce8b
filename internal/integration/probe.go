package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jmoiron/sqlx"
)

// maxProbeDelay bounds the time between the probes of a blocked integration.
const maxProbeDelay = 15 * time.Minute

// DueProbes leases up to n blocked integrations whose probe is due: for that
// long, no other worker gets them. A probe must end within its lease, in
// ProbePassed or ProbeFailed. WaitingEvents and Locked aren't read.
func (s *Store) DueProbes(ctx context.Context, n int, leaseFor time.Duration) ([]Integration, error) {
	var due []Integration
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		due = nil
		var ids []int64
		// MATERIALIZED: a join may otherwise run the CTE, and lock, again.
		err := tx.SelectContext(ctx, &ids, s.db.SQL(`
			WITH due AS MATERIALIZED (
				SELECT lane_id FROM {integrations}
				WHERE blocked_since IS NOT NULL AND NOT paused AND next_probe_at <= {now}
				ORDER BY next_probe_at LIMIT ? {skip_locked})
			UPDATE {integrations} SET next_probe_at = {now} + ?
			WHERE lane_id IN (SELECT lane_id FROM due) RETURNING lane_id`), n, leaseFor.Microseconds())
		if err != nil || len(ids) == 0 {
			return err
		}
		encoded, err := json.Marshal(ids)
		if err != nil {
			return err
		}
		var rows []row
		err = tx.SelectContext(ctx, &rows, s.db.SQL(`
			SELECT `+columns+` FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
			WHERE i.lane_id IN {ids} ORDER BY i.blocked_since`), string(encoded))
		for _, r := range rows {
			due = append(due, r.integration())
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lease probes: %w", err)
	}
	return due, nil
}

// ProbePassed unblocks an integration: the account grants all that we need.
// Its events run on, unless it is paused. ErrChanged where that says nothing
// about its settings, since they are no longer those that were probed.
func (s *Store) ProbePassed(ctx context.Context, probed Integration) error {
	laneID := probed.LaneID
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := s.probedStill(ctx, tx, probed); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {integrations} SET blocked_since = NULL, blocked_code = NULL, blocked_reason = NULL,
				next_probe_at = NULL, probe_failures = 0, probe_passed_at = {now}
			WHERE lane_id = ?`), laneID)
		if err != nil {
			return err
		}
		return s.deriveHeld(ctx, tx, laneID)
	})
	if err != nil {
		return fmt.Errorf("unblock lane %d: %w", laneID, err)
	}
	return nil
}

// ProbeFailed puts the next probe off, further each time, and notes why this
// one failed; an empty code, of a probe that told nothing about the account,
// leaves the reason as it is. An integration that isn't blocked stays so.
func (s *Store) ProbeFailed(ctx context.Context, probed Integration, code, reason string) error {
	laneID := probed.LaneID
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		integration, err := s.probedStill(ctx, tx, probed)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {integrations} SET probe_failures = probe_failures + 1, next_probe_at = {now} + ?
			WHERE lane_id = ? AND blocked_since IS NOT NULL`),
			probeDelay(integration.ProbeFailures+1).Microseconds(), laneID)
		if err != nil || code == "" {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {integrations} SET blocked_code = ?, blocked_reason = ?
			WHERE lane_id = ? AND blocked_since IS NOT NULL`), plain(code), plain(reason), laneID)
		return err
	})
	if err != nil {
		return fmt.Errorf("put off the probe of lane %d: %w", laneID, err)
	}
	return nil
}

// probedStill locks the lane and reads its integration, which must reach the
// customer's account as it did when it was probed.
func (s *Store) probedStill(ctx context.Context, tx *sqlx.Tx, probed Integration) (Integration, error) {
	if err := s.lockLane(ctx, tx, probed.LaneID); err != nil {
		return Integration{}, err
	}
	now, exists, err := s.ByLane(ctx, tx, probed.LaneID)
	if err == nil && (!exists || now.Account() != probed.Account()) {
		err = ErrChanged
	}
	return now, err
}

// probeDelay is 2 s after the first failed probe, doubles with each, and is
// cut by up to a half at random, so that customers who were blocked together
// aren't probed together: about 0.5 h until the longest delay is reached.
func probeDelay(failures int) time.Duration {
	delay := maxProbeDelay
	if failures < 10 {
		delay = min(delay, firstProbe<<failures)
	}
	return delay - rand.N(delay/2)
}

// probeNow makes the probe of a blocked integration due: something changed.
func (s *Store) probeNow(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {integrations} SET next_probe_at = {now}, probe_failures = 0
		WHERE lane_id = ? AND blocked_since IS NOT NULL`), laneID)
	if err != nil {
		return fmt.Errorf("make the probe of lane %d due: %w", laneID, err)
	}
	return nil
}
