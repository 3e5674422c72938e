#!/bin/sh
# aptroot.sh DEST PACKAGE...: unpack Debian packages, and those dependencies of theirs that this
# machine lacks, into DEST/root. Needs no root: only apt-get and dpkg.
# SUITE=sid aptroot.sh DEST PACKAGE...: from another suite of Debian, with all they depend on, libc
# too, since nothing of this machine may fit: start their programs with the ld.so that is in there.
set -eu
dest=$1
shift
apt=$dest/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$dest/root"
# As root apt hands its work to another user, who may not be able to get in here.
options="-qq -o Dir::State=$apt -o Dir::State::lists=$apt/lists -o Dir::Cache=$apt -o Debug::NoLocking=1
    -o APT::Sandbox::User=root"
if [ -n "${SUITE:-}" ]; then
    uri=$(sed -n 's/^URIs: //p;s/^deb \(\[[^]]*\] \)\?\(http[^ ]*\) .*/\2/p' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $SUITE main" >"$dest/sources.list"
    # A machine with a fixed copy of Debian has one whose date is over.
    options="$options -o Dir::State::status=/dev/null -o Dir::Etc::sourcelist=$dest/sources.list
        -o Dir::Etc::sourceparts=- -o Acquire::Check-Valid-Until=false"
else
    options="$options -o Dir::State::status=/var/lib/dpkg/status"
fi

apt() {
    # shellcheck disable=SC2086 # a list of options
    apt-get $options "$@"
}

apt update
list=$(apt -s install --no-install-recommends "$@" | awk '/^Inst/{print $2}')
[ -n "$list" ] || exit 0
cd "$apt/archives"
# shellcheck disable=SC2086 # a list of package names
apt download $list
for deb in *.deb; do dpkg -x "$deb" "$dest/root"; done

# Absolute links point outside the unpacked tree: turn them inwards where the target is in it, relative, so that the
# tree can be copied.
find "$dest/root" -type l -lname '/*' | while read -r link; do
    target=$(readlink "$link")
    [ ! -e "$dest/root$target" ] || ln -sfnr "$dest/root$target" "$link"
done
