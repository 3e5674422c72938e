# env.sh: the environment of this checkout. To be sourced by a POSIX sh that set $root to the
# checkout:   root=$(cd "$(dirname "$0")/.." && pwd); . "$root/scripts/lib/env.sh"
#
#   use_venv SET [DIR]     SET is run, test or lint, each with all of those before it. Makes DIR
#                          (default: $TXCOORD_VENV or .venv) and installs what requirements/SET.txt
#                          pins and the packages of the workspace, editable; puts its bin first on
#                          PATH and sets $venv. Returns at once when nothing has changed.
#   make_venv DIR FILE     a tool's own environment from one pinned requirement file.
#   find_uv                sets $uv, bringing one into .cache/boot when the machine has none.
#
# It works as root and as an ordinary user, with python3 >= 3.11 and no pip. Everything goes below
# .venv and .cache. PYTHON names the interpreter to use.

export UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 UV_NO_PROGRESS=1
# The checkout and uv's cache may be on different file systems: copying then needs no warning.
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"

say() { echo "$*" >&2; }
die() { say "$0: $*"; exit 1; }

find_python() {
    [ -z "${python:-}" ] || return 0
    for python in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$("$python" -c 'import sys; print(sys.executable)')
            return 0
        fi
    done
    die "Python 3.11 or newer is needed (set PYTHON to name one)"
}

find_uv() {
    [ -z "${uv:-}" ] || return 0
    find_python
    uv=$(PYTHON=$python sh "$root/scripts/lib/boot.sh" "$root/.cache/boot" | tail -n 1) || die "cannot get uv"
    [ -x "$uv" ] || die "cannot get uv"
}

checksum() { cat "$@" | cksum; }

# One set-up at a time: two would break each other's work. The lock goes when the shell ends.
_lock() {
    mkdir -p "$root/.cache"
    command -v flock >/dev/null || return 0
    exec 9>"$root/.cache/setup.lock"
    flock 9
}
_unlock() { exec 9>&-; }

_new_venv() {
    find_uv
    if ! "$1/bin/python" -c '' 2>/dev/null; then
        rm -rf "$1"
        "$uv" venv -q --python "$python" "$1" || die "cannot make $1"
    fi
}

make_venv() {
    _stamp="$1/.stamp"
    _want="$root $(checksum "$2")"
    [ "$(cat "$_stamp" 2>/dev/null)" != "$_want" ] || return 0
    _lock
    if [ "$(cat "$_stamp" 2>/dev/null)" = "$_want" ]; then
        _unlock
        return 0
    fi
    _new_venv "$1"
    "$uv" pip sync -q --python "$1/bin/python" --require-hashes "$2" || return 1
    echo "$_want" >"$_stamp"
    _unlock
}

# What the stamp of a SET says when it is installed and current.
_stamp_of() {
    echo "$root $(checksum "$root/requirements/$1.txt" "$root/pyproject.toml" "$root/clients/python/pyproject.toml")"
}

# Whether SET, or a wider one, is installed in $venv and current.
_current() {
    "$venv/bin/python" -c '' 2>/dev/null || return 1
    case $1 in run) set -- run test lint ;; test) set -- test lint ;; esac
    for _set in "$@"; do
        [ "$(cat "$venv/.stamp-$_set" 2>/dev/null)" != "$(_stamp_of "$_set")" ] || return 0
    done
    return 1
}

use_venv() {
    venv=${2:-${TXCOORD_VENV:-$root/.venv}}
    _current "$1" || _lock
    if ! _current "$1"; then # still, after whoever held the lock
        say "setting up $venv ($1)"
        _new_venv "$venv"
        "$uv" pip install -q --python "$venv/bin/python" --require-hashes -r "$root/requirements/$1.txt" ||
            die "cannot install requirements/$1.txt"
        # The build backend is in the requirement file, so nothing unpinned is fetched for the build.
        PATH="$venv/bin:$PATH" "$uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation \
            --no-index -e "$root" -e "$root/clients/python" || die "cannot install the workspace"
        _stamp_of "$1" >"$venv/.stamp-$1"
    fi
    _unlock
    PATH="$venv/bin:$PATH"
    export PATH venv
}
