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
# Seconds to wait, with the lock, until InnoDB has nothing left to write; 0 does not have it write at all. See
# the hook.
clean_limit=5
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

holders=0
for ((look = 0; look < patience * 5 && holders == 0; look++)); do
    kill -0 "$session" 2> /dev/null || break
    sleep 0.2
    holders=$(sql "$holder") || break
done
if ((holders == 0)); then
    kill "$session" 2> /dev/null || :
    fail "no global read lock within $patience s: is a long query or transaction running?"
fi

# Changed pages, transactions to clean up after, and the log since the last checkpoint, whose note is 16 bytes.
left="SELECT CAST(SUM(VARIABLE_VALUE) AS UNSIGNED) FROM information_schema.GLOBAL_STATUS
    WHERE VARIABLE_NAME IN ('INNODB_BUFFER_POOL_PAGES_DIRTY', 'INNODB_HISTORY_LIST_LENGTH',
                            'INNODB_CHECKPOINT_AGE')"
for ((deadline = SECONDS + clean_limit; SECONDS < deadline; )); do
    bytes=$(sql "SET GLOBAL innodb_log_checkpoint_now = ON; $left") || fail 'no checkpoint: set clean_limit=0'
    ((bytes > 16)) || break
    sleep 0.02
done
say 'frozen'
