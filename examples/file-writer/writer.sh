#!/bin/bash
# An application that writes a file: one numbered line after the other, each flushed. It shows what any
# application needs in order to be kept quiet by a hook: a way to be told, and a way to say that it has happened.
#
#   writer.sh FILE      appends to FILE until it is ended
#   FILE.pause          while this exists, the writer does not write; whoever wants quiet makes it
#   FILE.paused         made by the writer when its last line is on the disk, removed when it goes on
set -euo pipefail

file=${1:?usage: writer.sh FILE}
# A request for quiet that is older than this was forgotten by somebody who died: the writer goes on.
forgotten=60

touch "$file"
number=$(($(wc -l < "$file") + 1))

asked_for_quiet() {
    [[ -e $file.pause ]] && (($(date +%s) - $(stat -c %Y "$file.pause" 2> /dev/null || echo 0) < forgotten))
}

while :; do
    if asked_for_quiet; then
        sync "$file"
        : > "$file.paused"
        while asked_for_quiet; do sleep 0.02; done
        rm -f "$file.paused"
    fi
    # Two halves with time between them, to show what a cut there would do.
    printf 'line %d ' "$number" >> "$file"
    sleep 0.03
    printf 'of %s\n' "$(date +%FT%T.%N)" >> "$file"
    number=$((number + 1))
    sleep 0.02
done
