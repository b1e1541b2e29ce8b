package migrations

import (
	"context"

	"github.com/ownbucket/ownbucket/internal/database"
)

// UpTo applies migrations up to a version, as the program did that knew no more.
func UpTo(ctx context.Context, db *database.DB, version int64) error {
	if err := createSchema(ctx, db); err != nil {
		return err
	}
	provider, err := newProvider(db)
	if err != nil {
		return err
	}
	_, err = provider.UpTo(ctx, version)
	return err
}

// DownTo takes migrations back, down to a version.
func DownTo(ctx context.Context, db *database.DB, version int64) error {
	provider, err := newProvider(db)
	if err != nil {
		return err
	}
	_, err = provider.DownTo(ctx, version)
	return err
}
