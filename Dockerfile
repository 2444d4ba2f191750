# The worker. Layers from the slowest to change to the fastest: torch, dependencies, the wheel.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The dependencies, read from pyproject.toml: a change to anything else in that file changes
# neither the output of this stage nor the layers below.
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; \
p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
e = p['optional-dependencies']; \
print(*p['dependencies'], *e['worker'], *e['otel'], sep='\n')" > requirements.txt \
    && sed -n '/^torch==/p' constraints.txt > torch.txt

FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The environment has no pip of its own; the base image's installs into it.
RUN python -m venv --without-pip /opt/venv
# PyTorch's own index has the build without CUDA, some gigabytes smaller. Empty: torch with CUDA.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY --from=requirements /build/torch.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$TORCH_INDEX_URL" ]; then pip --python /opt/venv/bin/python install --no-deps \
        --index-url "$TORCH_INDEX_URL" --requirement /build/torch.txt; fi
COPY --from=requirements /build/requirements.txt /build/constraints.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --constraint /build/constraints.txt \
        --requirement /build/requirements.txt

# The wheel that a release publishes: code, Lua scripts, schemas and the bundled models.
FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/build
WORKDIR /build
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/build/bin/python install --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY api_contracts api_contracts
COPY worker worker
RUN /opt/build/bin/hatchling build --target wheel --directory /dist

FROM ${PYTHON_IMAGE}
# COMPILER=1 adds what SAG_COMPILE needs: g++ on the CPU, gcc on a GPU (g++ brings the C headers).
ARG COMPILER=
# tini is process 1: it forwards signals to the supervisor and reaps orphaned processes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini ${COMPILER:+gcc g++} \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 sag \
    && useradd --uid 10001 --gid sag --create-home --shell /usr/sbin/nologin sag \
    && install --directory --owner=sag --group=sag /var/cache/huggingface
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/var/cache/huggingface \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/sag
COPY --from=dependencies /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    pip --python /opt/venv/bin/python install --no-deps --no-index --no-cache-dir /dist/*.whl
USER sag
ENTRYPOINT ["/usr/bin/tini", "--", "sag-worker"]
CMD ["run"]
