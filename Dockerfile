# Builds five images: `server` (CPU, without PyTorch), `server-gpu`, `worker`, `export` and `studies`.
#
#   docker build --target server -t zfserve:server .
#
# BASE_IMAGE needs Python 3.11 with venv. For a worker on a GPU, set TORCH_INDEX to
# https://download.pytorch.org/whl/cu130. If TORCH_INDEX is empty, pip uses its ordinary index. To use your own index, pass
# a pip.conf as a secret: `--secret id=pip,src=pip.conf`. It stays out of the image.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# pip runs in /opt/build and installs into /opt/zfserve. Only /opt/zfserve is copied to an image, so images have no pip.
FROM ${BASE_IMAGE} AS build
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/zfserve
COPY constraints.txt tools/slim_environment.sh /build/
ENV PIP_CONSTRAINT=/build/constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM build AS wheel
WORKDIR /src
COPY . .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip wheel --no-deps --wheel-dir /wheels .

FROM build AS server-build
# With the extra `openvino` too, int8 is faster on CPUs with VNNI, and bf16 is available: docs/engines.md.
ARG SERVER_EXTRAS=server,tracing
COPY --from=wheel /wheels /wheels
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/zfserve/bin/python install "$(echo /wheels/zfserve-*.whl)[${SERVER_EXTRAS}]" \
    && sh /build/slim_environment.sh /opt/zfserve

FROM build AS server-gpu-build
COPY --from=wheel /wheels /wheels
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/zfserve/bin/python install "$(echo /wheels/zfserve-*.whl)[server-gpu,tensorrt-rtx,tracing]" \
    && sh /build/slim_environment.sh /opt/zfserve

# Only torch itself comes from TORCH_INDEX. The index has old copies of the dependencies, so this step has --no-deps.
FROM build AS torch-build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/zfserve/bin/python install --no-deps \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} torch

FROM torch-build AS worker-build
COPY --from=wheel /wheels /wheels
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/zfserve/bin/python install "$(echo /wheels/zfserve-*.whl)[worker,tracing]" \
    && sh /build/slim_environment.sh /opt/zfserve

FROM torch-build AS export-build
COPY --from=wheel /wheels /wheels
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/zfserve/bin/python install "$(echo /wheels/zfserve-*.whl)[export]" \
    && sh /build/slim_environment.sh /opt/zfserve

FROM torch-build AS studies-build
COPY --from=wheel /wheels /wheels
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/zfserve/bin/python install "$(echo /wheels/zfserve-*.whl)[studies]" \
    && sh /build/slim_environment.sh /opt/zfserve

# All five images are built on this stage. The programs write to /tmp and to volumes only.
FROM ${BASE_IMAGE} AS runtime
RUN groupadd --gid 10001 zfserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin zfserve
ENV PATH=/opt/zfserve/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["zfserve"]

FROM runtime AS export
COPY --from=export-build /opt/zfserve /opt/zfserve
CMD ["export", "--help"]

# For Jobs that call a service: deploy/jobs.
FROM runtime AS studies
COPY --from=studies-build /opt/zfserve /opt/zfserve
CMD ["atlas", "--help"]

FROM runtime AS worker
COPY --from=worker-build /opt/zfserve /opt/zfserve
EXPOSE 8501 9501
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["zfserve", "health", "--address", "localhost:8501", "--timeout", "4"]
# The container has a network of its own, so only published ports can be reached. TLS and tokens: docs/security.md.
CMD ["worker", "--listen", "0.0.0.0:8501", "--allow-insecure", "--metrics-host", "0.0.0.0", "--metrics-port", "9501", \
    "--model", "/models/zfnet"]

FROM runtime AS server-gpu
COPY --from=server-gpu-build /opt/zfserve /opt/zfserve
EXPOSE 8500 9500
# The first start may compile an engine, so the start period is long.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s \
    CMD ["zfserve", "health", "zfserve.v1.VisionService", "--timeout", "4"]
CMD ["serve", "--host", "0.0.0.0", "--allow-insecure", "--metrics-host", "0.0.0.0", "--model", "/models/zfnet", \
    "--no-worker"]

FROM runtime AS server
COPY --from=server-build /opt/zfserve /opt/zfserve
EXPOSE 8500 9500
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["zfserve", "health", "zfserve.v1.VisionService", "--timeout", "4"]
CMD ["serve", "--host", "0.0.0.0", "--allow-insecure", "--metrics-host", "0.0.0.0", "--model", "/models/zfnet", \
    "--no-worker"]
