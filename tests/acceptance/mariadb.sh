#!/bin/bash
# MariaDB with its tables and its log on two disks gets a row a second. Meanwhile a group is made at the level
# `app`, with the example hook or with the example scripts. The pause shows in the live table. After a rollback
# of the group the table ends before the freeze, no number is missing, and the server finds nothing to recover.
#
# usage: mariadb.sh DIRECTORY-WITH-ROWD-AND-ROWCTL [hook|scripts] [ROWS]
set -euo pipefail
# shellcheck source=tests/acceptance/common.sh
source "$(dirname "$0")/common.sh"

# The times of the server and those of rowd are compared.
export TZ=UTC
way=${2:-hook}
rows=${3:-25}
rows_before=10
# Seconds that another application takes to go on. The example takes less than the second between two rows, and
# its pause might fall between them.
slow=3

examples=$(dirname "$0")/../../examples/mariadb
for program in mariadbd mariadb-install-db mariadb; do
    command -v "$program" > /dev/null || fail "$program is missing: apt-get install mariadb-server"
done
client=(--no-defaults --socket="$home/socket/sock")
sql() { mariadb "${client[@]}" --batch --skip-column-names --execute "$1"; }
files=(--no-defaults --user=mysql --datadir="$home/data/main" --innodb-log-group-home-dir="$home/log/main")

# start_server LOG: as the user mysql, on a socket of its own.
start_server() {
    # Statistics that it renews by itself, every ten seconds at most, might fall between the last look of the
    # example and the cut.
    mariadbd "${files[@]}" --innodb-stats-auto-recalc=OFF --socket="$home/socket/sock" --pid-file="$home/socket/pid" --skip-networking \
        > "$home/$1.log" 2>&1 & server=$!
    wait_for 'the start of MariaDB' 60 sql 'SELECT 1'
}

stop_server() { sql SHUTDOWN; wait "$server"; server=; }

# install_example FILE DIRECTORY MODE: with the way to this server in it.
install_example() {
    mkdir -p "$2"
    sed "s|^options=()|options=(${client[*]})|" "$examples/$1" > "$home/example"
    grep -q "^options=(--no-defaults" "$home/example" || fail "$1 has no line for the options"
    install -m "$3" "$home/example" "$2/$1"
}

# expect CODE COMMAND...: it ends with this exit code.
expect() {
    local wanted=$1 code=0
    shift
    "$@" > "$home/said" 2>&1 || code=$?
    say "${1##*/}${2:+ $2} ends with exit code $code: $(head -n 1 "$home/said")"
    ((code == wanted)) || fail "exit code $wanted was expected"
}

title '1. A daemon with two disks: one for the tables, one for the log of InnoDB.'
start_daemon "[freeze]
hooks = \"$home/hooks\""
make_room mysql 1GiB data log

title '2. MariaDB on them.'
mariadb-install-db "${files[@]}" --auth-root-authentication-method=socket --skip-test-db > "$home/install.log" 2>&1
start_server first
sql 'CREATE DATABASE life; CREATE TABLE life.point_in_time (id INT PRIMARY KEY, at DATETIME(6) NOT NULL)'
sql 'CREATE TABLE life.trial (id INT PRIMARY KEY AUTO_INCREMENT)'
say "$(sql 'SELECT VERSION()')"

# insert_waits: whether an INSERT waits for the lock; it is left waiting.
insert_waits() {
    sql 'INSERT INTO life.trial VALUES ()' & writers+=($!)
    wait_for 'an INSERT that waits' 20 waiting
}
waiting() {
    sql "SELECT STATE FROM information_schema.PROCESSLIST WHERE INFO LIKE 'INSERT INTO life.trial%'" |
        grep -q 'Waiting for backup lock'
}
insert_goes_on() { wait "${writers[-1]}" || fail 'the INSERT failed'; writers=(); say 'the INSERT that waited goes on'; }
# With a table locked by somebody else there is no global read lock.
locker="SELECT ID FROM information_schema.PROCESSLIST WHERE INFO = 'DO SLEEP(60)'"
table_is_locked() { [[ $(sql "$locker") ]]; }
lock_a_table() {
    sql 'LOCK TABLES life.trial WRITE; DO SLEEP(60)' 2> /dev/null & writers+=($!)
    wait_for 'a lock on a table' 20 table_is_locked
}
unlock_the_table() {
    sql "KILL CONNECTION $(sql "$locker")"
    wait "${writers[-1]}" || :
    writers=()
    sql 'INSERT INTO life.trial VALUES ()'
}

