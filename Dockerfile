# docker build -t puna .
# docker run --init -e PUNA_API_KEY=... -p 8000:8000 -v puna:/data puna [options and models of puna serve]
# With --build-arg EXTRAS=ray for --replicas.

FROM python:3.12-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
ARG EXTRAS=serve
RUN python -m venv /opt/puna \
    && /opt/puna/bin/pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]" \
    && cd / && /opt/puna/bin/python -c "from puna.kernels import native; assert native.available()"

FROM python:3.12-slim
COPY --from=build /opt/puna /opt/puna
RUN useradd --uid 10001 --create-home puna \
    && install --directory --owner=puna --group=puna /data
# What is pulled, and what is packed for the processor, outlives the container.
ENV PATH=/opt/puna/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/models \
    PUNA_CACHE=/data/cache
USER puna
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD \
    ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Without a key in PUNA_API_KEY, PUNA_API_KEYS or --api-keys it does not start.
ENTRYPOINT ["puna", "serve", "--host", "0.0.0.0", "--port", "8000"]
