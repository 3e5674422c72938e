# The coordinator, and the worker: `docker build -t txcoord .`, `docker run txcoord serve`.
# What is installed is pinned by version and hash; it runs as a user without rights, and writes nowhere but in /var/lib/txcoord.

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/txcoord
ENV PATH=/opt/txcoord/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements/image.txt ./
RUN pip install --require-hashes -r image.txt
COPY pyproject.toml README.md LICENSE ./
COPY txcoord ./txcoord
COPY clients ./clients
RUN pip install --no-deps --no-build-isolation ./clients/python . \
    && pip uninstall -y hatchling editables pip \
    && find /opt/txcoord -name '__pycache__' -prune -exec rm -rf {} +

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/txcoord --create-home --shell /usr/sbin/nologin txcoord
COPY --from=build /opt/txcoord /opt/txcoord
ENV PATH=/opt/txcoord/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /var/lib/txcoord
EXPOSE 7070 7071
STOPSIGNAL SIGTERM
# Of a coordinator; a worker has no API. With TLS give it TXCOORD_CA_FILE, and a TXCOORD_ADDRESS that is in the certificate.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["txcoord", "health"]
ENTRYPOINT ["txcoord"]
CMD ["serve"]