# With a hook it is talked to as rowd does.
begin_hook() {
    coproc HOOK { exec "$home/hooks/50-mariadb" 2> "$home/hook.log"; }
    hook=$HOOK_PID
    hook_input=${HOOK[1]}
    read -rt 30 answer <&"${HOOK[0]}" || answer=
}
end_hook() { code=0; exec {hook_input}>&-; wait "$hook" || code=$?; }

try_hook() {
    begin_hook
    [[ $answer == READY ]] || fail "the hook said ${answer:-nothing}"
    insert_waits
    say 'the hook says READY, and an INSERT waits'
    end_hook
    ((code == 0)) || fail "the hook ends with exit code $code"
    insert_goes_on
    begin_hook
    sql "KILL CONNECTION $(sql "SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND = 'Sleep'
        ORDER BY ID DESC LIMIT 1")"
    end_hook
    ((code == 1)) || fail "the hook ends with exit code $code though its session was killed"
    say "its session killed: $(tail -n 1 "$home/hook.log")"
    lock_a_table
    begin_hook
    end_hook
    [[ $code == 1 && ! $answer ]] || fail 'the hook is quiet though a table was locked'
    say "a table locked by another: $(tail -n 1 "$home/hook.log")"
    unlock_the_table
}

try_scripts() {
    expect 1 "$home/postscript.sh"
    expect 0 "$home/prescript.sh"
    insert_waits
    say 'an INSERT waits'
    expect 1 "$home/prescript.sh"
    expect 0 "$home/postscript.sh"
    insert_goes_on
    lock_a_table
    expect 1 "$home/prescript.sh"
    expect 1 "$home/postscript.sh"
    unlock_the_table
    # With rowd: a server that somebody else has frozen, and a lock that does not live long enough.
    "$home/prescript.sh" > /dev/null
    expect 9 rowctl group create data log --name refused "${freeze[@]}"
    expect 20 rowctl group show refused
    sed -i 's/^lifetime=25/lifetime=1/' "$home/prescript.sh"
    expect 10 rowctl group create data log --name late "${freeze[@]}"
    has_tag late FsConsistent
    sed -i 's/^lifetime=1/lifetime=25/' "$home/prescript.sh"
}

# has_tag GROUP TAG: on each member.
has_tag() {
    local disk
    for disk in data log; do
        rowctl -o json snapshot show "$disk@$1" > "$home/member.json"
        grep -Eq "\"$2\": *\"True\"" "$home/member.json" || fail "$disk@$1 has no tag $2: $(< "$home/member.json")"
    done
    say "each member of the group has the tag $2:True"
}

title "3. The example by itself: $way."
freeze=(--consistency app --mount "$home/data" --mount "$home/log")
if [[ $way == hook ]]; then
    install_example 50-mariadb "$home/hooks" 755
    sed -i 's/^lock_limit=10/lock_limit=2/; s/^clean_limit=5/clean_limit=20/' "$home/hooks/50-mariadb"
else
    install_example prescript.sh "$home" 700
    install_example postscript.sh "$home" 700
    sed -i 's/^patience=10/patience=2/; s/^clean_limit=5/clean_limit=20/' "$home/prescript.sh"
    freeze+=(--pre-script "$home/prescript.sh" --post-script "$home/postscript.sh")
fi
printf '%s\n' '#!/bin/bash' '# Stands for another application, which takes its time to go on.' \
    'echo READY' 'cat > /dev/null' "read -rt $slow <> <(:) || :" > "$home/slow"
