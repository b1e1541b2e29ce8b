// Package pgtest gives tests a real PostgreSQL: one server per test process,
// one database per test.
package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const adminDatabase = "postgres"

var (
	running  = sync.OnceValues(start)
	created  atomic.Int64
	template sync.Map // name -> func() error, which prepares it once
)

// URL gives an empty database that is t's own and dropped after it.
func URL(t testing.TB) string {
	t.Helper()
	return clone(t, "template1")
}

// Clone gives a database of t's own as prepare leaves it. The first caller
// in this process prepares a template of that name; it must close all its
// connections. The others copy it, which takes some 30 ms.
func Clone(t testing.TB, name string, prepare func(url string) error) string {
	t.Helper()
	once, _ := template.LoadOrStore(name, sync.OnceValue(func() error {
		server, err := running()
		if err != nil {
			return err
		}
		if err := server.admin(`CREATE DATABASE ` + quote(name)); err != nil {
			return err
		}
		return prepare(server.url(name))
	}))
	if err := once.(func() error)(); err != nil {
		t.Fatalf("prepare the template database %s: %v", name, err)
	}
	return clone(t, name)
}

func clone(t testing.TB, template string) string {
	t.Helper()
	server, err := running()
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("test_%d", created.Add(1))
	if err := server.admin(`CREATE DATABASE ` + quote(name) + ` TEMPLATE ` + quote(template)); err != nil {
		t.Fatalf("create a database: %v", err)
	}
	t.Cleanup(func() {
		if err := server.admin(`DROP DATABASE ` + quote(name) + ` WITH (FORCE)`); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return server.url(name)
}

func (s *server) url(database string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.User(superuser),
		Path:     "/" + database,
		RawQuery: url.Values{"host": {s.directory}, "sslmode": {"disable"}}.Encode(),
	}).String()
}

// admin runs one statement as superuser. Databases are made one at a time,
// since two copies of one template may refuse each other.
func (s *server) admin(statement string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url(adminDatabase))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
