#!/bin/bash
# Runs the scripts that the host sends through a virtio port, one at a time.
#
#   host:  ID SECONDS SCRIPT          one line each; texts in base 16, so that nothing needs quoting
#   guest: HELLO BOOT                 once after every start
#   guest: DONE ID CODE STDOUT STDERR
#
# Outputs go through files: a script may leave programs behind that keep its outputs open.
set -u
work=$(mktemp -d /run/vm-agent.XXXXXX)
exec 3<> /dev/virtio-ports/rowd.vm
printf 'HELLO %s\n' "$(< /proc/sys/kernel/random/boot_id)" >&3
while read -r id limit script <&3; do
	basenc --base16 -d <<< "$script" > "$work/script"
	timeout --kill-after=5 "$limit" bash -euo pipefail "$work/script" \
		< /dev/null > "$work/out" 2> "$work/err" 3>&-
	code=$?
	{
		printf 'DONE %s %s ' "$id" "$code"
		basenc --base16 -w0 < "$work/out"
		printf ' '
		basenc --base16 -w0 < "$work/err"
		printf '\n'
	} >&3
	# What was left behind keeps the old files.
	rm -f "$work/out" "$work/err"
done
