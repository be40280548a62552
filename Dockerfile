# The whole companion in a container:
#
#     docker build -t paperlib .
#     docker run --rm -v "$PWD/results:/companion/results" paperlib
#
# which is `make reproduce`; other commands follow the image's name: docker run --rm paperlib doctor
ARG BASE=python:3.11-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /companion

# The lock alone first: its layer lasts until the lock changes.
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir --require-hashes -r requirements.lock

COPY . .
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && useradd --create-home --uid 1000 reader \
    && chown -R reader:reader /companion

USER 1000
ENTRYPOINT ["paperlib"]
CMD ["reproduce", "tiny"]
