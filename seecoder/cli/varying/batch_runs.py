"""Many pictures, a batch at a time: contexts and seeds go through the network together, each picture to its file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seecoder.cli.console import say
from seecoder.cli.varying.jobs import Job, Variation

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from seecoder.pipelines import SeeCoderPipeline, SeeCoderXLPipeline


class Batches:
    """Makes variations in batches; a picture is the same alone and in a batch, up to rounding.

    Args:
        pipe: The pipeline.
        given: Arguments of its calls that are the same for all pictures.
        size: Pictures of a batch.
        previews: Also write what each stage of a method with several has reached.
    """

    def __init__(
        self, pipe: "SeeCoderPipeline | SeeCoderXLPipeline", given: dict[str, Any], size: int, previews: bool
    ) -> None:
        self._pipe, self._given, self._size, self._previews = pipe, given, size, previews
        self._contexts: dict[Job, dict[str, torch.Tensor]] = {}
        self._told: set[str] = set()

    def run(self, variations: Sequence[Variation]) -> Iterator[tuple[Variation, list[str]]]:
        """Make all of them, each written as soon as it is done.

        Yields:
            Each variation that is written, and the notes of the pipeline.
        """
        for start in range(0, len(variations), self._size):
            yield from self._make(variations[start : start + self._size])
            done = min(start + self._size, len(variations))
            if len(variations) > self._size:
                say(f"{done} of {len(variations)} pictures done")

    def _make(self, batch: Sequence[Variation]) -> Iterator[tuple[Variation, list[str]]]:
        import torch

        names = batch[0].file.name if len(batch) == 1 else f"{len(batch)} pictures from {batch[0].file.name}"
        self._pipe.set_progress_bar_config(desc=names, leave=False, disable=None)  # None: only at a terminal

        def write_stage(pipe: Any, stage: Any, images: Any) -> None:
            for variation, image in zip(batch, images, strict=True):
                path = variation.file.with_name(f"{variation.file.stem}-stage{stage.stage_index + 1}.png")
                write_picture(image, path, f": {stage.stage}, {image.height}x{image.width}")

        output: Any = None
        try:
            output = self._pipe(
                **self._conditions(batch),
                **self._given,
                generator=[torch.Generator().manual_seed(variation.seed) for variation in batch],
                callback_on_stage_end=write_stage if self._previews else None,
            )
        except RuntimeError as error:
            if len(batch) == 1:
                raise
            say(f"{names}: {error} They are made one by one.")
        if output is None:  # what is wrong with one picture must not cost the others
            for variation in batch:
                yield from self._make([variation])
            return
        for variation, image in zip(batch, output.images, strict=True):
            for note in output.notes:
                if note not in self._told:  # once for all pictures that it holds for
                    self._told.add(note)
                    say(f"{variation.file.name}: {note}")
            write_picture(image, variation.file)
            yield variation, output.notes

    def _conditions(self, batch: Sequence[Variation]) -> "dict[str, torch.Tensor]":
        """The contexts of a batch; each is encoded once, however many batches it goes through."""
        import torch

        for job in dict.fromkeys(variation.job for variation in batch):
            if "image" not in job.arguments:
                self._contexts[job] = job.arguments
            elif job not in self._contexts:  # its pictures were reduced when they were opened
                self._contexts[job] = self._pipe.context_arguments(job.arguments["image"], image_size=None)
        contexts = [self._contexts[variation.job] for variation in batch]
        return {name: torch.cat([context[name] for context in contexts]) for name in contexts[0]}


def write_picture(picture: "Image.Image", path: Path, remark: str = "") -> None:
    """Write a picture and say so.

    Args:
        picture: What to write.
        path: Where; its folder is made if there is none.
        remark: Ends the line that says so.
    """
    from seecoder.images.saving import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)
    say(f"wrote {path}{remark}")
