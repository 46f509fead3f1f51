#!/usr/bin/env python
"""Measure every sampling method above the training size: the reader counts, the clock runs.

All rows share scenes, context tokens and random streams. Each cell is written when it is done; a second run with the
same settings goes on where the first one stopped, and a run with more pictures replaces the cells that have fewer.
Several processes, each with rows of its own, may fill one folder at once:

    scripts/evaluation/highres_table.py --out runs/highres_table
    scripts/evaluation/highres_table.py --out runs/highres_table --factors 4 --rows DemoFusion plain --count 32

Writes table.json (numbers, settings, versions, the command), table.md, sheet.png and the first pictures of every cell.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch
from PIL import Image
from tqdm import tqdm

from data.world.conditioner import BASE, load_conditioner, without
from data.world.render import render
from data.world.scenes import Scenes, sample_scenes
from scripts.evaluation.counts import Sampling
from scripts.evaluation.highres import Factor, Row, compiled, measure
from scripts.evaluation.highres_report import Report, described, factor_name, fingerprint, parsed_factor
from scripts.evaluation.highres_rows import ABLATIONS, PANORAMA, PANORAMAS, ROWS, chosen, published_panorama
from scripts.results import versions
from seecoder import SeeCoder, SeeCoderPipeline
from seecoder.images.gate import load_image
from seecoder.images.saving import save_image, to_pil
from seecoder.images.sheet import contact_sheet
from seecoder.weights.atomic import write_text
from seecoder.weights.digests import file_sha256

SHOWN = 4  # pictures of each cell that are kept
CONTEXTS = ("layout", "attributes")
CELL = 192  # side of a picture on the sheet


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE, help="the base to sample from (default: the committed one)")
    parser.add_argument("--out", type=Path, default=Path("runs/highres_table"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--rows",
        nargs="*",
        default=[],
        help="names, those of panoramas too; also methods (the default), ablations",
    )
    parser.add_argument("--factors", default="1,2,3,4,2x1,4x1", help="sizes in native sides (default: %(default)s)")
    parser.add_argument("--count", type=int, default=128, help="pictures a cell (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=6_000_000, help="of scenes and noise (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    parser.add_argument(
        "--panoramas",
        type=int,
        default=0,
        help="also so many panoramas a row: those named by --rows, else all (default: none)",
    )
    parser.add_argument(
        "--context",
        default="layout",
        help="what the network is told: attributes and layout (`layout`, the default), as little of places as a prompt "
        "says (`attributes`), or pictures of the scenes through an encoder (its folder)",
    )
    parser.add_argument(
        "--lpips",
        type=Path,
        help="folder of scripts/convert_lpips.py: panoramas by SyncDiffusion's published loss, too",
    )
    parser.add_argument("--threads", type=int, help="of torch (default: all)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the UNet for methods that leave its layers alone; seconds include the compiler's",
    )
    return parser.parse_args()


def base_digests(base: Path) -> dict[str, str]:
    """What the networks are, so that cells of another base are not mistaken for this one's."""
    return {
        part: file_sha256(next((base / part).glob("*.safetensors")))[:16] for part in ("unet", "vae", "conditioner")
    }


