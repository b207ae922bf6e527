# The executor for drivers of CUDA 11 (450.80.02 or later), GPUs of compute 3.7 to 8.6 (docs/images.md). In the project's root:
#   docker build -t your/ymir-executor:ymir2.0.0-cuda111-yolov5 -f ymir/docker/cuda111.dockerfile .

# Our own files, readable by any user whatever the umask of the clone. Bytecode is made below, by the image's own Python;
# it and aldd's compiled code know their source by its time, of which a registry keeps whole seconds.
FROM python:3.9-slim-bullseye AS source
COPY . /app
RUN mkdir -p /app/weights \
    && mv /app/weights /weights \
    && mkdir /img-man \
    && cp /app/ymir/img-man/*.yaml /img-man/ \
    && chmod -R u=rwX,go=rX /app /weights /img-man \
    && find /app -name '*.py' -exec touch -d 2020-01-01T00:00:00Z {} + \
    && python3 -m compileall -q /app

FROM python:3.9-slim-bullseye

# Chinese, Japanese and Korean class names in figures.
RUN apt-get update \
    && apt-get install -y --no-install-recommends fonts-wqy-microhei=0.2.0-beta-3.1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/apt /var/log/dpkg.log

# A mirror of PyPI: --build-arg PIP_INDEX_URL=https://... The hashes of the locks hold for it too.
ARG PIP_INDEX_URL
# More options for pip, such as --proxy.
ARG PIP_ARGS=""
COPY ymir/docker/locks/torch-cuda111.txt /usr/share/ymir-yolov5/
# hadolint ignore=SC2086
RUN pip install --no-cache-dir --no-deps --require-hashes $PIP_ARGS -r /usr/share/ymir-yolov5/torch-cuda111.txt \
    && find /usr/local/lib/python3.9/site-packages -name '*.a' -delete
COPY ymir/docker/locks/cuda111.txt /usr/share/ymir-yolov5/
# hadolint ignore=SC2086
RUN pip install --no-cache-dir --no-deps --require-hashes $PIP_ARGS -r /usr/share/ymir-yolov5/cuda111.txt \
    && pip check

# Nothing is written but /out and /tmp, by whatever user: HOME is / for one that has no name here.
ENV LANG=C.UTF-8 \
    HOME=/ \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    TORCH_HOME=/tmp/torch
# What NVIDIA's runtime lets in; without a driver the image runs on the CPU.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY --from=source /img-man /img-man
COPY --from=source /weights /app/weights
COPY --from=source /app /app
WORKDIR /app
# What numba makes of aldd's kernel: else every container would, for 9 s of a core (mining/shipped_code.py).
ENV YMIR_COMPILED_CODE=/usr/share/ymir-yolov5/compiled
RUN python3 -m mining.compile_kernel "$YMIR_COMPILED_CODE" \
    && chmod -R u=rwX,go=rX "$YMIR_COMPILED_CODE"

ARG VERSION=1.0.0
ARG REVISION=""
LABEL org.opencontainers.image.title="YOLOv5 as a YMIR executor, CUDA 11" \
      org.opencontainers.image.description="Trains, infers and mines in one container; /in and /out are YMIR's" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/python:3.9-slim-bullseye"

CMD ["python3", "/app/start.py"]
