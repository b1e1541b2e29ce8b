package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

type mediaCommand struct {
	Show mediaShow `cmd:"" help:"Where a media is stored, and its URL."`
}

type mediaShow struct {
	environmentFlags
	Media string `required:"" placeholder:"ID" help:"The media's ID."`
}

func (mediaShow) Help() string {
	return `Tells what the ledger holds: what was last stored, not what the bucket has now.

Example:
  ownbucket media show --service S1 --media m1`
}

// shownMedia is a media as operators see it; its JSON is a contract. What a
// deleted media has no more is absent.
type shownMedia struct {
	MediaID     string `json:"media_id"`
	Key         string `json:"key,omitempty"`
	URL         string `json:"url,omitempty"`
	Version     string `json:"version"`
	ContentType string `json:"content_type,omitempty"`
	Size        *int64 `json:"size,omitempty"`
	ETag        string `json:"etag,omitempty"`
	Deleted     bool   `json:"deleted"`
}

func (c mediaShow) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		object, err := ledger.New(db).Media(ctx, c.Service, c.Environment, c.Media)
		if err != nil {
			return err
		}
		if object == nil {
			return fmt.Errorf("media %q is not in the ledger of service %q, environment %s: nothing of it was stored",
				c.Media, c.Service, place(c.Environment))
		}
		shown := shownMedia{MediaID: object.MediaID, Deleted: !object.Live(),
			Version: events.NewVersion(time.UnixMicro(object.Version)).String()}
		if object.Live() {
			settings, err := integration.New(db).Show(ctx, c.Service, c.Environment)
			if err != nil {
				return err
			}
			shown.Key, shown.ContentType, shown.Size, shown.ETag = *object.Key, object.ContentType, &object.Size, object.ETag
			shown.URL = bucket.URL(settings.CustomDomain, *object.Bucket, settings.Region, *object.Key)
		}
		return printOne(a, shown, field{"media", shown.MediaID}, field{"key", shown.Key}, field{"url", shown.URL},
			field{"version", shown.Version}, field{"content type", shown.ContentType}, field{"size", sizeOf(shown.Size)},
			field{"etag", shown.ETag}, field{"deleted", yesNo(shown.Deleted)})
	})
}

func sizeOf(size *int64) string {
	if size == nil {
		return ""
	}
	return strconv.FormatInt(*size, 10) + " bytes (" + humanize.IBytes(uint64(*size)) + ")"
}
