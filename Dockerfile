# One file, four images: `server` (CPU, without PyTorch), `server-gpu`, `worker` and `export`.
#
#   docker build --target server -t zfserve:server .
#
# BASE_IMAGE needs Python 3.11 with venv. TORCH_INDEX: https://download.pytorch.org/whl/cu130 for a worker on a GPU.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python3 -m venv /opt/zfserve
COPY constraints.txt /wheels/

FROM build AS server-build
RUN /opt/zfserve/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt "$(echo /wheels/zfserve-*.whl)[server]"

FROM build AS server-gpu-build
RUN /opt/zfserve/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt \
    "$(echo /wheels/zfserve-*.whl)[server-gpu,tensorrt-rtx]"

# Only torch itself is looked up in its own index; --no-deps, as that index has old copies of what it needs.
FROM build AS torch-build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/zfserve/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt --no-deps \
    --extra-index-url "${TORCH_INDEX}" torch

FROM torch-build AS worker-build
RUN /opt/zfserve/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt "$(echo /wheels/zfserve-*.whl)[worker]"

FROM torch-build AS export-build
RUN /opt/zfserve/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt "$(echo /wheels/zfserve-*.whl)[export]"

# What all four have in common at run time: nothing is written but to /tmp and to volumes.
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

FROM runtime AS worker
COPY --from=worker-build /opt/zfserve /opt/zfserve
EXPOSE 8501 9501
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["zfserve", "health", "--address", "localhost:8501", "--timeout", "4"]
CMD ["worker", "--listen", "0.0.0.0:8501", "--metrics-port", "9501", "--model", "/models/zfnet"]

FROM runtime AS server-gpu
COPY --from=server-gpu-build /opt/zfserve /opt/zfserve
EXPOSE 8500 9500
# A first start may compile an engine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s \
    CMD ["zfserve", "health", "zfserve.v1.VisionService", "--timeout", "4"]
CMD ["serve", "--host", "0.0.0.0", "--model", "/models/zfnet", "--no-worker"]

FROM runtime AS server
COPY --from=server-build /opt/zfserve /opt/zfserve
EXPOSE 8500 9500
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["zfserve", "health", "zfserve.v1.VisionService", "--timeout", "4"]
CMD ["serve", "--host", "0.0.0.0", "--model", "/models/zfnet", "--no-worker"]
