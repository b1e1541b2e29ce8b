package outbox

import (
	"strings"

	"github.com/google/uuid"
)

// Filter selects events: those that match every field that is set.
type Filter struct {
	EventIDs  []string
	States    []string
	Type      string
	ServiceID string
	// EnvironmentID is nil for every environment, and points to an empty
	// string for production.
	EnvironmentID *string
	MediaID       string
	ErrorClass    string
	ErrorCode     string
}

// Empty tells whether the filter would select every event.
func (f Filter) Empty() bool {
	return len(f.EventIDs) == 0 && len(f.States) == 0 && f.Type == "" && f.ServiceID == "" &&
		f.EnvironmentID == nil && f.MediaID == "" && f.ErrorClass == "" && f.ErrorCode == ""
}

// heldCondition is what makes an event held: its lane is.
const heldCondition = `(e.state IN ('available', 'retryable') AND coalesce(l.held, false))`

// whereUnread is where, but for the media of events that no worker has written
// yet: their payload alone tells it, see hasMedia.
func (f Filter) whereUnread() (string, []any) {
	media := f.MediaID
	f.MediaID = ""
	condition, args := f.where()
	if media != "" {
		condition, args = condition+` AND (e.media_id = ? OR e.media_id IS NULL)`, append(args, media)
	}
	return condition, args
}

// hasMedia tells whether an event has the filter's media, if it asks for one.
func (f Filter) hasMedia(e *Event) bool {
	if f.MediaID == "" {
		return true
	}
	if e.MediaID == nil {
		e.describe()
	}
	return e.Media() == f.MediaID
}

// where is the filter as a condition on {outbox} e LEFT JOIN {lanes} l.
func (f Filter) where() (string, []any) {
	conditions := []string{`true`}
	var args []any
	add := func(condition string, values ...any) {
		conditions = append(conditions, condition)
		args = append(args, values...)
	}
	if len(f.EventIDs) > 0 {
		ids := make([]any, len(f.EventIDs))
		for i, text := range f.EventIDs {
			// What isn't a UUID becomes the nil UUID, and matches nothing.
			id, _ := uuid.Parse(text)
			ids[i] = id.String()
		}
		add(`e.event_id IN ({uuid}`+strings.Repeat(`, {uuid}`, len(ids)-1)+`)`, ids...)
	}
	if len(f.States) > 0 {
		var states []string
		for _, state := range f.States {
			switch state {
			case Held:
				states = append(states, heldCondition)
			case Available, Retryable:
				states = append(states, `(e.state = ? AND NOT `+heldCondition+`)`)
				args = append(args, state)
			default:
				states = append(states, `e.state = ?`)
				args = append(args, state)
			}
		}
		add(`(` + strings.Join(states, ` OR `) + `)`)
	}
	for _, field := range []struct{ condition, value string }{
		{`e.type = ?`, f.Type},
		{`e.service_id = ?`, f.ServiceID},
		{`e.media_id = ?`, f.MediaID},
		{`e.error_class = ?`, f.ErrorClass},
		{`e.error_code = ?`, f.ErrorCode},
	} {
		if field.value != "" {
			add(field.condition, field.value)
		}
	}
	if f.EnvironmentID != nil {
		add(`e.environment_id = ?`, *f.EnvironmentID)
	}
	return strings.Join(conditions, ` AND `), args
}
