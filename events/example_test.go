package events_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
)

// The CMS saves a media and publishes its upload in one transaction: both
// happen or neither does.
func ExamplePublisher_Publish() {
	ctx := context.Background()
	db := openCMS()
	defer db.Close()

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback() // does nothing after Commit
	updatedAt := time.Date(2025, 8, 12, 15, 49, 22, 123456000, time.UTC)
	if _, err := tx.ExecContext(ctx, "INSERT INTO media (id, name, updated_at) VALUES (?, ?, ?)",
		"m1", "猫 1.png", updatedAt); err != nil {
		log.Fatal(err)
	}

	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: events.SQLite})
	if err != nil {
		log.Fatal(err)
	}
	size := int64(1024)
	published, err := publisher.Publish(ctx, events.Envelope{
		EventID:   "0198a1b2-0000-7000-8000-000000000001", // empty: one is made
		ServiceID: "SERVICE#1",
		Event: events.MediaUploaded{
			MediaID:     "m1",
			FileName:    "猫 1.png",
			ContentType: "image/png",
			Size:        &size,
			Source:      "s3://cms-staging/uploads/1",
			Version:     events.NewVersion(updatedAt),
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(published.Inserted, "published:", published.EventIDs)
	printOutbox(db)
	// Output:
	// 1 published: [0198a1b2-0000-7000-8000-000000000001]
	// MediaUploaded {"media_id":"m1","file_name":"猫 1.png","content_type":"image/png","size":1024,"source":"s3://cms-staging/uploads/1","version":"2025-08-12T15:49:22.123456Z"}
}

// A *sqlx.Tx is passed as it is.
func ExamplePublisher_Publish_sqlx() {
	ctx := context.Background()
	cms := openCMS()
	defer cms.Close()
	db := sqlx.NewDb(cms, "sqlite")

	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: events.SQLite})
	if err != nil {
		log.Fatal(err)
	}
	version := events.NewVersion(time.Date(2025, 8, 12, 16, 0, 0, 0, time.UTC))
	rename := events.Envelope{
		EventID:   "0198a1b2-0000-7000-8000-000000000002",
		ServiceID: "SERVICE#1",
		Event:     events.MediaRenamed{MediaID: "m1", From: "猫 1.png", To: "猫 2.png", Version: version},
	}
	for range 2 { // repeating an event ID is harmless
		published, err := publisher.Publish(ctx, rename)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(published.Inserted, "published,", published.Duplicates, "known already")
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	printOutbox(cms)
	// Output:
	// 1 published, 0 known already
	// 0 published, 1 known already
	// MediaRenamed {"media_id":"m1","from":"猫 1.png","to":"猫 2.png","version":"2025-08-12T16:00:00Z"}
}

// From any language, publishing is one INSERT.
func Example_plainSQL() {
	db := openCMS()
	defer db.Close()
	// On PostgreSQL the table is ownbucket.outbox, and parameters are $1, $2, …
	_, err := db.Exec(`
		INSERT INTO outbox (event_id, type, service_id, environment_id, data)
		VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (event_id) DO NOTHING`,
		"0198a1b2-0000-7000-8000-000000000003", "MediaDeleted", "SERVICE#1", "",
		`{"media_id": "m1", "file_name": "猫 2.png", "version": "2025-08-12T17:00:00+09:00"}`)
	if err != nil {
		log.Fatal(err)
	}
	printOutbox(db)
	// Output:
	// MediaDeleted {"media_id": "m1", "file_name": "猫 2.png", "version": "2025-08-12T17:00:00+09:00"}
}

// With pgx's own interface, FromPgx makes the transaction fit.
func ExampleFromPgx() {
	environmentCreated := func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			publisher, err := events.NewPublisher(events.FromPgx(tx), events.PublisherOptions{Dialect: events.PostgreSQL})
			if err != nil {
				return err
			}
			_, err = publisher.Publish(ctx, events.Envelope{
				ServiceID:     "SERVICE#1",
				EnvironmentID: "staging",
				Event: events.EnvironmentCreated{
					SourceEnvironmentID:  "", // production
					EnvironmentServiceID: "SERVICE#2",
				},
			})
			return err
		})
	}
	_ = environmentCreated
}

// What can't be stored is refused before the database is touched.
func ExampleValidateFileName() {
	for _, name := range []string{"日本語 +100% \"🎉\".png", "../secret.png", "two\nlines.png"} {
		fmt.Println(events.ValidateFileName(name))
	}
	// Output:
	// <nil>
	// invalid event: file_name must not contain '/': "../secret.png"
	// invalid event: file_name must not contain the control character U+000A: "two\nlines.png"
}

// A URL that a user registered goes through WebSource.
func ExampleWebSource() {
	for _, url := range []string{"https://images.example.com/cat.png", "s3://cms-staging/another-tenant/secret.png"} {
		source, err := events.WebSource(url)
		fmt.Println(source, err)
	}
	// Output:
	// https://images.example.com/cat.png <nil>
	//  invalid MediaUploaded event: source must begin with https://, since it comes from outside
}

// openCMS stands for the CMS's own database, with Ownbucket's outbox in it.
func openCMS() *sql.DB {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		log.Fatal(err)
	}
	db.SetMaxOpenConns(1) // each connection to :memory: would be a database of its own
	if _, err := db.Exec("CREATE TABLE media (id TEXT PRIMARY KEY, name TEXT, updated_at TEXT);" + outboxTable); err != nil {
		log.Fatal(err)
	}
	return db
}

func printOutbox(db *sql.DB) {
	rows, err := db.Query("SELECT type, data FROM outbox ORDER BY sequence")
	if err != nil {
		log.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var typ, data string
		if err := rows.Scan(&typ, &data); err != nil {
			log.Fatal(err)
		}
		fmt.Println(typ, data)
	}
	if err := rows.Err(); err != nil {
		log.Fatal(err)
	}
}
