"""The web app: a page on this machine that varies pictures. Needs the extra `app`.

What comes from the browser is pictures, numbers and names out of fixed lists; no paths. It listens on 127.0.0.1 only,
is never shared, takes files up to 20 MB, forgets its files after a day, and works on one request at a time, because a
pipeline holds one run.
"""

import logging
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from seecoder.encoder.context import ImageSet
from seecoder.images.loading import ENCODED_SIZE
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY

logger = logging.getLogger(__name__)

__all__ = ["LAUNCH_OPTIONS", "Variations", "build", "require_gradio", "serve"]

MAX_FILE_SIZE = "20mb"
MAX_PICTURES = 8
MAX_RESULTS = 8
MAX_SEED = 2**31 - 1
_DAY = 86_400  # seconds; uploaded files live this long at most

LAUNCH_OPTIONS: dict[str, Any] = {
    "server_name": "127.0.0.1",
    "share": False,
    "max_file_size": MAX_FILE_SIZE,
    "allowed_paths": [],
    "show_error": True,
}


def require_gradio() -> Any:
    """Import gradio.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("gradio is not installed; the web app needs it: pip install 'seecoder[app]'.") from error
    return gradio


class Variations:
    """What the button does, without any of the page.

    Args:
        pipe: a pipeline with an encoder.
        max_side: largest height and width in pixels.
        folder: where results are kept for the browser to fetch.
        image_size: see `SeeCoderPipeline.__call__`.
        autoencoder_memory: likewise.
    """

    def __init__(
        self,
        pipe: Any,
        max_side: int,
        folder: Path,
        image_size: int | None = ENCODED_SIZE,
        autoencoder_memory: float = AUTOENCODER_MEMORY,
    ) -> None:
        self._pipe = pipe
        self._max_side = max_side
        self._folder = folder
        self._image_size = image_size
        self._autoencoder_memory = autoencoder_memory
        # Gradio runs one request at a time; the lock holds whatever else calls this.
        self._lock = threading.Lock()

    def __call__(
        self,
        paths: Sequence[str] | None,
        together: bool,
        count: int,
        seed: int,
        height: int,
        width: int,
        steps: int,
        guidance: float,
        strength: float,
        method: str,
        stages: bool,
        progress: Callable[..., Any],
    ) -> tuple[list[tuple[str, str]], str]:
        """Vary the uploaded pictures.

        Args:
            paths: files that gradio has put into its cache.
            together: one context of all pictures.
            count: results a context.
            seed: of the first; the others count up.
            height: pixels.
            width: pixels.
            steps: denoising steps.
            guidance: guidance scale.
            strength: context scale.
            method: name of a sampling method, or "plain".
            stages: show what every stage of the method made, too.
            progress: called as `progress((done, total), desc=...)`.

        Returns:
            Files with captions for the gallery, and what there is to say.

        Raises:
            ValueError: no picture, too many, or a number out of range.
        """
        pictures = list(paths or [])
        if not 1 <= len(pictures) <= MAX_PICTURES:
            raise ValueError(f"Upload 1 to {MAX_PICTURES} pictures.")
        if not 1 <= count <= MAX_RESULTS or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"Ask for 1 to {MAX_RESULTS} results and a seed from 0 to {MAX_SEED}.")
        if max(height, width) > self._max_side:
            raise ValueError(f"Height and width may be {self._max_side} pixels at most.")
        settings = {
            "height": height,
            "width": width,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "context_scale": strength,
            "image_size": self._image_size,
            "autoencoder_memory": self._autoencoder_memory,
        }
        entries: list[Any] = [ImageSet(pictures)] if together else pictures
        with self._lock:
            return self._make(entries, range(seed, seed + count), method, stages, settings, progress)

    def _make(
        self,
        entries: list[Any],
        seeds: range,
        method: str,
        stages: bool,
        settings: dict[str, Any],
        progress: Callable[..., Any],
    ) -> tuple[list[tuple[str, str]], str]:
        from seecoder.cli.methods import build_methods

        methods = None if method == "plain" else build_methods(method)
        gallery: list[tuple[str, str]] = []
        notes: list[str] = []
        jobs = [(index, entry, seed) for index, entry in enumerate(entries) for seed in seeds]
        for done, (index, entry, seed) in enumerate(jobs):
            caption = f"picture {index + 1}, seed {seed}"

            def show(pipe: Any, step: int, timestep: float, tensors: Any, done: int = done) -> None:
                steps = pipe.num_timesteps
                progress((done * steps + step + 1, len(jobs) * steps), desc=f"picture {done + 1} of {len(jobs)}")

            def keep(pipe: Any, stage: Any, images: Any, caption: str = caption) -> None:
                gallery.append((self._saved(images[0]), f"{caption}, after {stage.stage}"))

            output = self._pipe(
                entry,
                method=methods,
                generator=torch.Generator().manual_seed(seed),
                callback_on_step_end=show,
                callback_on_step_end_tensor_inputs=[],
                callback_on_stage_end=keep if stages else None,
                **settings,
            )
            gallery.append((self._saved(output.images[0]), caption))
            notes += [note for note in output.notes if note not in notes]
        return gallery, "\n".join(notes) or "Done."

    def _saved(self, picture: Any) -> str:
        """The file of a picture, for the browser to fetch."""
        from seecoder.images.loading import save_image

        path = self._folder / f"{secrets.token_hex(8)}.png"
        save_image(picture, path)
        return str(path)


def build(
    pipe: Any,
    *,
    max_side: int = 2048,
    folder: Path,
    image_size: int | None = ENCODED_SIZE,
    autoencoder_memory: float = AUTOENCODER_MEMORY,
) -> Any:
    """Build the page.

    Args:
        pipe: a pipeline with an encoder, on its device.
        max_side: largest height and width that can be asked for, in pixels.
        folder: where results are kept while the app runs.
        image_size: see `SeeCoderPipeline.__call__`.
        autoencoder_memory: likewise.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ImportError: gradio is not installed.
    """
    gradio = require_gradio()
    from seecoder.base_model.facts import native_size
    from seecoder.cli.methods import available_methods

    cell = pipe.vae_scale_factor
    native = [side * cell for side in native_size(pipe.unet)]
    # Panoramas have other sizes and other needs; the command makes them.
    names = ["plain", *(name for name in sorted(available_methods()) if name != "syncdiffusion")]
    vary = Variations(pipe, max_side, folder, image_size, autoencoder_memory)
    progress_bar = gradio.Progress()  # gradio finds it as the default of an argument

    def answer(
        files: Any, together: bool, count: float, seed: float, randomise: bool, height: float, width: float,
        steps: float, guidance: float, strength: float, method: str, stages: bool,
        progress: Any = progress_bar,
    ) -> Any:  # fmt: skip
        seed = secrets.randbelow(MAX_SEED + 1 - MAX_RESULTS) if randomise else int(seed)
        try:
            numbers = (int(count), int(seed), int(height), int(width), int(steps))
            gallery, notes = vary(files, together, *numbers, guidance, strength, method, stages, progress)
        except (ValueError, RuntimeError) as error:
            raise gradio.Error(str(error)) from error
        return gallery, seed, notes

    with gradio.Blocks(title="seecoder", delete_cache=(_DAY // 24, _DAY), analytics_enabled=False) as page:
        gradio.Markdown("# seecoder\nPictures in, new pictures out.")
        with gradio.Row():
            with gradio.Column():
                files = gradio.File(
                    label=f"Pictures (1 to {MAX_PICTURES})", file_count="multiple", file_types=["image"]
                )
                together = gradio.Checkbox(label="Make one context of all pictures")
                count = gradio.Slider(1, MAX_RESULTS, value=2, step=1, label="Variations")
                with gradio.Row():
                    seed = gradio.Number(value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed")
                    randomise = gradio.Checkbox(value=True, label="Randomise the seed")
                with gradio.Accordion("More", open=False):
                    height = gradio.Slider(native[0] // 2, max_side, value=native[0], step=8 * cell, label="Height")
                    width = gradio.Slider(native[1] // 2, max_side, value=native[1], step=8 * cell, label="Width")
                    method = gradio.Dropdown(names, value="plain", label="Method above the native size")
                    stages = gradio.Checkbox(label="Show what every stage of the method made")
                    steps = gradio.Slider(1, 100, value=50, step=1, label="Steps")
                    guidance = gradio.Slider(1.0, 10.0, value=2.0, step=0.1, label="Guidance")
                    strength = gradio.Slider(0.0, 2.0, value=1.0, step=0.05, label="Strength of the pictures")
                button = gradio.Button("Vary", variant="primary")
            with gradio.Column():
                gallery = gradio.Gallery(label="Variations", format="png")
                notes = gradio.Textbox(label="Notes", interactive=False)
        inputs = [files, together, count, seed, randomise, height, width, steps, guidance, strength, method, stages]
        button.click(answer, inputs, [gallery, seed, notes], concurrency_limit=1, api_name="vary")
    page.queue(default_concurrency_limit=1, max_size=16)
    return page


def serve(
    pipe: Any,
    *,
    port: int = 7860,
    max_side: int = 2048,
    image_size: int | None = ENCODED_SIZE,
    autoencoder_memory: float = AUTOENCODER_MEMORY,
    **options: Any,
) -> Any:
    """Serve the page on this machine until interrupted.

    Args:
        pipe: a pipeline with an encoder, on its device.
        port: on 127.0.0.1.
        max_side: largest height and width that can be asked for, in pixels.
        image_size: see `SeeCoderPipeline.__call__`.
        autoencoder_memory: likewise.
        options: further arguments of gradio's `launch` (tests pass `prevent_thread_lock=True`).

    Raises:
        ImportError: gradio is not installed.
        ValueError: an option that would open the app to others.
    """
    forbidden = sorted(set(options) & set(LAUNCH_OPTIONS))
    if forbidden:
        raise ValueError(f"`{forbidden[0]}` is not open to change: the app is for this machine only.")
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory(prefix="seecoder-") as folder:
        page = build(
            pipe, max_side=max_side, folder=Path(folder), image_size=image_size, autoencoder_memory=autoencoder_memory
        )
        return page.launch(server_port=port, **LAUNCH_OPTIONS, **options)
