#!/bin/sh
# Starts a command with every secret as an environment variable: the file /run/secrets/NAME becomes NAME.
#
# Files and not the container's own environment, since that is shown by `docker inspect` and kept with the container.
set -eu
for file in "${SECRETS_FOLDER:-/run/secrets}"/*; do
  [ -f "$file" ] || continue
  name=${file##*/}
  value=$(cat "$file")
  [ -n "$value" ] || { echo "the secret $name is empty: fill its file, or let infra/make-secrets.sh make a new one" >&2; exit 2; }
  export "$name=$value"
done
exec "$@"
