#!/bin/sh
# aptroot.sh DEST PACKAGE...: unpack Debian packages, and those dependencies of theirs that this
# machine lacks, into DEST/root. Needs no root: only apt-get and dpkg.
set -eu
dest=$1
shift
apt=$dest/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$dest/root"

apt() {
    apt-get -qq -o "Dir::State=$apt" -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt" \
        -o Debug::NoLocking=1 -o Dir::State::status=/var/lib/dpkg/status "$@"
}

apt update
list=$(apt -s install --no-install-recommends "$@" | awk '/^Inst/{print $2}')
[ -n "$list" ] || exit 0
cd "$apt/archives"
# shellcheck disable=SC2086 # a list of package names
apt download $list
for deb in *.deb; do dpkg -x "$deb" "$dest/root"; done

# Absolute links point outside the unpacked tree: turn them inwards where the target is in it.
find "$dest/root" -type l -lname '/*' | while read -r link; do
    target=$(readlink "$link")
    [ ! -e "$dest/root$target" ] || ln -sfn "$dest/root$target" "$link"
done
