# mien-server with its models installed. On the processor by default:
#
#   docker build -t mien .
#
# The package index is your pip's: hand a pip.conf in with --secret id=pip.conf,src=... where you need one.
# PyTorch is in it only if TORCH_SPEC names it; TORCH_INDEX_URL picks its build by the index that it comes from.
# docs/operations.md says who needs it.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_SPEC=
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/mien
ENV PATH=/opt/mien/bin:$PATH
COPY constraints.txt ./
# Without its dependencies, which follow from the usual index: PyTorch's own indices have few other packages.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    [ -z "$TORCH_SPEC" ] || \
    pip install --no-deps -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$TORCH_SPEC"
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY server ./server
COPY model_repository ./model_repository
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install -c constraints.txt ".[server,tracing,grouping${TORCH_SPEC:+,gpu}]"
COPY model_repository /models
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    mien-server models install --model-repository /models

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="mien" \
      org.opencontainers.image.description="A gRPC inference server for faces: Detect, Embed and Verify" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin mien
COPY --from=build /opt/mien /opt/mien
COPY --from=build --chown=mien /models /models
ENV PATH=/opt/mien/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MIEN_GRPC_ADDRESS=0.0.0.0 \
    MIEN_MODEL_REPOSITORY=/models
USER 10001
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["mien-server", "health"]
ENTRYPOINT ["mien-server"]
CMD ["serve"]
