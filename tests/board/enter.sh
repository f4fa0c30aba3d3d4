#!/usr/bin/env bash
# Enter the virtual ARM64 board as if it were the machine: shell and every child process are ARM64.
#
#   enter.sh DIR "shell command"
#
# Private user, mount and pid namespaces with a private binfmt_misc (Linux 6.7 and newer), so nothing outside changes.
# DIR/profile is read first if it exists. It may set:
#   BOARD_HOME       the home folder on the board
#   HOME_READ_ONLY   1: only /tmp is writable
#   HOME_DISK        1: the home folder is a separate disk, DIR/disk
#   SITE             a folder that replaces the board's Python packages
#   NO_PYTHON        1: the board has no Python
#   OLD_PYTHON       1: the board has Python 3.9
#   QEMU_CPU         the emulated CPU
#   PRELOAD          a library to preload into every process
#   FAKETIME         the offset of the time of day, as libfaketime reads it
dir=$1
shift
BOARD_HOME=/home/edge QEMU_CPU=cortex-a53
[ ! -f "$dir/profile" ] || . "$dir/profile"
export dir BOARD_HOME HOME_READ_ONLY HOME_DISK SITE NO_PYTHON OLD_PYTHON QEMU_CPU PRELOAD FAKETIME
exec unshare --user --map-root-user --mount --pid --fork --kill-child -- /bin/sh -c '
    root=$dir/root
    mount -t tmpfs -o size=1m none /mnt && mkdir /mnt/binfmt && mount -t binfmt_misc none /mnt/binfmt || exit 97
    magic="\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    mask="\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    printf "%s" ":arm64:M::$magic:$mask:$dir/bin/qemu-aarch64:F" >/mnt/binfmt/register || exit 98
    mkdir -p "$root$BOARD_HOME"
    mount -t proc none "$root/proc" && mount --rbind /dev "$root/dev" && mount --rbind /sys "$root/sys" || exit 99
    mount --bind "$dir/tmp" "$root/tmp" || exit 99
    [ -z "$SITE" ] || mount --bind "$SITE" "$root/usr/local/lib/python3.11/dist-packages" || exit 99
    [ -z "$OLD_PYTHON" ] || mount --bind "$root/usr/bin/python3.9" "$root/usr/bin/python3.11" || exit 99
    [ -z "$NO_PYTHON" ] || mount --bind "$dir/empty" "$root/usr/bin/python3" || exit 99
    if [ -n "$HOME_DISK" ]; then mount --bind "$dir/disk" "$root$BOARD_HOME" || exit 99; fi
    if [ -n "$HOME_READ_ONLY" ]; then
        mount --bind "$root$BOARD_HOME" "$root$BOARD_HOME" && mount -o remount,bind,ro "$root$BOARD_HOME" || exit 99
    fi
    exec env -i QEMU_CPU="$QEMU_CPU" HOME="$BOARD_HOME" USER=edge PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
        ${PRELOAD:+LD_PRELOAD="$PRELOAD" FAKETIME="$FAKETIME" FAKETIME_DONT_FAKE_MONOTONIC=1} \
        /usr/sbin/chroot "$root" /bin/sh -c "cd; $*"
' sh "$@"
