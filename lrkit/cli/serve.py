"""`lrkit serve MODEL`: a bundle or a checkpoint behind OpenAI's chat completions, for apps that know no lrkit."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrkit.cli.shared.console import err
from lrkit.cli.shared.options import AttentionOption, Device, Download, Dtype, Engine, EngineOption, Provider, Threads
from lrkit.errors import UserError, one_line, require

if TYPE_CHECKING:
    from lrkit.serve.app import Server

EXAMPLES = """
Examples:

    lrkit serve tiny

    lrkit serve my-bundle --threads 2 --port 8080

    LRKIT_API_KEY=secret lrkit serve my-bundle --host 0.0.0.0

    lrkit serve runs/my-run/last --device cuda --queue 200 --timeout 30
"""
KEY = "LRKIT_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECTIONS = 512
"""Beyond those whose questions run or wait; more are told 503, so that idle clients cannot use up the files."""


Name = Annotated[str | None, typer.Option(help="The model's name for clients.  [default: that of its folder]")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")]
Workers = Annotated[int, typer.Option(min=1, help="Questions that are answered at once.")]
Queue = Annotated[int, typer.Option(min=0, help="Questions that may wait; more are told 429.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds of one answer.")]
MaxBody = Annotated[float, typer.Option(min=0.001, help="Largest request, in megabytes.")]
SceneMemory = Annotated[float, typer.Option(min=0, help="Memory for pictures asked about again, in megabytes.")]
PicturesFrom = Annotated[list[str] | None, typer.Option(help="A host whose pictures are fetched by address; repeat.")]
OpenToAll = Annotated[bool, typer.Option("--open-to-all", help="Listen beyond this machine without a key.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Log no line for each question.")]


def serve(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder, or a shipped name such as tiny.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    workers: Workers = 1,
    queue: Queue = 64,
    timeout: Timeout = 120.0,
    max_body_mb: MaxBody = 32.0,
    scene_mb: SceneMemory = 512.0,
    pictures_from: PicturesFrom = None,
    open_to_all: OpenToAll = False,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = "auto",
    attention: AttentionOption = None,
    engine: Engine = None,
    engine_option: EngineOption = None,
    provider: Provider = None,
    threads: Threads = None,
    download: Download = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's chat completions.

    The key that clients must send is in the environment variable LRKIT_API_KEY. Ctrl-C or SIGTERM ends it when what
    runs is answered.
    """
    key = os.environ.get(KEY) or None
    if host not in LOOPBACK and key is None and not open_to_all:
        raise UserError(
            f"--host {host} can be reached from other machines, and there is no key; set {KEY}, or give --open-to-all"
        )
    require("uvicorn", "serve")
    from lrkit.runtime.engines.table import parse_options
    from lrkit.runtime.sdk import Reasoner
    from lrkit.serve.app import ServeOptions, Server

    given = engine, parse_options(engine_option or [], engine), dtype, attention
    memory, body, log = int(scene_mb * 1e6), int(max_body_mb * 1e6), not quiet
    shown, hosts = name or Path(model).resolve().name, tuple(pictures_from or ())
    options = ServeOptions(shown, workers, queue, timeout, memory, body, key, hosts, log)
    _listen(Server(Reasoner.open(model, device, provider, threads, *given), options), host, port)


def _listen(server: "Server", host: str, port: int) -> None:
    uvicorn: Any = require("uvicorn", "serve")
    options, listening = server.options, _bound(host, port)
    server.answerer.prepare()
    modes = ", ".join(server.answerer.modes)
    err(soft_wrap=True).print(f"{options.name} ({modes}) at {_address(host, listening)}; Ctrl-C ends it")
    config = uvicorn.Config(
        server.application(), log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
        timeout_keep_alive=30, limit_concurrency=options.queue + options.workers + CONNECTIONS,
    )  # fmt: skip
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when what ran is answered
        uvicorn.Server(config).run(sockets=[listening])
    server.close()


def _bound(host: str, port: int) -> socket.socket:
    """A socket that waits for clients.

    Raises:
        UserError: the address is another's, or none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{host} port {port} cannot be listened at ({reason}); give another --port or --host") from None


def _address(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
