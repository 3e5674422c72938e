# compose.sh: for docker-compose.yml, inside a container with this checkout at /src. Installs what is pinned by hash, then
# the two packages of the checkout, built from a copy. After a change of it: docker compose up --force-recreate
if ! [ -e /opt/installed ]; then
    pip install -q --root-user-action=ignore --require-hashes -r /src/requirements/run.txt
    mkdir -p /tmp/src
    cp -r /src/pyproject.toml /src/README.md /src/LICENSE /src/txcoord /src/clients /tmp/src/
    pip install -q --root-user-action=ignore --no-deps --no-build-isolation /tmp/src /tmp/src/clients/python
    touch /opt/installed
fi