class Table:
    """The run: a pipeline, its settings, and the report that cells go to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.report = Report(options.out / "table.json")
        dtype = getattr(torch, options.dtype)
        self.pipeline: Any = SeeCoderPipeline.from_base(options.base, encoder=None, dtype=dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        self.conditioner = load_conditioner(options.base)
        self.side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        names = ("steps", "guidance", "seed", "dtype")
        self.settings = {name: getattr(options, name) for name in names} | {"base": base_digests(options.base)}
        self.encoder = None if options.context in CONTEXTS else SeeCoder.from_pretrained(options.context).float().eval()
        if options.context != "layout":  # the cells of earlier tables are of that
            weights = "diffusion_pytorch_model.safetensors"
            digest = "" if self.encoder is None else f" {file_sha256(Path(options.context) / weights)[:16]}"
            self.settings["context"] = options.context + digest
        command = shlex.join(["scripts/evaluation/highres_table.py", *sys.argv[1:]])
        about = {"versions": versions("torch", "diffusers"), "threads": torch.get_num_threads()}
        self.report.describe(**self.settings, **about, commands=[command])

    def cell(self, row: Row, factor: Factor) -> None:
        """Measure a cell of pictures or panoramas, unless it is there."""
        part, group, count, first = "cells", factor_name(factor), self.options.count, self.options.seed
        batch, shown_in, dropped = max(1, 64 // (factor[0] * factor[1])), group, ()
        if row.is_panorama:  # of other scenes; each window would choose a background of its own
            part, count, first = "panoramas", self.options.panoramas, first + 500_000
            batch, shown_in, dropped = 4, "panorama", ("background", "layout")
        methods = [described(entry) for entry in row.methods]
        mark = fingerprint(row=methods, source=row.source, factor=factor, **self.settings)
        if self.report.has(part, group, row.label, mark, count):
            return
        scenes = sample_scenes(count, first)
        context = self.context(scenes, dropped).to(self.pipeline.unet.dtype)
        height, width = self.side * factor[0], self.side * factor[1]
        sampling = Sampling(self.options.steps, self.options.guidance, self.options.seed, batch, height, width)
        use_compiled = self.options.compile and not row.changes_network
        with compiled(self.pipeline.unet, use_compiled):
            pictures, numbers = measure(row, self.pipeline, scenes, context, sampling)
        for index, picture in enumerate(pictures[:SHOWN]):
            save_image(picture, self.picture(row.label, shown_in, index))
        about = {"pictures": count, "methods": methods, "fingerprint": mark, "compiled": use_compiled}
        self.report.put(part, group, row.label, numbers | about)

    @torch.no_grad()
    def context(self, scenes: Scenes, dropped: Sequence[str]) -> torch.Tensor:
        """What the network is told of scenes, (N, tokens, width); true tokens without those that are dropped."""
        if self.encoder is not None:
            return torch.cat([self.encoder(render(part, self.side)) for part in scenes.split(64)])
        place = ["layout"] if self.options.context == "attributes" else []
        return self.conditioner(scenes, without({*dropped, *place}, len(scenes)))

    def picture(self, label: str, group: str, index: int) -> Path:
        """Where a picture of a cell lies."""
        name = "".join(letter if letter.isalnum() else "-" for letter in label.lower())
        path = self.options.out / "pictures" / group / f"{name}-{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_sheet(self, rows: Sequence[Row], factors: Sequence[Factor]) -> None:
        """One line a row, two scenes at each square size; what is not measured stays white."""
        square = [factor for factor in factors if factor[0] == factor[1]]
        lines, labels = [], []
        for row in rows:
            cells = [(factor_name(factor), index) for factor in square for index in range(2)]
            paths = [self.picture(row.label, name, index) for name, index in cells]
            if any(path.is_file() for path in paths):
                lines.append([self._thumbnail(path) for path in paths])
                names = [f"{name} {row.label}" for name, _ in cells]
                labels.append([name if path.is_file() else "" for name, path in zip(names, paths, strict=True)])
        if lines:
            save_image(contact_sheet(lines, labels, cell=CELL), self.options.out / "sheet.png")

    def _thumbnail(self, path: Path) -> Image.Image:
        if not path.is_file():
            return Image.new("RGB", (CELL, CELL), "white")
        return to_pil(load_image(path)).resize((CELL, CELL), Image.Resampling.BICUBIC)


def main() -> None:
    options = parsed()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        factors = [parsed_factor(name) for name in options.factors.split(",") if name.strip()]
        rows, panoramas = chosen(options.rows)
        published = [published_panorama(options.lpips)] if options.lpips else []
        if panoramas and not options.panoramas:
            raise ValueError("`--rows` names a panorama; say how many with --panoramas N.")
        if options.panoramas and options.context not in CONTEXTS:
            raise ValueError(f"`--context`={options.context} cannot leave out the background, as panoramas want.")
        table = Table(options)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    cells = [(row, factor) for factor in factors for row in rows if row.fits(factor)]
    if options.panoramas:
        cells += [(row, PANORAMA) for row in [*(panoramas or PANORAMAS), *published]]
    with tqdm(cells, unit="cell", disable=None) as bar:
        for row, factor in bar:
            bar.set_postfix_str(f"{factor_name(factor)} {row.label}")
            table.cell(row, factor)
    text = table.report.markdown(ROWS + ABLATIONS)
    write_text(options.out / "table.md", text)
    table.write_sheet(ROWS, factors)
    print(text)


if __name__ == "__main__":
    main()
