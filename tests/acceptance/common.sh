# What the acceptance runs share: a daemon of their own, its disks as mounted file systems, and a clean-up that
# leaves nothing running or mounted, however the run ends.
#
# A run sources this with the directory of rowd and rowctl as its first argument.
# shellcheck shell=bash

programs=${1:?usage: ${0##*/} DIRECTORY-WITH-ROWD-AND-ROWCTL}
home=$(mktemp -d /tmp/rowd-acceptance-XXXXXX)
# The database runs as another user, who has to get to its socket.
chmod 755 "$home"
export ROWD_DIR=$home/rowd
export LC_ALL=C
daemon=
server=
writers=()
mounted=()
declare -A fuse=() device=()

title() { printf '\n%s\n' "$*"; }
say() { printf '  %s\n' "$*"; }
fail() { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }
rowctl() { "$programs/rowctl" "$@"; }
# run COMMAND...: shows it and what it says.
run() { printf '  $ %s\n' "$*"; "$@" 2>&1 | sed 's/^/    /'; }
now() { date +%s.%N; }
# tick: a short pause of a loop that waits for something.
tick() { read -rt 0.05 <> <(:) || :; }

# wait_for WHAT SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@" > /dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "$what: not in time"
        tick
    done
}

# start_daemon CONFIGURATION
start_daemon() {
    printf '%s\n' "$1" > "$home/rowd.toml"
    "$programs/rowd" --dir "$ROWD_DIR" --config "$home/rowd.toml" 2> "$home/rowd.log" & daemon=$!
    wait_for 'the start of rowd' 60 rowctl --quiet status
}

# attach DISK: makes a block device of it, ${device[DISK]}. Kernels with an NBD client would use
# `rowctl disk attach` and /dev/nbd0; nbdfuse and losetup do on every kernel.
attach() {
    mkdir -p "$home/fuse-$1"
    nbdfuse "$home/fuse-$1/disk" "nbd+unix:///$1?socket=$ROWD_DIR/nbd.sock" & fuse[$1]=$!
    wait_for "the device of $1" 60 test -f "$home/fuse-$1/disk"
    device[$1]=$(losetup --find --show "$home/fuse-$1/disk")
}

detach() {
    if [[ ${device[$1]-} ]]; then losetup --detach "${device[$1]}"; unset "device[$1]"; fi
    if [[ ${fuse[$1]-} ]]; then
        release "$home/fuse-$1" || end "${fuse[$1]}"
        # It ends by itself once it is unmounted, and must: it has writes to pass on.
        wait "${fuse[$1]}" || :
        unset "fuse[$1]"
    fi
}

# release DIRECTORY: unmounts what nbdfuse has mounted. A loop device lets go of its file a moment late.
release() {
    local deadline=$((SECONDS + 60))
    until fusermount3 -u "$1" 2> "$home/busy.log"; do
        ((SECONDS < deadline)) || { cat "$home/busy.log" >&2; return 1; }
        tick
    done
}

# mount_disk DISK: attaches it and mounts it at $home/DISK.
mount_disk() {
    attach "$1"
    mkdir -p "$home/$1"
    mount "${device[$1]}" "$home/$1"
    mounted+=("$1")
}

# make_disk DISK SIZE: makes it, with a file system on it, and mounts that.
make_disk() {
    run rowctl --quiet disk create "$1" --size "$2"
    attach "$1"
    mkfs.ext4 -q -E nodiscard "${device[$1]}"
    detach "$1"
    mount_disk "$1"
}

# make_room USER SIZE DISK...: disks with a directory `main` of a database that runs as this user, and one for its
# socket.
make_room() {
    local user=$1 size=$2 disk
    shift 2
    for disk; do
        make_disk "$disk" "$size"
        install -d -o "$user" -g "$user" -m 700 "$home/$disk/main"
    done
    install -d -o "$user" -g "$user" "$home/socket"
}

unmount_all() {
    local disk
    for disk in "${mounted[@]}"; do
        umount "$home/$disk"
        detach "$disk"
    done
    mounted=()
}

# end PID [SIGNAL]: asks a process to end, and kills it if it has not after 20 seconds.
end() {
    local deadline=$((SECONDS + 20))
    kill "-${2:-TERM}" "$1" 2> /dev/null || :
    while kill -0 "$1" 2> /dev/null; do
        ((SECONDS < deadline)) || kill -KILL "$1" 2> /dev/null || :
        tick
    done
    wait "$1" 2> /dev/null || :
}

clean_up() {
    local status=$? one
    # Nothing ends this half-way, not even that nobody reads what it says.
    set +e
    trap - EXIT
    trap '' INT TERM PIPE
    for one in "${writers[@]}"; do end "$one"; done
    # A server on a disk that does not answer may not end when it is asked to.
    if [[ $server ]]; then end "$server" QUIT; fi
    for one in "${mounted[@]}"; do umount "$home/$one" || umount -l "$home/$one" || :; done
    for one in "${!fuse[@]}"; do detach "$one" || :; done
    if [[ $daemon ]]; then end "$daemon"; fi
    if ((status)); then
        for one in "$home"/*.log; do printf '\nThe end of %s:\n' "$one"; tail -n 25 "$one" || :; done
    fi
    rm -rf "$home"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

((EUID == 0)) || fail 'mounting a file system needs root'
