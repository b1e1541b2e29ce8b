package database_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/migrations"
)

// traps are functions and operators that match our queries' arguments better than
// PostgreSQL's own. What runs one of them is noted with its rights.
const traps = `
CREATE TABLE public.caught (role text, what text);
GRANT INSERT ON public.caught TO PUBLIC;
CREATE FUNCTION public.times(a numeric, b integer) RETURNS numeric LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.caught VALUES (current_user, 'operator');
	RETURN pg_catalog.numeric_mul(a, b::numeric);
END $$;
CREATE OPERATOR public.* (FUNCTION = public.times, LEFTARG = numeric, RIGHTARG = integer);
CREATE FUNCTION public.hashtextextended(a text, b integer) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.caught VALUES (current_user, 'function');
	RETURN 0;
END $$;`

// tempting is a query that runs both where schema public is searched.
const tempting = `SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint), hashtextextended('a', 0)`

// publisherURL gives the URL of a role that may publish and, as was the default before
// PostgreSQL 15, create in schema public.
func publisherURL(t *testing.T, databaseURL string) string {
	t.Helper()
	db := dbtest.Open(t, databaseURL)
	role := "publisher " + uuid.NewString() // roles are the whole server's
	quoted := pgx.Identifier{role}.Sanitize()
	if _, err := db.ExecContext(t.Context(), `CREATE ROLE `+quoted+` LOGIN; GRANT CREATE ON SCHEMA public TO `+quoted); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), `DROP OWNED BY `+quoted+`; DROP ROLE `+quoted); err != nil {
			t.Error(err)
		}
	})
	if err := migrations.GrantPublisher(t.Context(), db, role); err != nil {
		t.Fatal(err)
	}
	parsed, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	parsed.User = url.User(role)
	return parsed.String()
}

// A publisher that may create functions gets none of ours to run it.
func TestNoFunctionOfAPublisherRunsWithOurRights(t *testing.T) {
	t.Parallel()
	databaseURL := dbtest.PostgreSQLURL(t)
	publisher, err := pgx.Connect(t.Context(), publisherURL(t, databaseURL))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = publisher.Close(context.Background()) })
	if _, err := publisher.Exec(t.Context(), traps); err != nil {
		t.Fatal(err)
	}
	db := dbtest.Open(t, databaseURL)
	caught := func() (n int) {
		t.Helper()
		if err := publisher.QueryRow(t.Context(), `SELECT count(*) FROM public.caught`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := publisher.Exec(t.Context(), tempting); err != nil || caught() != 2 {
		t.Fatalf("the traps catch nothing: %d, %v", caught(), err)
	}
	session, err := database.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(context.Background())
	if _, err := session.Exec(t.Context(), tempting); err != nil {
		t.Error(err)
	}
	if _, err := db.ExecContext(t.Context(), tempting); err != nil {
		t.Error(err)
	}
	insisting := dbtest.Open(t, databaseURL+"&search_path=public&options=-csearch_path%3Dpublic")
	if _, err := insisting.ExecContext(t.Context(), tempting); err != nil {
		t.Error(err)
	}
	if n := caught(); n != 2 {
		t.Errorf("%d functions of a publisher ran with our rights", n-2)
	}
}

func TestARoleBehindAPoolerMustHaveOurSearchPath(t *testing.T) {
	t.Parallel()
	direct := pgtest.URL(t)
	bouncer := pgtest.StartPgBouncer(t, direct)
	dbtest.Open(t, bouncer.URL) // it has
	conn, err := pgx.Connect(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	parsed, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	name := pgx.Identifier{strings.TrimPrefix(parsed.Path, "/")}.Sanitize()
	if _, err := conn.Exec(t.Context(), `ALTER DATABASE `+name+` RESET search_path`); err != nil {
		t.Fatal(err)
	}
	bouncer.Restart(t)
	db, err := database.Open(t.Context(), bouncer.URL, database.DefaultSchema)
	if err == nil {
		_ = db.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "ALTER ROLE") {
		t.Errorf("the error is %v", err)
	}
}
