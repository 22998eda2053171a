#!/bin/bash
# Recovery drill: a daemon of its own, with an empty pool, takes the newest copy of each disk from a repository,
# reads every byte of it back, makes a disk of it, and checks the file system on it. Nothing of it is left at the
# end, and the repository stays as it was.
#
# usage: drill.sh URL [OPTION-OF-REPO-ADD…]
#        drill.sh s3://my-bucket/host1 --endpoint https://s3.example --credentials file:/etc/rowd/s3.keys
#
# Exit code 0: every copy came back. 1: one did not, and its line says why. It needs jq, nbdfuse, e2fsprogs, for XFS
# root and xfsprogs, and in DRILL_DIR (default /var/tmp) space for what the disks hold. Copies of encrypted disks
# need the master key: DRILL_CONFIG names a rowd.toml that says where it is.
set -euo pipefail

url=${1:?usage: drill.sh URL [OPTION-OF-REPO-ADD…]}
shift
home=$(mktemp -d "${DRILL_DIR:-/var/tmp}/rowd-drill-XXXXXX")
export ROWD_DIR=$home/rowd
daemon=
fuse=
device=
failed=0

# A short pause of a loop that waits for something.
tick() { read -rt 0.05 <> <(:) || :; }

unmount_device() {
    if mountpoint -q "$home/mnt" 2> /dev/null; then umount "$home/mnt"; fi
    if [[ $device ]]; then losetup --detach "$device"; device=; fi
}

# open_disk NAME: makes the disk the file $home/fuse/disk.
open_disk() {
    mkdir -p "$home/fuse"
    nbdfuse "$home/fuse/disk" "nbd+unix:///$1?socket=$ROWD_DIR/nbd.sock" & fuse=$!
    until [[ -f $home/fuse/disk ]]; do
        kill -0 $fuse || { fuse=; return 1; }
        tick
    done
}

close_disk() {
    unmount_device
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

clean_up() {
    local status=$?
    trap - EXIT
    close_disk || :
    if [[ $daemon ]]; then kill "$daemon" 2> /dev/null || :; wait "$daemon" || :; fi
    rm -rf --one-file-system "$home"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# check_files: checks the file system of the open disk, and says what it found. What a crash leaves in a journal is
# replayed first, as a mount would.
check_files() {
    local file=$home/fuse/disk kind
    kind=$(blkid -p -o value -s TYPE "$file" || :)
    case $kind in
        ext[234])
            e2fsck -E journal_only -y "$file" &> "$home/fsck" && e2fsck -fn "$file" &> "$home/fsck"
            ;;
        xfs)
            if ((EUID != 0)); then echo "xfs, not checked: that needs root"; return; fi
            mkdir -p "$home/mnt"
            device=$(losetup --find --show "$file")
            { mount -o nouuid "$device" "$home/mnt" && unmount_device && xfs_repair -n -f "$file"; } &> "$home/fsck"
            ;;
        '') echo "no file system known on the whole disk"; return ;;
        *) echo "$kind, not checked"; return ;;
    esac || { echo "$kind is damaged: $(tail -n 1 "$home/fsck")"; return 1; }
    echo "$kind is sound"
}

# drill COPY NAME: takes one copy back.
drill() {
    local copy=$1 name=$2
    rowctl -o json copy verify "$copy" > "$home/job" || { jq -r .message "$home/job" >&2; return 1; }
    rowctl --quiet disk create "$name" --from "$copy" > /dev/null || return
    open_disk "$name" || return
    local status=0
    found=$(check_files) || status=$?
    close_disk
    return "$status"
}

mkdir "$ROWD_DIR"
rowd --dir "$ROWD_DIR" ${DRILL_CONFIG:+--config "$DRILL_CONFIG"} &> "$home/log" & daemon=$!
until rowctl --quiet status &> /dev/null; do
    kill -0 $daemon || { cat "$home/log" >&2; exit 1; }
    tick
done
rowctl --quiet repo add drill "$url" "$@" --existing > /dev/null

# The newest complete copy of each disk.
rowctl -o json copy list > "$home/copies"
mapfile -t copies < <(jq -r '
    map(select(.status == "accomplished")) | group_by(.detail.disk_id)
    | map(max_by(.detail.created_at)) | .[]
    | [.id, .detail.disk_name, .detail.snapshot_name, .detail.created_at] | @tsv' "$home/copies")
if ((${#copies[@]} == 0)); then
    echo "there is no complete copy in $url" >&2
    exit 1
fi

for line in "${copies[@]}"; do
    IFS=$'\t' read -r copy disk snapshot created <<< "$line"
    began=$SECONDS found=
    if drill "$copy" "drill-$copy" 2> "$home/why"; then verdict=ok; else verdict=FAILED failed=1; fi
    printf '%-6s  %s@%s of %s (%s), %d s: %s\n' "$verdict" "$disk" "$snapshot" "$created" "$copy" \
        $((SECONDS - began)) "${found:-$(head -n 1 "$home/why")}"
done
((failed == 0))
