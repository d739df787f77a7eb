"""`xbm-keras serve`: embeddings and nearest items over HTTP. Needs the extra [serve]."""

import argparse
import pathlib
import re
import socket

import uvicorn

from xbm_keras.cli import terminal
from xbm_keras.cli.arguments import Parser
from xbm_keras.index.exported_model import exported_by
from xbm_keras.index.roots import named_folder
from xbm_keras.serve.limits import WatchedConnection
from xbm_keras.serve.requests import REQUEST_PIXELS
from xbm_keras.serve.server import make_app
from xbm_keras.serve.service import Server, Service


def main(arguments: list[str] | None = None) -> int:
    """The command line; serves until it is stopped."""
    parser = Parser(prog="xbm-keras serve", description="Serve embeddings and nearest items.")
    parser.add_argument("--model", required=True, help=terminal.MODEL)
    parser.add_argument("--index", type=pathlib.Path, help="the folder of the index's versions, to search")
    parser.add_argument(
        "--pictures",
        nargs="+",
        default=[],
        metavar="[ROOT=]FOLDER",
        help="folders of the items' pictures, to show them",
    )
    parser.add_argument(
        "--precision", type=float, help="tell which hits are matches, so that this share of them is right, such as 0.9"
    )
    parser.add_argument(
        "--approximate", action="store_true", help="search by the approximate search of the index, not exactly"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=_port, metavar="0..65535", default=8000)
    parser.add_argument(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME", help="further names of this server, as browsers say"
    )
    parser.add_argument("--max_pixels", type=int, default=REQUEST_PIXELS, help="of all pictures of a request together")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds that a client may keep still")
    options = parser.parse_args(arguments)
    hosts = [options.host, f"[{options.host}]", *options.allowed_hosts]
    WatchedConnection.patience = options.patience
    with terminal.readable_errors():
        _require_free(options.host, options.port)
        exported_by(options.model)  # that there is one
        if options.approximate and options.index is None:
            raise ValueError("Received --approximate without --index; expected an index to search. Say --index.")
        service = Service(options.model, options.index, options.max_pixels, options.precision, options.approximate)
        app = make_app(service, dict(map(named_folder, options.pictures)), hosts=hosts, patience=options.patience)
        config = uvicorn.Config(
            app, host=options.host, port=options.port, log_level="warning", http=WatchedConnection, ws="none",
            backlog=128, timeout_graceful_shutdown=5,
        )  # fmt: skip
        Server(config, app, service).run()
        if service.error is not None:
            raise service.error
    return 0


def _port(text: str) -> int:
    """Its number. Raises ArgumentTypeError for what is no port."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"received {text!r}; expected one of 0 to 65535.")
    return int(text)


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
