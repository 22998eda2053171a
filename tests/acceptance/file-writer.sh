#!/bin/bash
# The example of an application of one's own: a writer that pauses when its hook asks it to. Snapshots at the level
# `app` are made while it writes, and none of them has half a line.
#
# usage: file-writer.sh DIRECTORY-WITH-ROWD-AND-ROWCTL
set -euo pipefail
# shellcheck source=tests/acceptance/common.sh
source "$(dirname "$0")/common.sh"

snapshots=8
example=$(dirname "$0")/../../examples/file-writer
journal=$home/data/journal

title '1. A daemon with a disk, and the hook for the writer.'
start_daemon "[freeze]
hooks = \"$home/hooks\""
make_disk data 256MiB
sed "s|^file=.*|file=$journal|" "$example/50-file-writer" > "$home/hook"
install -D -m 755 "$home/hook" "$home/hooks/50-file-writer"

title '2. Without a writer there is nobody to answer the hook: no snapshot.'
code=0
rowctl snapshot create data alone --consistency app --mount "$home/data" > "$home/said.log" 2>&1 || code=$?
sed 's/^/    /' "$home/said.log"
((code == 9)) || fail "exit code $code"
[[ ! -e $journal.pause ]] || fail 'the request was not taken back'

title "3. The writer writes. Meanwhile $snapshots snapshots."
"$example/writer.sh" "$journal" & writers+=($!)
lines() { wc -l < "$journal"; }
more_lines() { (($(lines) > $1)); }
wait_for 'the first lines' 20 test -s "$journal"
for ((number = 1; number <= snapshots; number++)); do
    rowctl -o json snapshot create data "at-$number" --consistency app --mount "$home/data" > "$home/made.json"
    grep -q '"reached":"app"' <(tr -d ' \n' < "$home/made.json") || fail "not app: $(< "$home/made.json")"
    [[ ! -e $journal.pause ]] || fail 'the request was not taken back'
    wait_for 'a writer that goes on' 20 more_lines "$(lines)"
done
end "${writers[0]}"
writers=()
say "the writer has written $(lines) lines"
unmount_all

title '4. What the snapshots have.'
before=0
for ((number = 1; number <= snapshots; number++)); do
    attach "data@at-$number"
    mkdir -p "$home/look"
    # There is no journal to replay.
    mount -o ro "${device[data@at-$number]}" "$home/look"
    tail -n 1 "$home/look/journal" > "$home/last"
    count=$(wc -l < "$home/look/journal")
    umount "$home/look"
    detach "data@at-$number"
    say "$(tail -c 80 "$home/last")"
    [[ $(tail -c 1 "$home/last") == '' ]] || fail 'the last line has no end'
    grep -Eq "^line $count of [0-9T:.-]+$" "$home/last" || fail "line $count is not whole"
    ((count > before)) || fail 'nothing new since the snapshot before'
    before=$count
done

title 'No snapshot has half a line.'
