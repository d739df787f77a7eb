"""`xbm-keras serve`: embeddings and nearest items over HTTP. Needs the extra [serve]."""

import socket

import uvicorn

from xbm_keras.cli import parsers, terminal
from xbm_keras.index.exported_model import exported_by
from xbm_keras.index.roots import named_folder
from xbm_keras.serve.limits import WatchedConnection
from xbm_keras.serve.requests import REQUEST_PIXELS
from xbm_keras.serve.server import make_app
from xbm_keras.serve.service import Server, Service


def main(arguments: list[str] | None = None) -> int:
    """The command line; serves until it is stopped."""
    options = parsers.serve().parse_args(arguments)
    hosts = [options.host, f"[{options.host}]", *options.allowed_hosts]
    WatchedConnection.patience = options.patience
    with terminal.readable_errors():
        _require_free(options.host, options.port)
        exported_by(options.model)  # that there is one
        if options.approximate and options.index is None:
            raise ValueError("Received --approximate without --index; expected an index to search. Say --index.")
        service = Service(
            options.model,
            options.index,
            REQUEST_PIXELS if options.max_pixels is None else options.max_pixels,
            options.precision,
            options.approximate,
        )
        app = make_app(service, dict(map(named_folder, options.pictures)), hosts=hosts, patience=options.patience)
        config = uvicorn.Config(
            app, host=options.host, port=options.port, log_level="warning", http=WatchedConnection, ws="none",
            backlog=128, timeout_graceful_shutdown=5,
        )  # fmt: skip
        Server(config, app, service).run()
        if service.error is not None:
            raise service.error
    return 0


def _require_free(host: str, port: int) -> None:
    """Raises ValueError where nothing can listen at an address, before a model is loaded."""
    try:
        families = [info[0] for info in socket.getaddrinfo(host, port)] if host else [socket.AF_INET]
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(
            f"Received --host {host} and --port {port}, at which this program cannot listen: {error}; expected a port "
            "that no other program has, and an address of this machine. Give another one, such as --port "
            f"{port % 65_535 + 1}."
        ) from error
