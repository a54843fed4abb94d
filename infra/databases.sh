#!/bin/sh
# infra/databases.sh backup|restore FOLDER: both databases, as pg_dump's archives in FOLDER. PGHOST, PGUSER and PGPASSWORD say
# where; pg_dump must be of the server's version, so Compose runs this in PostgreSQL's own image (compose.backup.yaml).
#
# Back up the databases before the bucket: what they name is then in the bucket's copy. Restore while MLflow and Prefect are
# stopped; a restore that fails changes nothing in that database.
set -eu
what=${1:-}
folder=${2:?name what to do, backup or restore, and a folder}
case $what in
backup)
  mkdir -p "$folder"
  for database in prefect mlflow; do
    pg_dump --format=custom --file="$folder/$database.dump.new" "$database"
    mv "$folder/$database.dump.new" "$folder/$database.dump"
    echo "$database: $(wc -c <"$folder/$database.dump") bytes"
  done
  ;;
restore)
  for database in prefect mlflow; do
    pg_restore --list "$folder/$database.dump" >/dev/null || { echo "$folder/$database.dump is no archive of pg_dump" >&2; exit 2; }
  done
  for database in prefect mlflow; do
    pg_restore --no-owner --file="$folder/$database.sql.new" "$folder/$database.dump"
    # a schema made anew: what the archive does not have must not stay
    psql --quiet --single-transaction --set=ON_ERROR_STOP=1 --output=/dev/null \
      --command='DROP SCHEMA public CASCADE' --command='CREATE SCHEMA public' \
      --file="$folder/$database.sql.new" "$database"
    rm "$folder/$database.sql.new"
    echo "$database: restored"
  done
  ;;
*)
  echo "not '$what': backup or restore" >&2
  exit 2
  ;;
esac
