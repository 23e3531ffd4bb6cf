"""Serve a trained model: websockets for live audio, HTTP for files, and a page to try both.

    asrtool serve exp/train_qifusion
    asrtool serve model --host 0.0.0.0 --token-file token.txt --certificate c.pem --key k.pem
    curl -F file=@a.wav -F model=model http://127.0.0.1:8080/v1/audio/transcriptions

A model that can stream takes live audio (/v1/stream), every model takes files by OpenAI's route
(/v1/audio/transcriptions). The page is at /, health at /health, Prometheus' metrics at /metrics.
Without a token, only this machine can connect. docs/serving.md has the protocol and the limits.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import os
import resource
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from asrtool import experiment, imports, log
from asrtool.bin.stream import add_stream_options
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig
from asrtool.log import logger
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.serve import Limits
from asrtool.serve.model import Served, served
from asrtool.streaming import EndConfig

PACKAGES = ("aiohttp", "prometheus_client")
TOKEN = "ASRTOOL_TOKEN"
YOUNG = 10_000  # objects that came before the collector looks for garbage among them
FILES = 64  # file descriptors beside those of connections
LIMITS = {  # option -> what it limits; the defaults are those of `Limits`
    "connections": "open audio streams",
    "batch": "streams that are computed side by side",
    "late-seconds": "how long chunks of open streams may wait before no more streams are taken",
    "queue-seconds": "audio of a stream that waits, in seconds; behind that it is not read",
    "message-bytes": "bytes of a websocket message",
    "idle-seconds": "seconds without a message after which a stream is closed",
    "connection-seconds": "seconds that a stream may be open",
    "unread": "results that a client has not read, after which its audio waits",
    "send-seconds": "seconds without reading after which a client is cut off",
    "file-bytes": "bytes of a file",
    "file-seconds": "seconds of audio in a file",
    "files": "files that wait, those that are being sent included",
    "request-seconds": "seconds from the first byte of a file to its answer",
    "head-seconds": "seconds in which a connection must send the head of a request",
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"serve needs {' and '.join(missing)}, not installed here: pip install -e '.[serve]'"
        )
    from asrtool.serve import loop, run
    from asrtool.serve.app import Service

    imports.take(args)
    limits = Limits(**{name: getattr(args, name) for name in _fields()})
    token, tls = token_of(args), tls_of(args)
    # before the model is loaded, which takes longer
    run.check_host(args.host, token)
    run.check_port(args.host, args.port)
    model = load(args)
    model.warm_up()
    allow_files(limits)
    ends = EndConfig(pause=args.pause, longest=args.longest)
    service = Service(model, limits, ends, token)

    def started(address: str) -> None:
        how = "files" if model.live is None else "streams and files"
        logger.info("%s: %s at %s", model.name, how, address)

    keep_out_of_collections()
    serving = run.serve(service, args.host, args.port, args.grace, tls, started)
    loop.run(serving, lambda: service.computing)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiment.add_model_argument(options)
    options.add_argument("--name", help="name of the model for clients; default: its folder's")
    options.add_argument("--host", default="127.0.0.1", help="address to listen at")
    options.add_argument("--port", type=int, default=8080, help="port; 0: any that is free")
    options.add_argument(
        "--token", help=f"what clients must know; {TOKEN} or --token-file keep it out of `ps`"
    )
    options.add_argument("--token-file", type=Path, help="file whose first line is the token")
    options.add_argument("--certificate", type=Path, help="PEM file: serve https and wss")
    options.add_argument("--key", type=Path, help="PEM file with the certificate's private key")
    options.add_argument(
        "--grace", type=float, default=30.0, help="seconds to finish what was sent, at the end"
    )
    add_search_options(options)
    for name, what in LIMITS.items():
        default = getattr(Limits, name.replace("-", "_"))
        options.add_argument(
            f"--{name}", type=type(default), default=default, help=f"{what} (default: {default:g})"
        )
    imports.add_options(options)
    args = options.parse_args(argv)
    if (args.certificate is None) != (args.key is None):
        options.error("--certificate and --key go together")
    if not 0 <= args.port < 1 << 16:
        options.error(f"--port is {args.port}, expected 0 to 65535")
    return args


def add_search_options(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--config",
        "--decode-config",
        dest="config",
        type=Path,
        help="decode_*.yaml; default: the packed one, or the search that the model's heads choose; "
        "streams need one that goes along with the audio",
    )
    experiment.add_set_option(options, "override of the search")
    options.add_argument("--lm", type=Path, help="experiment of a language model, for weights.lm")
    options.add_argument(
        "--chunk-ms", type=float, help="length of a chunk in milliseconds, as of `asrtool stream`"
    )
    add_stream_options(options)


def _fields() -> list[str]:
    return [field.name for field in dataclasses.fields(Limits)]


def load(args: argparse.Namespace) -> Served:
    """The model as it is served."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained = Experiment.open(args.model)
    overrides = experiment.split_overrides(args.set)
    decode = trained.decode_config(args.config, overrides)
    streaming: DecodeConfig | UserError
    try:
        streaming = trained.decode_config(args.config, overrides, streaming=True)
    except UserError as error:
        streaming = error
    recognizer = Recognizer.load(trained, decode, device, lm=args.lm)
    name = args.name or args.model.resolve().name
    return served(name, recognizer, streaming, args.chunk_ms, args.left_chunks)


def token_of(args: argparse.Namespace) -> str | None:
    """The token, if there is one."""
    if args.token_file is not None:
        lines = args.token_file.read_text(encoding="utf-8").splitlines()
        token = lines[0].strip() if lines else ""
        source = str(args.token_file)
    else:
        token = os.environ.get(TOKEN) if args.token is None else args.token
        source = TOKEN if args.token is None else "--token"
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"{source}: expected a token of visible ASCII characters without spaces")
    return token


def tls_of(args: argparse.Namespace) -> ssl.SSLContext | None:
    """What https needs, if it is wanted."""
    if args.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(args.certificate, args.key)
    except ssl.SSLError as error:
        raise UserError(
            f"{args.certificate}, {args.key}: no certificate with its key, in PEM ({error.reason})"
        ) from None
    return context


def keep_out_of_collections() -> None:
    """Let Python's collector of garbage pass over what is here: the modules and the model stay. It
    would look at their 400,000 objects again and again, for up to half a second each time, with
    every few hundred connections that come and go.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


def allow_files(limits: Limits) -> None:
    """Let the process open as many sockets as connections may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.sockets + limits.files + FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        if most < wanted:
            logger.warning(
                "this process may open %d files (`ulimit -Hn`), too few for --connections %d",
                most,
                limits.connections,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
