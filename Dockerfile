# The image of Countersign. docs/image.md: how to build it, check it, and bump its bases.
#
# Rules:
# - Both bases are pinned by digest; an all-zero digest is a placeholder that no registry has, so an image is never built
#   on whatever a tag means today. docs/image.md has the command that puts the digests in.
# - Everything from a package index is a wheel named in a lock file with its hash. Nothing is compiled from foreign source.
# - The run stage has no shell, no package manager and no pip, runs as a number that is not root, and needs to write
#   nothing: its file system can be read-only. Only `countersign demo` wants a temporary folder.
# - Both stages have the same minor version of Python at /usr/bin/python3, because the environment is moved between them.
#
# regopy and oras serve `countersign demo` alone. They are left in: requirements.lock is the one list that is tested as a
# whole, and with the demo an image can show on any machine, without a network, that it works. Neither is imported by `serve`.

ARG BUILD_IMAGE=docker.io/library/python:3.13-slim-trixie@sha256:0000000000000000000000000000000000000000000000000000000000000000
ARG RUNTIME_IMAGE=gcr.io/distroless/python3-debian13:nonroot@sha256:0000000000000000000000000000000000000000000000000000000000000000

FROM ${BUILD_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore

# The run stage's interpreter is /usr/bin/python3; the environment must name that one, not the build image's own.
RUN ln -sf "$(command -v python3)" /usr/bin/python3 \
    && /usr/bin/python3 -m venv --without-pip /opt/countersign

# Dependencies first: they change less often than the code. `pip check` says so if the lock lacks one.
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python3 -m pip --python /opt/countersign/bin/python install --require-hashes --only-binary=:all: --no-deps --no-compile \
        -r requirements.lock \
    && python3 -m pip --python /opt/countersign/bin/python check \
    && python3 -m pip install --require-hashes --only-binary=:all: --no-deps -r requirements-build.lock

COPY pyproject.toml README.md LICENSE ./
COPY provider provider
COPY policies policies
RUN python3 -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python3 -m pip --python /opt/countersign/bin/python install --no-index --no-deps --no-compile /wheels/countersign-*.whl

# Byte code that is never compared with its source: nothing to write at start, nothing to look up. By force, because pip
# has imported and compiled some of it already. Of the commands that packages bring only ours stays.
RUN /opt/countersign/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/countersign/lib \
    && find /opt/countersign/bin -mindepth 1 ! -name countersign ! -name 'python*' -delete

FROM ${RUNTIME_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Countersign" \
      org.opencontainers.image.description="Gatekeeper external data provider that admits only container images signed by someone the cluster trusts" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/countersign /opt/countersign
ENV PATH=/opt/countersign/bin:/usr/bin \
    HOME=/nonexistent \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
# The smoke test, on the final file system and as the final user. The demo's help loads every native library there is.
RUN ["countersign", "--version"]
# hadolint ignore=DL3059
RUN ["countersign", "demo", "--help"]
# Gatekeeper's calls (TLS), health, metrics.
EXPOSE 6001 9099 8888
ENTRYPOINT ["countersign"]
CMD ["--help"]
