# svp as an image: svp in an environment of its own, run by a user without rights.
#
#   docker build -t svp .
#   docker build -t svp:gpu --build-arg TORCH="torch torchvision" --build-arg EXTRAS=dask,objectstore .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" -v svp-cache:/cache svp embed mystudy
#
# Without -u it is user 10001, who must be able to write the folder. The volume keeps downloaded
# weights and what is known of unchanged files.
#
# Packages come from the index that pip is configured for (PIP_INDEX_URL, --build-arg or secret).
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

# Extras of pyproject.toml, separated by commas; empty for none.
ARG EXTRAS=objectstore,dask
# Installed first, so that an image for GPUs can name its own: TORCH="torch==2.9.1+cu130 torchvision".
ARG TORCH=""

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/svp
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY feature_store feature_store
COPY svp svp
COPY pipelines pipelines
# The tested versions, except for those that TORCH names itself.
RUN if [ -n "${TORCH}" ]; then \
        /opt/svp/bin/pip install ${TORCH} \
        && sed -i -E '/^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==/d' constraints.txt; \
    fi \
    && /opt/svp/bin/pip install --constraint constraints.txt ".${EXTRAS:+[${EXTRAS}]}"

FROM python:${PYTHON}-slim

# A fixed number, so that volumes can be given to it. Whoever -u names may write the cache, too.
RUN useradd --uid 10001 --user-group --create-home svp \
    && mkdir /data /cache \
    && chown svp:svp /data /cache \
    && chmod 1777 /cache
COPY --from=build /opt/svp /opt/svp

ENV PATH=/opt/svp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SVP_CACHE_DIR=/cache \
    HF_HOME=/cache/huggingface
USER 10001:10001
WORKDIR /data
# Exec form: svp is process 1 and gets SIGTERM itself.
ENTRYPOINT ["svp"]
CMD ["--help"]
