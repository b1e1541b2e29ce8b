package database

import "time"

// SetLockPatience changes lockPatience for a test that is not parallel.
func SetLockPatience(patience time.Duration) (reset func()) {
	before := lockPatience
	lockPatience = patience
	return func() { lockPatience = before }
}
