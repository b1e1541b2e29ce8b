-- A publisher's role writes what the contract has, and no other column.

-- +goose Up
-- Roles got INSERT on the whole table. With CASCADE they lose it also where they
-- passed it on; those that had it from them are among the roles.
-- +goose StatementBegin
DO $$
DECLARE
    publishers text[] := ARRAY(SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'
            ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)::text) END
        FROM pg_catalog.pg_class c CROSS JOIN pg_catalog.aclexplode(c.relacl) a
        WHERE c.oid = '{schema}.outbox'::regclass AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner);
    publisher text;
BEGIN
    FOREACH publisher IN ARRAY publishers LOOP
        EXECUTE 'REVOKE INSERT ON {schema}.outbox FROM ' || publisher || ' CASCADE';
    END LOOP;
    FOREACH publisher IN ARRAY publishers LOOP
        EXECUTE 'GRANT INSERT (event_id, type, service_id, environment_id, data, metadata) ON {schema}.outbox TO ' || publisher;
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- An older program's publishers need no more than that.
SELECT 1;
