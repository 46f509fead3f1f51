"""Open the web app: pictures in, variations out, in a browser on this machine.

It listens on this machine only, takes no path from the browser, and works on one request at a time. Needs the extra
`app` (`pip install 'seecoder[app]'`). The page has what `seecoder vary` has beside the pictures: weights, masks,
pictures to lead away from, text (--with-text), a picture to redraw, and what --controlnet, --adapter and --ip-adapter
see, with their strengths.

  seecoder app --base sd-1.5 --encoder my-encoder
"""

import argparse
import socket

from seecoder.call_rules import check_arguments
from seecoder.checks import require, whole
from seecoder.cli.conditions.adapters import ADAPTER_OPTIONS, check_adapters
from seecoder.cli.opening import load_pipeline
from seecoder.cli.options import add_autoencoder_memory, add_base_options, add_image_size
from seecoder.cli.varying.early_checks import check_networks

HELP = "open the web app"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_base_options(parser)
    parser.add_argument("--port", type=int, default=7860, help="port on this machine")
    parser.add_argument("--max-side", type=int, default=2048, help="largest height and width that can be asked for")
    parser.add_argument("--with-text", action="store_true", help="load the base's text encoder, for texts on the page")
    add_image_size(parser)
    add_autoencoder_memory(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    for option in ADAPTER_OPTIONS.values():
        if getattr(arguments, option):
            raise ValueError(f"`--{option.replace('_', '-')}` has no effect: the page asks for it. Leave it out.")
    check_networks(arguments)
    check_adapters(arguments)
    check_arguments({name: getattr(arguments, name) for name in ("image_size", "autoencoder_memory")})
    require("--max-side", arguments.max_side, whole(1))
    require("--port", arguments.port, whole(1, 65_535))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself
        try:
            probe.bind(("127.0.0.1", arguments.port))
        except OSError as error:
            raise OSError(f"`--port`={arguments.port} is in use; stop what listens there, or use another.") from error
    from seecoder.app.page import Variations, require_gradio, serve
    from seecoder.encoder.context import is_context_file

    require_gradio()
    if is_context_file(arguments.encoder):
        raise ValueError("the web app encodes pictures; `--encoder` must be an encoder, not ready contexts.")
    arguments.text = arguments.with_text or None
    pipe = load_pipeline(arguments)
    serve(Variations(pipe, arguments.max_side, arguments.image_size, arguments.autoencoder_memory), port=arguments.port)
