FROM python:3.11-slim-bookworm

# DeepSpeed looks for a compiler when it is imported.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*

WORKDIR /stoa
ARG TORCH_INDEX=
COPY pyproject.toml constraints.txt README.md ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url $TORCH_INDEX} --constraint constraints.txt torch
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt .

RUN useradd --create-home stoa && mkdir /var/lib/stoa && chown stoa /var/lib/stoa
USER stoa
# The git commit that the image is built from; it holds no checkout.
ARG STOA_COMMIT=
ENV STOA_HOME=/var/lib/stoa STOA_ENV_FILE= STOA_COMMIT=$STOA_COMMIT
VOLUME /var/lib/stoa
ENTRYPOINT ["stoa"]
CMD ["--help"]
