#!/bin/sh
# infra/make-secrets.sh FOLDER: makes the secrets that the folder does not have yet, a file for each.
# For Compose infra/secrets, for Kubernetes infra/kuberay/secrets; git ignores both. They are hexadecimal, since Prefect
# and MLflow take them in headers and addresses too.
set -eu
folder=${1:?name the folder: infra/secrets for Compose, infra/kuberay/secrets for Kubernetes}
mkdir -p "$folder"
# The folder keeps others of this machine out. The files can be read by all: containers have a user of their own.
chmod 700 "$folder"
make() {
  if [ -s "$folder/$1" ]; then return; fi
  (umask 022 && printf %s "$2$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >"$folder/$1.new" && mv "$folder/$1.new" "$folder/$1")
  echo "made $folder/$1"
}
# PostgreSQL's user `pipeline`
make PGPASSWORD ""
make AWS_ACCESS_KEY_ID ""
make AWS_SECRET_ACCESS_KEY ""
# user:password of the Prefect API and its pages
make PREFECT_API_AUTH_STRING "pipeline:"
# MLflow's user `pipeline`
make MLFLOW_TRACKING_PASSWORD ""
# signs the sessions of MLflow's pages
make MLFLOW_FLASK_SERVER_SECRET_KEY ""
# what every node and client of the Ray cluster must present
make RAY_AUTH_TOKEN ""
