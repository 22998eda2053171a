#!/bin/bash
# PostgreSQL with its data and its write-ahead log on two disks, under committed inserts: groups are made
# without freezing anything. After a rollback the server recovers, and has every row whose commit it had
# acknowledged before the group was asked for.
#
# usage: postgresql.sh DIRECTORY-WITH-ROWD-AND-ROWCTL
set -euo pipefail
# shellcheck source=tests/acceptance/common.sh
source "$(dirname "$0")/common.sh"

sessions=4
rows=300

bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
[[ $bin ]] || fail 'PostgreSQL is missing: apt-get install postgresql'
as_postgres=(setpriv --reuid postgres --regid postgres --init-groups)
psql=("${as_postgres[@]}" "$bin/psql" --no-psqlrc --quiet --tuples-only --no-align --host "$home/socket" postgres)
sql() { "${psql[@]}" --command "$1"; }

# start_server LOG: as the user postgres, on a socket of its own.
start_server() {
    "${as_postgres[@]}" "$bin/postgres" -D "$home/data/main" -c listen_addresses= \
        -c unix_socket_directories="$home/socket" > "$home/$1.log" 2>&1 & server=$!
    wait_for 'the start of PostgreSQL' 60 sql 'SELECT 1'
}

stop_server() { kill -INT "$server"; wait "$server"; server=; }

# start_writer SESSION: inserts one row after the other, each in a transaction of its own. psql prints the number
# of a row when its commit has been acknowledged.
start_writer() {
    seq -f "INSERT INTO entry VALUES ($1, %.0f) RETURNING number;" 1000000 2> /dev/null |
        stdbuf --output=L "${psql[@]}" > "$home/acknowledged-$1" 2>> "$home/writers.log" &
    writers+=($!)
}

acknowledged() { tail -n 1 "$home/acknowledged-$1"; }
# all_have ROWS: whether every session has had this many acknowledged.
all_have() {
    local session
    for ((session = 1; session <= sessions; session++)); do (($(acknowledged "$session") >= $1)) || return; done
}

title '1. A daemon with two disks: one for the data, one for the write-ahead log.'
start_daemon ''
make_room postgres 2GiB data wal

title '2. PostgreSQL on them, with checksums of its pages.'
"${as_postgres[@]}" "$bin/initdb" -D "$home/data/main" -X "$home/wal/main/pg_wal" --data-checksums \
    --auth=peer > "$home/initdb.log"
start_server first
sql 'CREATE TABLE entry (session int, number int, PRIMARY KEY (session, number))'
say "$(sql 'SELECT version()')"

title "3. $sessions sessions insert rows, each committed by itself. Meanwhile groups of both disks are made."
for ((session = 1; session <= sessions; session++)); do
    start_writer "$session"
done
groups=(one two three)
declare -A promised=()
for index in "${!groups[@]}"; do
    name=${groups[index]}
    wait_for "the rows before group $name" 120 all_have $(((index + 1) * rows))
    for ((session = 1; session <= sessions; session++)); do
        promised[$name,$session]=$(acknowledged "$session")
    done
    # From here on. What was acknowledged before has to be in the group.
    rowctl -o json group create data wal --name "$name" > "$home/group.json"
    say "group $name: asked for when the sessions had" \
        "$(for ((s = 1; s <= sessions; s++)); do printf '%d ' "${promised[$name,$s]}"; done)rows"
done
wait_for 'rows after the last group' 120 all_have $(((${#groups[@]} + 1) * rows))

title '4. The writers and the server are stopped.'
stop_server
for writer in "${writers[@]}"; do end "$writer"; done
writers=()
unmount_all

# in_group NAME: back to it, start, look.
in_group() {
    local session last count
    run rowctl group rollback "$1" --yes
    for disk in data wal; do mount_disk "$disk"; done
    start_server "group-$1"
    grep -E 'was interrupted|not properly shut down|redo (starts|done)|ready to accept' "$home/group-$1.log" |
        sed 's/^/    /'
    grep -q 'redo done' "$home/group-$1.log" || fail 'nothing was replayed: was it really a running server?'
    for ((session = 1; session <= sessions; session++)); do
        IFS='|' read -r count last < <(sql "SELECT count(*), max(number) FROM entry WHERE session = $session")
        ((count == last)) || fail "session $session: $count rows up to number $last, so some are missing"
        ((last >= promised[$1,$session])) ||
            fail "session $session: row ${promised[$1,$session]} was acknowledged, and the last one is $last"
        say "session $session: rows 1 to $last, at least 1 to ${promised[$1,$session]} were promised"
    done
    "${as_postgres[@]}" "$bin/pg_amcheck" --host "$home/socket" --heapallindexed --install-missing postgres
    say 'pg_amcheck: tables and indexes are sound'
    stop_server
    "${as_postgres[@]}" "$bin/pg_checksums" --check -D "$home/data/main" | grep -E 'Bad checksums' | sed 's/^/    /'
    unmount_all
}

step=5
for name in three one two; do
    title "$step. Back to group $name."
    in_group "$name"
    step=$((step + 1))
done

title "All rows that were acknowledged before a group was asked for are in it, and each was whole."
