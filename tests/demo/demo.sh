#!/bin/bash
# The demonstration behind `make demo`: a real file system on a rowd disk is destroyed, and is back in
# milliseconds. Everything happens in a temporary directory, and nothing of it is left at the end.
#
# usage: demo.sh DIRECTORY-WITH-ROWD-AND-ROWCTL
set -euo pipefail

programs=${1:?usage: demo.sh DIRECTORY-WITH-ROWD-AND-ROWCTL}
home=$(mktemp -d /tmp/rowd-demo-XXXXXX)
export ROWD_DIR=$home/rowd
daemon=
fuse=
device=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[[ -t 1 && -z ${NO_COLOR:-} ]] || say() { printf '\n%s\n' "$*"; }
run() { printf '  $ %s\n' "$*"; "$@" 2>&1 | sed 's/^/    /'; }
rowctl() { "$programs/rowctl" "$@"; }
# A short pause of a loop that waits for something.
tick() { read -rt 0.05 <> <(:) || :; }

# Runs a command of rowctl and leaves the milliseconds it took in $took.
timed() {
    local begun=${EPOCHREALTIME/[.,]/}
    rowctl --quiet "$@" > /dev/null
    took=$(((${EPOCHREALTIME/[.,]/} - begun) / 1000))
}

# attach EXPORT: makes a block device of it. Kernels with an NBD client would use nbd-client and
# /dev/nbd0; nbdfuse and losetup do on every kernel.
attach() {
    mkdir -p "$home/fuse"
    nbdfuse "$home/fuse/disk" "nbd+unix:///$1?socket=$ROWD_DIR/nbd.sock" & fuse=$!
    until [[ -f $home/fuse/disk ]]; do kill -0 $fuse; tick; done
    device=$(losetup --find --show "$home/fuse/disk")
}

detach() {
    if [[ $device ]]; then losetup --detach "$device"; device=; fi
    if [[ $fuse ]]; then
        # A loop device lets go of its file a moment late.
        local deadline=$((SECONDS + 60))
        until fusermount3 -u "$home/fuse" 2> "$home/busy"; do
            if ((SECONDS >= deadline)); then cat "$home/busy" >&2; kill "$fuse"; break; fi
            tick
        done
        wait "$fuse" || :
        fuse=
    fi
}

mount_disk() { attach "$1"; mkdir -p "$home/mnt"; mount "$device" "$home/mnt"; }
unmount_disk() { umount "$home/mnt"; detach; }

clean_up() {
    local status=$?
    trap - EXIT
    if mountpoint -q "$home/mnt" 2> /dev/null; then umount "$home/mnt" || umount -l "$home/mnt"; fi
    detach || :
    if [[ $daemon ]]; then kill "$daemon" 2> /dev/null || :; wait "$daemon" || :; fi
    if ((status)); then
        printf '\nThe demonstration failed. The end of the log of rowd:\n'
        tail -n 20 "$home/log" 2> /dev/null || :
    fi
    rm -rf "$home"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

((EUID == 0)) || { echo "mounting a file system needs root: sudo make demo"; exit 1; }

say "1. A daemon. Everything it has is in one directory."
"$programs/rowd" --dir "$ROWD_DIR" 2> "$home/log" & daemon=$!
until rowctl --quiet status > /dev/null 2>&1; do kill -0 $daemon; tick; done
printf '  $ rowd --dir %s &\n' "$ROWD_DIR"

say "2. A disk of 1 GiB. It takes space only for what is written."
run rowctl disk create data --size 1GiB
attach data
run mkfs.ext4 -q -E nodiscard "$device"
detach

say "3. Files on it, and their checksums."
mount_disk data
mkdir "$home/mnt/documents"
for number in {1..200}; do
    head -c $((number * 1000)) /dev/urandom > "$home/mnt/documents/$number"
done
(cd "$home/mnt" && sha256sum documents/*) > "$home/sums"
sync -f "$home/mnt"
run df -h --output=size,used,target "$home/mnt"

say "4. A snapshot, while the file system is mounted."
timed snapshot create data before-the-accident
printf '  $ rowctl snapshot create data before-the-accident\n    done in %d ms, the start of rowctl included\n' "$took"

say "5. The accident: all files deleted, then random bytes over the file system itself."
run rm -rf "$home/mnt/documents"
umount "$home/mnt"
run dd if=/dev/urandom of="$device" bs=1M count=64 conv=notrunc,fsync status=none
printf '  $ mount %s\n' "$device"
if mount "$device" "$home/mnt" 2> "$home/error"; then
    echo "    it still mounts: that was no accident"
    exit 1
fi
sed 's/^/    /' "$home/error"

say "6. A rollback while somebody still uses the disk? Refused, and it says who:"
run rowctl disk rollback data before-the-accident --yes && exit 1
detach

say "7. Now that nobody does:"
timed disk rollback data before-the-accident --yes
printf '  $ rowctl disk rollback data before-the-accident --yes\n    done in %d ms\n' "$took"

say "8. Every file is back."
mount_disk data
(cd "$home/mnt" && sha256sum --check --quiet "$home/sums")
printf '  $ sha256sum --check\n    %d files, all of them what they were\n' "$(wc -l < "$home/sums")"
unmount_disk

say "9. Was the rollback the mistake? It can be undone: the wreck is there again."
timed disk rollback --undo data --yes
printf '  $ rowctl disk rollback --undo data --yes\n    done in %d ms\n' "$took"
attach data
if mount "$device" "$home/mnt" 2> /dev/null; then echo "    it mounts: the undo failed"; exit 1; fi
printf '  $ mount %s\n    does not mount, as after the accident\n' "$device"
detach
timed disk rollback data before-the-accident --yes
printf '  $ rowctl disk rollback data before-the-accident --yes\n    and back again in %d ms\n' "$took"

say "10. A clone: a second disk from the snapshot, at once and without copying."
timed disk create experiment --from data@before-the-accident
printf '  $ rowctl disk create experiment --from data@before-the-accident\n    done in %d ms\n' "$took"
mount_disk experiment
rm -rf "$home/mnt/documents"
echo "anything" > "$home/mnt/new"
unmount_disk
mount_disk data
(cd "$home/mnt" && sha256sum --check --quiet "$home/sums")
echo "    files deleted on the clone are untouched on the disk"
unmount_disk
run rowctl disk list
run rowctl snapshot list

say "A file system was deleted and overwritten, and came back whole in milliseconds. Nothing is left of this demonstration."
