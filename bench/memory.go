package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/migrations"
)

// enough memory for any worker, in MiB.
const enough = 128

func memoryScenarios() []scenario {
	return []scenario{
		{"memory/upload/postgresql", func(ctx context.Context, e *environment) ([]row, error) {
			return uploadMemory(ctx, e, "memory/upload/postgresql", e.install)
		}},
		{"memory/upload/sqlite", func(ctx context.Context, e *environment) ([]row, error) {
			return uploadMemory(ctx, e, "memory/upload/sqlite", e.installSQLite)
		}},
		{"memory/backlog", backlogMemory},
	}
}

func memoryRow(scenario string, count int, peak float64, limit string) row {
	return row{Scenario: scenario, Subject: ownbucket.name, Events: count, Figure: peak, Unit: "MiB RSS",
		Target: fmt.Sprintf("< %d MiB", enough), Met: new(peak < enough), Limit: limit}
}

// uploadMemory is what a worker needs at most for one large upload.
func uploadMemory(ctx context.Context, e *environment, name string,
	install func(context.Context, string, *standIn, string) (*installation, error)) ([]row, error) {
	size := pick(e.scale, int64(256<<20), 2<<30)
	aws, root, err := startSite(e, size)
	if err != nil {
		return nil, err
	}
	i, err := install(ctx, "memory", aws, root)
	if err != nil {
		return nil, err
	}
	if err := i.addCustomers(ctx, "large", 1); err != nil {
		return nil, err
	}
	if err := i.publish(ctx, events.Envelope{ServiceID: "large-0", Event: events.MediaUploaded{
		MediaID: "media", FileName: source, ContentType: "image/png", Size: &size, Source: "file:" + source,
		Version: events.NewVersion(time.Now()),
	}}); err != nil {
		return nil, err
	}
	process, err := i.startWorker(ctx, e, "--until-idle", "--timeout", "10m")
	if err != nil {
		return nil, err
	}
	peak, err := process.peakUntilExit()
	if err != nil {
		return nil, err
	}
	took, err := i.took(ctx, 0)
	if err != nil {
		return nil, err
	}
	return []row{
		memoryRow(name, 1, peak, fmt.Sprintf("buffers of one upload of %d MiB, and Go's garbage collector", size>>20)),
		{Scenario: name, Subject: ownbucket.name, Events: 1, Figure: float64(size>>20) / took.Seconds(), Unit: "MiB/s",
			Limit: "the stand-in's five checksums and its disk"},
	}, nil
}

// backlogMemory is what a worker needs at most while it works on a backlog of
// many customers.
func backlogMemory(ctx context.Context, e *environment) ([]row, error) {
	waiting, customers := pick(e.scale, 50_000, 1_000_000), pick(e.scale, 100, 1000)
	const size = 1 << 10
	aws, root, err := startSite(e, size)
	if err != nil {
		return nil, err
	}
	i, err := e.install(ctx, "memory", aws, root)
	if err != nil {
		return nil, err
	}
	if err := i.addCustomers(ctx, "many", customers); err != nil {
		return nil, err
	}
	for _, statement := range []string{addLanes, addIntegrations} {
		if _, err := i.db.ExecContext(ctx, i.db.SQL(statement)); err != nil {
			return nil, fmt.Errorf("add environments: %w", err)
		}
	}
	const batch = 50_000
	for from := 1; from <= waiting; from += batch {
		to := min(from+batch-1, waiting)
		if _, err := i.db.ExecContext(ctx, i.db.SQL(uploadAnywhere), customers, customers, customers, size, from, to); err != nil {
			return nil, fmt.Errorf("publish uploads: %w", err)
		}
	}
	if err := aws.behave(inAWS); err != nil {
		return nil, err
	}
	process, err := i.startWorker(ctx, e)
	if err != nil {
		return nil, err
	}
	peak, err := process.peakAfter(ctx, pick(e.scale, 10*time.Second, time.Minute))
	if err != nil {
		return nil, err
	}
	var seen struct{ Completed, Lanes int }
	if err := i.db.GetContext(ctx, &seen, i.db.SQL(`
		SELECT count(*) AS completed, count(DISTINCT lane_id) AS lanes FROM {outbox} WHERE outcome = 'done'`)); err != nil {
		return nil, err
	}
	limit := fmt.Sprintf("%d lanes, %d customers; %d events of %d lanes completed meanwhile",
		customers*environmentsEach, customers, seen.Completed, seen.Lanes)
	return []row{memoryRow("memory/backlog", waiting, peak, limit)}, nil
}

// environmentsEach is how many environments a customer has, production
// included.
const environmentsEach = 10

// What the API would take minutes for: nine more environments of every
// customer, with production's settings.
const (
	addLanes = `
		INSERT INTO {lanes} (service_id, environment_id)
		SELECT service_id, 'env-' || i FROM {lanes} CROSS JOIN generate_series(1, 9) AS i`
	addIntegrations = `
		INSERT INTO {integrations} (lane_id, environment_service_id, directory, bucket, region, role_arn, external_id,
			prefix, custom_domain, pin_file_names, memo, distribution_id, cdn_prefix, created_at, updated_at)
		SELECT l.lane_id, l.service_id || '-' || l.environment_id, l.environment_id || '-0123456789ab', i.bucket, i.region,
			i.role_arn, i.external_id, i.prefix, '', false, '', '', '', i.created_at, i.updated_at
		FROM {lanes} l JOIN {lanes} p ON p.service_id = l.service_id AND p.environment_id = ''
		JOIN {integrations} i ON i.lane_id = p.lane_id WHERE l.environment_id <> ''`
	uploadAnywhere = `
		INSERT INTO {outbox} (event_id, type, service_id, environment_id, data)
		SELECT gen_random_uuid(), 'MediaUploaded', 'many-' || i % ?,
			CASE WHEN i / ? % 10 > 0 THEN 'env-' || i / ? % 10 ELSE '' END, json_build_object(
			'media_id', 'media-' || i, 'file_name', 'image-' || i || '.png', 'content_type', 'image/png',
			'size', CAST(? AS bigint), 'source', 'file:` + source + `', 'version', '2026-01-01T00:00:00Z')
		FROM generate_series(CAST(? AS bigint), CAST(? AS bigint)) AS i`
)

// installSQLite is install on SQLite.
func (e *environment) installSQLite(ctx context.Context, name string, aws *standIn, root string) (*installation, error) {
	directory, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	e.cleanUp(func() error { return os.RemoveAll(directory) })
	url := "sqlite:" + filepath.Join(directory, name+".db")
	db, err := database.Open(ctx, url, "")
	if err != nil {
		return nil, err
	}
	e.cleanUp(db.Close)
	_, err = migrations.Up(ctx, db)
	return &installation{db, url, aws, root}, err
}

// publish goes through the Publisher, as a CMS in Go does.
func (i *installation) publish(ctx context.Context, list ...events.Envelope) error {
	dialect := events.PostgreSQL
	if i.db.Dialect == database.SQLite {
		dialect = events.SQLite
	}
	publisher, err := events.NewPublisher(i.db.DB, events.PublisherOptions{Dialect: dialect, Schema: i.db.Schema})
	if err != nil {
		return err
	}
	_, err = publisher.Publish(ctx, list...)
	return err
}

// peak reads the most memory that a process has had, in MiB; see proc(5).
func peak(pid int) (float64, error) {
	content, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kibibytes, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return float64(kibibytes) / 1024, err
		}
	}
	return 0, errors.New("the process has ended") // it has no memory any more
}
