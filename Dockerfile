# The whole companion in a container, for the CPU and, with the NVIDIA container toolkit, for GPUs: CUDA is in the wheels.
#
#     docker build --build-arg COMMIT=$(git rev-parse HEAD) -t diffusion-objectives .
#     mkdir -p out && docker run --rm --user $(id -u):$(id -g) -v "$PWD/out:/companion/results/local" diffusion-objectives
#
# runs `paperlib reproduce tiny`; results lie in out/, beside hidden folders from which the same command goes on after it
# was stopped.  Other commands follow the image's name:
#
#     docker run --rm diffusion-objectives doctor
#     docker run --rm -p 8888:8888 diffusion-objectives lab          JupyterLab; its address is printed
#     docker run --rm diffusion-objectives test -m "not slow"        the tests
#     docker run --rm --gpus all … diffusion-objectives reproduce cifar10-gpu
#
# The base is named by tag, so that a rebuild gets Debian's security updates; it is not pinned by digest, because none has
# been verified here.  Everything Python is pinned, with hashes, by requirements.lock.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /companion
RUN python3 -m venv /opt/venv
# The lock alone first: its layer lasts until the lock changes.
COPY requirements.lock ./
RUN /opt/venv/bin/python -m pip install --require-hashes -r requirements.lock
COPY . .
RUN /opt/venv/bin/python -m pip install --no-deps --no-build-isolation -e . \
    && mkdir -p results/local/.cache results/local/.snakemake \
    && ln -s results/local/.cache results/local/.snakemake . \
    && chmod -R a+rwX /companion

FROM ${BASE}
# An init that passes signals on and reaps what is left of kernels; fonts and libraries come with the wheels.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --home-dir /opt/reader reader \
    && mkdir -m 777 /opt/reader /companion
COPY --from=build /opt/venv /opt/venv
COPY --from=build /companion /companion
WORKDIR /companion
# The caller's user need not be known to the image: its home and its name are stated.  Git is not in the image, so the
# commit is handed in when it is built, and every manifest repeats it.
ARG COMMIT=""
ENV PATH=/opt/venv/bin:$PATH HOME=/opt/reader USER=reader PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE \
    PAPERLIB_CACHE=/companion/.cache/data PAPERLIB_COMMIT=${COMMIT}
USER 1000
EXPOSE 8888
ENTRYPOINT ["tini", "--", "tools/container"]
CMD ["reproduce", "tiny"]
