package integration

import (
	"encoding/json"
	"time"
)

// State is what an operator sees of an integration. An integration that is
// both paused and blocked is paused; resumed, it is blocked.
type State string

// The states of an integration.
const (
	Active  State = "active"
	Blocked State = "blocked"
	Paused  State = "paused"
)

// Integration is an environment's settings and how they fare. Times are zero
// where there is none.
type Integration struct {
	Settings
	// LaneID is the outbox's lane of the environment.
	LaneID int64 `db:"lane_id" json:"-"`
	// RowVersion changes with each change of the row; 0 where the database has
	// no such thing (SQLite).
	RowVersion int64 `db:"row_version" json:"-"`
	State      State `db:"-" json:"state"`

	// The first reason since when its events are held; a failed probe brings
	// the reason up to date.
	BlockedSince  time.Time `db:"-" json:"blocked_since,omitzero"`
	BlockedCode   string    `db:"-" json:"blocked_code,omitzero"`
	BlockedReason string    `db:"-" json:"blocked_reason,omitzero"`
	NextProbeAt   time.Time `db:"-" json:"next_probe_at,omitzero"`
	ProbeFailures int       `db:"probe_failures" json:"probe_failures,omitzero"`
	// ProbePassedAt is when the account was last seen to grant all that we need.
	ProbePassedAt time.Time `db:"-" json:"probe_passed_at,omitzero"`

	// TestSkippedReason is set where the settings were applied untested.
	TestSkippedReason string    `db:"test_skipped_reason" json:"test_skipped_reason,omitzero"`
	CreatedAt         time.Time `db:"-" json:"created_at,omitzero"`
	UpdatedAt         time.Time `db:"-" json:"updated_at,omitzero"`

	// WaitingEvents counts events that are neither finished nor dead, and
	// Locked tells whether bucket, region, prefix and directory may not change.
	// ByLane and DueProbes leave both out.
	WaitingEvents int64 `db:"-" json:"waiting_events"`
	Locked        bool  `db:"-" json:"locked"`
}

// DeniedAttempts is how often an event or a copy is tried that alone is denied,
// and the first gap between those attempts is as that after DeniedBackoff failures:
// what a customer changes about a role or key takes some seconds to spread (AWS:
// "Changes that I make are not always immediately visible").
const (
	DeniedAttempts = 3
	DeniedBackoff  = 5
)

// GrantedSince tells whether a probe has passed since that moment, in
// microseconds, and nothing was changed after it: neither the settings, nor by a
// pause or its end.
func (i Integration) GrantedSince(moment int64) bool {
	return i.ProbePassedAt.UnixMicro() > moment && i.ProbePassedAt.After(i.UpdatedAt)
}

// MarshalJSON adds what is derived. Of the external ID it tells only whether
// there is one.
func (i Integration) MarshalJSON() ([]byte, error) {
	type fields Integration // without this method
	return json.Marshal(struct {
		fields
		KeyPrefix     string `json:"key_prefix"`
		ExternalIDSet bool   `json:"external_id_set"`
	}{fields(i), i.KeyPrefix(), i.ExternalID != ""})
}

// row is an integration as the database has it: times in microseconds.
type row struct {
	Integration
	Paused        bool    `db:"paused"`
	BlockedSince  *int64  `db:"blocked_since"`
	BlockedCode   *string `db:"blocked_code"`
	BlockedReason *string `db:"blocked_reason"`
	NextProbeAt   *int64  `db:"next_probe_at"`
	ProbePassedAt *int64  `db:"probe_passed_at"`
	CreatedAt     int64   `db:"created_at"`
	UpdatedAt     int64   `db:"updated_at"`
}

// columns are those of row, from integrations i and lanes l.
const columns = `l.lane_id, l.service_id, l.environment_id, i.environment_service_id, i.directory,
	i.bucket, i.region, i.role_arn, i.external_id, i.prefix, i.custom_domain, i.pin_file_names, i.memo,
	i.distribution_id, i.cdn_prefix, i.bucket_owner, i.paused, i.blocked_since, i.blocked_code,
	i.blocked_reason, i.next_probe_at, i.probe_failures, i.probe_passed_at, i.test_skipped_reason,
	i.created_at, i.updated_at, {row_version} AS row_version`

func (r row) integration() Integration {
	i := r.Integration
	i.State = Active
	if r.BlockedSince != nil {
		i.State = Blocked
		i.BlockedSince = moment(r.BlockedSince)
		i.BlockedCode, i.BlockedReason = orEmpty(r.BlockedCode), orEmpty(r.BlockedReason)
		i.NextProbeAt = moment(r.NextProbeAt)
	}
	if r.Paused {
		// Nothing is probed while an operator has stopped it.
		i.State, i.NextProbeAt = Paused, time.Time{}
	}
	i.ProbePassedAt = moment(r.ProbePassedAt)
	i.CreatedAt, i.UpdatedAt = moment(&r.CreatedAt), moment(&r.UpdatedAt)
	return i
}

func moment(us *int64) time.Time {
	if us == nil {
		return time.Time{}
	}
	return time.UnixMicro(*us).UTC()
}

func orEmpty(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}
