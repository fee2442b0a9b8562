#!/bin/sh
# backup.sh FOLDER: copy the database, the users and the artifacts into a new folder below FOLDER. The server may run.
. "$(dirname "$0")/settings.sh"

[ $# = 1 ] || fail "usage: backup.sh FOLDER"
target=$1/$(date -u +%Y%m%dT%H%M%SZ)
[ ! -e "$target" ] || fail "$target is there already"
mkdir -p "$target.part"
trap 'rm -rf "$target.part"' EXIT

# Artifacts after the database: they are written before the database refers to them, so none that it names is missing.
case $MLFLOW_BACKEND_STORE_URI in
sqlite:*)
    "$PYTHON" "$here/stores.py" copy-sqlite "$MLFLOW_BACKEND_STORE_URI" "sqlite:///$target.part/mlflow.db"
    [ ! -f "$folder/users.db" ] || "$PYTHON" "$here/stores.py" copy-sqlite "$USERS_URI" "sqlite:///$target.part/users.db"
    ;;
*) pg_dump --no-password --format=custom --no-owner --no-privileges --file="$target.part/database.dump" --dbname="$POSTGRES_URI" ;;
esac
"$PYTHON" "$here/stores.py" copy-artifacts "$MLFLOW_ARTIFACTS_DESTINATION" "$target.part/artifacts"
(cd "$target.part" && find . -type f ! -name SHA256SUMS -exec sha256sum {} + >SHA256SUMS)
sync
mv "$target.part" "$target"
printf '%s\n' "$target"
