# A bundle behind OpenAI's chat completions on an x86-64 or arm64 CPU: the base install, no torch.
#
#     docker build -f containers/serve.Dockerfile -t lrkit-serve .
#     docker run --rm -p 127.0.0.1:8000:8000 -e LRKIT_API_KEY=secret -v "$PWD/tiny-int4:/bundle:ro" lrkit-serve
#
# The bundle is mounted, or copied in by an image of your own: FROM lrkit-serve, COPY tiny-int4 /bundle.
FROM python:3.12-slim AS build
COPY . /src
RUN python -m venv /opt/lrkit && /opt/lrkit/bin/pip install --no-cache-dir --constraint /src/constraints.txt "/src[serve]" \
    && /opt/lrkit/bin/pip uninstall --yes pip

FROM python:3.12-slim
COPY --from=build /opt/lrkit /opt/lrkit
RUN useradd --system --no-create-home lrkit
USER lrkit
ENV PATH=/opt/lrkit/bin:$PATH PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["lrkit", "serve"]
CMD ["/bundle", "--host", "0.0.0.0"]
