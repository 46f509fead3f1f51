"""Open the web app: pictures in, variations out, in a browser on this machine.

It listens on this machine only, takes no path from the browser, and works on one request at a time. Needs the extra
`app` (`pip install 'seecoder[app]'`).

  seecoder app --base sd-1.5 --encoder my-encoder
"""

import argparse

from seecoder.cli.opening import load_pipeline
from seecoder.cli.options import add_autoencoder_memory, add_base_options, add_image_size, positive_int

HELP = "open the web app"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_base_options(parser)
    parser.add_argument("--port", type=positive_int, default=7860, help="port on this machine")
    parser.add_argument(
        "--max-side", type=positive_int, default=2048, help="largest height and width that can be asked for"
    )
    add_image_size(parser)
    add_autoencoder_memory(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    if arguments.control_image:
        raise ValueError("the web app has no ControlNet; use `seecoder vary`.")
    from seecoder.app.page import require_gradio, serve

    require_gradio()
    pipe, contexts = load_pipeline(arguments)
    if contexts is not None:
        raise ValueError("the web app encodes pictures; `--encoder` must be an encoder, not ready contexts.")
    serve(
        pipe,
        port=arguments.port,
        max_side=arguments.max_side,
        image_size=arguments.image_size,
        autoencoder_memory=arguments.autoencoder_memory,
    )
