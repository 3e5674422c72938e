# databases.sh: the database servers that do not come from wheels. To be sourced after env.sh.
#
#   need_mariadb           MariaDB, for txcoord/testing/mariadb.py, which looks for it on the machine and in
#                          .cache/mariadb. Returns at once when it is there. Needs no root.
#   need_redis             Redis, for tests/support/redis_server.py, likewise in .cache/redis.
#   need_databases         both, and MySQL if it can be had, in .cache/mysql.
#
# MySQL is not in Debian's stable releases, so it comes from sid with all it depends on; it may be
# gone tomorrow. The tests of it then print NOT TESTED. The others must be there.

need_mariadb() {
    if ! _on_this_machine && [ ! -e "$root/.cache/mariadb/complete" ]; then
        _unpack mariadb "" mariadb-server-core mariadb-client-core || die "cannot get MariaDB"
    fi
}

need_redis() {
    if ! command -v redis-server >/dev/null && [ ! -e "$root/.cache/redis/complete" ]; then
        _unpack redis "" redis-server || die "cannot get Redis"
    fi
}

need_databases() {
    need_mariadb
    need_redis
    if [ ! -e "$root/.cache/mysql/complete" ]; then
        _unpack mysql sid mysql-server-core || say "MySQL cannot be had here: it is NOT TESTED"
    fi
}

_on_this_machine() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null
}

# _unpack NAME SUITE PACKAGE...
_unpack() {
    _dest="$root/.cache/$1"
    _suite=$2
    _lock
    if [ -e "$_dest/complete" ]; then # whoever held the lock has done it
        _unlock
        return 0
    fi
    say "unpacking $1 into $_dest"
    shift 2
    rm -rf "$_dest"
    if ! _said=$(SUITE=$_suite sh "$root/scripts/lib/aptroot.sh" "$_dest" "$@" 2>&1); then
        say "$_said"
        rm -rf "$_dest"
        _unlock
        return 1
    fi
    rm -rf "$_dest/apt"
    : >"$_dest/complete"
    _unlock
}
