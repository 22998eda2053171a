#!/bin/bash
# A freeze script of rowd for MariaDB: takes the global read lock, in a session that outlives this script and
# ends by itself. postscript.sh ends it. Install both with owner root and mode 0700. See README.md.
set -euo pipefail

# ---- What may have to be changed, here and in postscript.sh ---------------------------------------------
# How to reach the server; see the hook 50-mariadb.
options=()
# Seconds until the session ends by itself, should nobody end it. Freeze, snapshot and thaw have to be done
# by then.
lifetime=25
# Seconds to wait for the lock.
patience=10
# ---------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
sql() { mariadb "${options[@]}" --batch --skip-column-names --execute "$1"; }
# The session that holds the lock is known by what it does.
holder="SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT 1 AND SLEEP(%'"

# Nothing to freeze is a success.
command -v mariadb mariadb-admin > /dev/null || { say 'MariaDB is not installed'; exit 0; }
mariadb-admin "${options[@]}" ping > /dev/null 2>&1 || { say 'MariaDB does not run'; exit 0; }

holders=$(sql "$holder") || fail 'cannot look at the sessions of the server'
((holders == 0)) || fail 'the server is frozen already'

# In the background, with no output that anybody would have to wait for. Should the lock not be given in
# time, the session gives up by itself.
nohup mariadb "${options[@]}" --execute "SET SESSION lock_wait_timeout = $patience;
    FLUSH TABLES WITH READ LOCK; SELECT 1 AND SLEEP($lifetime)" > /dev/null 2>&1 &
session=$!

for ((look = 0; look < patience * 5; look++)); do
    holders=$(sql "$holder") || break
    ((holders == 0)) || { say 'frozen'; exit 0; }
    kill -0 "$session" 2> /dev/null || break
    sleep 0.2
done
kill "$session" 2> /dev/null || :
fail "no global read lock within $patience s: is a long query or transaction running?"
