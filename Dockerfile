# syntax=docker/dockerfile:1.7
# Two images. `pipeline` (the last, so the default): flows, Prefect worker, Ray nodes. `servers`, a tenth of its size: the
# Prefect and MLflow servers, which need neither torch nor CUDA. What a container is, its command says. `make image` builds
# both with the commit that they are of.
#
# Base: the official Python image, not nvidia/cuda. The wheels of torch and DALI bring the CUDA 13.0 runtime, cuBLAS,
# cuDNN, NCCL and nvJPEG that they were built for (requirements nvidia-*-cu13 of torch); a CUDA base image would add a
# second copy, of another version, that nothing loads. From the host come only the driver's libraries, which the NVIDIA
# Container Toolkit mounts; CUDA 13 needs driver 580 or later. Python 3.11 is what constraints.txt was resolved with.
# For a repeatable build, pin the digest too: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS base
# tini: reaps what Ray and Prefect leave behind and passes signals on; wget: KubeRay's probes and our health checks
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini wget \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 1000 pipeline \
 && useradd --uid 1000 --gid 1000 --create-home pipeline \
 # a named volume takes over the owner of the folder that it is mounted on
 && install --directory --owner pipeline --group pipeline /data /sources
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    # the images have no git, and MLflow is told the commit by the program
    GIT_PYTHON_REFRESH=quiet
WORKDIR /home/pipeline
# No HEALTHCHECK here: what is healthy depends on the command; infra/compose.yaml and infra/kuberay say it per service.
COPY --chmod=755 infra/with-secrets.sh /opt/infra/
ENTRYPOINT ["tini", "--", "/opt/infra/with-secrets.sh"]

FROM ${BASE} AS venv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build

FROM venv AS servers-packages
COPY constraints.txt infra/servers.txt ./
RUN pip install -c constraints.txt -r servers.txt && pip check

FROM base AS servers
COPY --from=servers-packages /opt/venv /opt/venv
COPY --chmod=755 infra/make-bucket.py infra/bucket.py /opt/infra/
COPY --chmod=644 infra/mlflow-auth.ini /opt/infra/
USER 1000:1000
CMD ["mlflow", "--version"]

FROM venv AS packages
# The dependencies (some 7 GB, most of it CUDA) are a layer of their own: it is built again only when one of these two
# files changes. The empty package is there for pip to read the requirements of pyproject.toml.
COPY pyproject.toml constraints.txt ./
RUN mkdir resnet_pipeline flows && touch resnet_pipeline/__init__.py flows/__init__.py README.md LICENSE \
 # the extra: Ray's dashboard and health endpoints, which KubeRay's probes ask
 && pip install -c constraints.txt ".[server]" \
 && pip uninstall --yes resnet-pipeline \
 && rm -rf /build/*
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY resnet_pipeline resnet_pipeline
COPY flows flows
RUN pip install --no-deps -c constraints.txt . && pip check

FROM base AS pipeline
# Triton builds its launchers with the C compiler where it trains, and torch.compile its CPU kernels with the C++ compiler;
# without them the recipes with `compile` end at their first step. Python's headers are in the base image.
# openssl: ray-certificate.sh.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ openssl \
 && rm -rf /var/lib/apt/lists/*
COPY --from=packages /opt/venv /opt/venv
COPY --chmod=755 infra/prefect-worker.sh infra/ray-certificate.sh /opt/infra/
# the commit, for a run's lineage: a wheel has no checkout to ask
ARG REVISION=
ENV RESNET_PIPELINE_REVISION=$REVISION \
    RESNET_PIPELINE_ROOT=/data \
    RAY_USAGE_STATS_ENABLED=0 \
    # read by the NVIDIA Container Toolkit; without it they mean nothing
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
CMD ["resnet-pipeline", "--help"]