install -D -m 755 "$home/slow" "$home/hooks/60-slow"
stat --format='    %A %U %n' "$home"/hooks/* "$home"/*script.sh 2> /dev/null || :
"try_$way"
stop_server
# Nothing to freeze is a success.
if [[ $way == hook ]]; then begin_hook; end_hook; [[ $answer == READY ]] && ((code == 0))
else expect 0 "$home/prescript.sh"; expect 0 "$home/postscript.sh"; fi
say 'without a server there is nothing to keep quiet'
start_server first

title "4. A row each second, $rows in all."
for ((id = 1; id <= rows; id++)); do
    printf 'INSERT INTO life.point_in_time VALUES (%d, NOW(6)); DO SLEEP(1);\n' "$id"
done | mariadb "${client[@]}" & writers+=($!)
has_rows() { (($(sql 'SELECT COUNT(*) FROM life.point_in_time') >= rows_before)); }
wait_for "$rows_before rows" 60 has_rows

title '5. Meanwhile a group of both disks at the level app.'
asked=$(sql 'SELECT NOW(6)')
printf '  $ rowctl group create data log --name pit %s\n' "${freeze[*]}"
rowctl -o json group create data log --name pit "${freeze[@]}" > "$home/group.json"
answered=$(sql 'SELECT NOW(6)')
python3 - "$home/group.json" "$home/frozen" << 'END'
import json, sys
group = json.load(open(sys.argv[1]))
report = group["freeze"]
print("    group", group["id"], "reached the level", report["reached"])
for note in report["notes"]:
    print("    note:", note)
for phase in report["phases"]:
    print("    %-12s %9.1f ms" % (phase["name"], phase["seconds"] * 1000))
print("    file systems frozen from", report["frozen_at"], "to", report["thawed_at"])
if report["reached"] != "app":
    sys.exit("the level app was not reached")
open(sys.argv[2], "w").write(report["frozen_at"].replace("T", " ").rstrip("Z"))
END
frozen=$(< "$home/frozen")
run rowctl group show pit
has_tag pit APPConsistent
say "asked for at $asked, answered at $answered"

title '6. The writer has gone on to the end, without an error. Its longest pause:'
wait "${writers[0]}" || fail 'a writer saw an error'
writers=()
sql 'SELECT id, at FROM life.point_in_time ORDER BY id' > "$home/live"
(($(wc -l < "$home/live") == rows)) || fail 'the live table has not all rows'
longest=$(sql "SELECT TIMESTAMPDIFF(MICROSECOND, a.at, b.at) / 1e6, a.id, a.at, b.id, b.at
    FROM life.point_in_time a JOIN life.point_in_time b ON b.id = a.id + 1 ORDER BY 1 DESC LIMIT 1")
IFS=$'\t' read -r seconds id_before at_before id_after at_after <<< "$longest"
say "$seconds s, between row $id_before at $at_before and row $id_after at $at_after"
# The row that had to wait carries the time before the lock.
[[ $at_before < $answered && $at_after > $frozen ]] || fail 'the longest pause is elsewhere'
awk -v pause="$seconds" -v least="$slow" 'BEGIN { exit !(pause >= least) }' || fail 'it is shorter than the freeze'
waited=$(sql "SELECT COUNT(*) FROM life.point_in_time WHERE at BETWEEN '$frozen' AND '$answered'")
((waited <= 1)) || fail "$waited rows were written during the freeze"

title '7. The server is stopped, the group rolled back, the server started again.'
stop_server
unmount_all
run rowctl group rollback pit --yes
for disk in data log; do
    attach "$disk"
    e2fsck -fn "${device[$disk]}" > "$home/e2fsck.log" 2>&1 || fail 'e2fsck finds faults'
    state=$(dumpe2fs -h "${device[$disk]}" 2> /dev/null | grep '^Filesystem features')
    [[ $state != *needs_recovery* ]] || fail "the file system on $disk has a journal to replay"
    detach "$disk"
    mount_disk "$disk"
done
say 'e2fsck: both file systems are clean, with no journal to replay'
start_server second
grep -E 'InnoDB: (Starting|End of log|To recover|.*roll)' "$home/second.log" | sed 's/^/    /' || :

title '8. What the table has.'
IFS=$'\t' read -r count first last last_at < <(
    sql 'SELECT COUNT(*), MIN(id), MAX(id), MAX(at) FROM life.point_in_time')
say "$count rows, from $first to $last, the last one at $last_at; asked for at $asked, frozen at $frozen"
((first == 1 && last == count)) || fail 'a row is missing'
[[ $last_at < $frozen ]] || fail 'a row from after the freeze is in the snapshot'
# The row that had to wait for the lock may have begun before.
before=$(awk -F'\t' -v asked="$asked" '$2 < asked' "$home/live" | wc -l)
((before - count <= 1)) || fail "$before rows were there when the group was asked for"
sql 'CHECK TABLE life.point_in_time EXTENDED' | sed 's/^/    /'
! grep -Eq 'crash recovery|rolled back' "$home/second.log" || fail 'the server had to recover'
say 'The server had nothing to recover.'
stop_server
unmount_all

title 'The table ends before the freeze, and nothing is missing.'
