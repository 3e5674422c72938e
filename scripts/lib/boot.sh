#!/bin/sh
# boot.sh DIR: print the path of a uv, making one under DIR if there is none.
# Works where python3 has neither pip nor ensurepip, as root and as an ordinary user, and installs
# nothing on the machine itself.
set -eu
boot=$1
py=${PYTHON:-python3}
export LC_ALL=C PIP_DISABLE_PIP_VERSION_CHECK=1

if [ -x "$boot/venv/bin/uv" ]; then
    echo "$boot/venv/bin/uv"
    exit
fi
command -v uv && exit

has() { "$py" -c "import $1" 2>/dev/null; }

rm -rf "$boot/venv" # a `python3 -m venv` that failed leaves a broken folder behind
mkdir -p "$boot"
if has ensurepip && "$py" -m venv "$boot/venv" >&2; then
    "$boot/venv/bin/pip" install -q uv >&2
else
    rm -rf "$boot/venv"
    "$py" -m venv --without-pip "$boot/venv" >&2
    if has pip; then
        "$py" -m pip --python "$boot/venv/bin/python" install -q uv >&2
    else
        sh "$(dirname "$0")/aptroot.sh" "$boot" python3-pip-whl >&2
        wheel=$(echo "$boot"/root/usr/share/python-wheels/pip-*.whl)
        "$boot/venv/bin/python" "$wheel/pip" install -q uv >&2
    fi
fi
echo "$boot/venv/bin/uv"
