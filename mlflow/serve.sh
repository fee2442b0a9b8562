#!/bin/sh
# Start the tracking server; everything is set by the variables that README.md lists.
. "$(dirname "$0")/settings.sh"

host=${MLFLOW_HOST:-127.0.0.1}
auth=${LANCET_MLFLOW_AUTH:-basic}
case $host in
127.* | localhost) ;;
*)
    [ -n "${MLFLOW_SERVER_ALLOWED_HOSTS:-}" ] ||
        fail "MLFLOW_SERVER_ALLOWED_HOSTS is not set: the names by which clients reach this server, as in mlflow.example:*"
    [ "$auth" = basic ] || fail "LANCET_MLFLOW_AUTH=$auth on $host: without users the server must stay on the loopback interface"
    ;;
esac
case $auth in
none)
    "$PYTHON" "$here/stores.py" check
    exec "$PYTHON" -m mlflow server --serve-artifacts
    ;;
basic) ;;
*) fail "LANCET_MLFLOW_AUTH=$auth: must be basic or none" ;;
esac

[ -n "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" ] ||
    fail "MLFLOW_FLASK_SERVER_SECRET_KEY is not set: 32 random bytes, the same at every start (openssl rand -hex 32)"
"$PYTHON" -c "import flask_wtf" 2>/dev/null || fail "$PYTHON has no Flask-WTF: install the extra 'server' of lancet-pipeline"
"$PYTHON" "$here/stores.py" check
"$PYTHON" "$here/stores.py" check-users

# A percent sign stands for a reference in this file format.
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = ${LANCET_MLFLOW_DEFAULT_PERMISSION:-READ}
database_uri = $(printf %s "$USERS_URI" | sed 's/%/%%/g')
admin_username = ${MLFLOW_AUTH_ADMIN_USERNAME:-admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = ${LANCET_MLFLOW_AUTH_CACHE_SECONDS:-0}
INI
export MLFLOW_AUTH_CONFIG_PATH="$folder/auth.ini"
exec "$PYTHON" -m mlflow server --app-name basic-auth --serve-artifacts
