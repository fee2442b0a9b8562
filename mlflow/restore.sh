#!/bin/sh
# restore.sh BACKUP: fill an empty database and an empty artifact store from a folder that backup.sh made. Stop the server
# before.
. "$(dirname "$0")/settings.sh"

[ $# = 1 ] || fail "usage: restore.sh BACKUP"
[ -f "$1/SHA256SUMS" ] || fail "$1: no backup: SHA256SUMS is missing"
(cd "$1" && sha256sum --check --quiet --strict SHA256SUMS) || fail "$1: the backup is damaged; use another"
"$PYTHON" "$here/stores.py" check-empty

# The database last: a server that is started too early then finds nothing rather than runs without their artifacts.
"$PYTHON" "$here/stores.py" copy-artifacts "$1/artifacts" "$MLFLOW_ARTIFACTS_DESTINATION"
case $MLFLOW_BACKEND_STORE_URI in
sqlite:*)
    [ -f "$1/mlflow.db" ] || fail "$1 is a backup of PostgreSQL; set MLFLOW_BACKEND_STORE_URI to an empty database there"
    [ ! -f "$1/users.db" ] || "$PYTHON" "$here/stores.py" copy-sqlite "sqlite:///$1/users.db" "$USERS_URI"
    "$PYTHON" "$here/stores.py" copy-sqlite "sqlite:///$1/mlflow.db" "$MLFLOW_BACKEND_STORE_URI"
    ;;
*)
    [ -f "$1/database.dump" ] || fail "$1 is a backup of SQLite; unset MLFLOW_BACKEND_STORE_URI"
    pg_restore --no-password --exit-on-error --single-transaction --no-owner --no-privileges --dbname="$POSTGRES_URI" "$1/database.dump"
    ;;
esac
