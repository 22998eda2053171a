#!/bin/bash
# A thaw script of rowd for MariaDB: ends the session with which prescript.sh holds the global read lock.
# If there is none any more, the lock was lost before the snapshot was done: that is a failure.
set -euo pipefail

# ---- As in prescript.sh ---------------------------------------------------------------------------------
options=()
# ---------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
sql() { mariadb "${options[@]}" --batch --skip-column-names --execute "$1"; }

command -v mariadb mariadb-admin > /dev/null || { say 'MariaDB is not installed'; exit 0; }
mariadb-admin "${options[@]}" ping > /dev/null 2>&1 || { say 'MariaDB does not run'; exit 0; }

holders=$(sql "SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT 1 AND SLEEP(%'") ||
    fail 'cannot look at the sessions of the server'
[[ $holders ]] || fail 'nobody holds the lock: it ended by itself before the snapshot was done'
for session in $holders; do
    sql "KILL CONNECTION $session" || fail "cannot end session $session"
done
say 'thawed'
