# kafka.sh: Apache Kafka, for tests/support/kafka_server.py. To be sourced after env.sh.
#
#   need_kafka             .cache/kafka: libs (the jars), formatted (the data folder of a new broker) and java (the path
#                          of the Java that runs it). Made once; returns at once when it is there. Needs no root.
#
# The jars come by Maven, as requirements/kafka.xml says; their content is what requirements/kafka.sha256 pins.
. "$root/scripts/lib/java.sh"

need_kafka() {
    _kafka="$root/.cache/kafka"
    _kafka_want=$(checksum "$root/requirements/kafka.xml" "$root/requirements/kafka.sha256")
    _kafka_is_there && return 0
    need_java
    _lock
    if ! _kafka_is_there; then # still, after whoever held the lock
        _get_kafka
    fi
    _unlock
}

_kafka_is_there() {
    [ "$(cat "$_kafka/complete" 2>/dev/null)" = "$_kafka_want" ] && [ -x "$(cat "$_kafka/java" 2>/dev/null)" ]
}

_get_kafka() {
    say "getting Kafka into $_kafka"
    rm -rf "$_kafka"
    mkdir -p "$_kafka/libs"
    maven -f "$root/requirements/kafka.xml" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$_kafka/libs"
    _said=$(cd "$_kafka/libs" && sha256sum -c --quiet "$root/requirements/kafka.sha256" 2>&1) ||
        die "the jars of Kafka are not those that are pinned: $_said"
    [ "$(find "$_kafka/libs" -type f | wc -l)" = "$(wc -l <"$root/requirements/kafka.sha256")" ] ||
        die "Kafka came with jars that are not pinned"
    # Formatting takes as long as starting does: once for all brokers, which are clusters of one each.
    printf '%s\n' process.roles=broker,controller node.id=1 controller.quorum.voters=1@127.0.0.1:1 \
        controller.listener.names=CONTROLLER listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1 \
        "log.dirs=$_kafka/formatted" >"$_kafka/format.properties"
    _said=$("$java" -Xmx128m -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$_kafka/libs/*" \
        kafka.tools.StorageTool format -c "$_kafka/format.properties" -t MkU3OEVBNTcwNTJENDM2Qg 2>&1) ||
        die "cannot format a folder for Kafka: $_said"
    echo "$java" >"$_kafka/java"
    echo "$_kafka_want" >"$_kafka/complete"
}
