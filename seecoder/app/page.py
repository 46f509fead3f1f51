"""The web app: a page on this machine that varies pictures. Needs the extra `app`.

What comes from the browser is pictures, numbers and names out of fixed lists; no paths. It listens on 127.0.0.1 only,
is never shared, takes files up to 20 MB, forgets its files after a day, and works on one request at a time, because a
pipeline holds one run.
"""

import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from seecoder.base_model.facts import native_size
from seecoder.checks import require, whole
from seecoder.encoder.context import ImageSet
from seecoder.pipelines.batch_size import default_batch_size
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY
from seecoder.pipelines.inputs import ImageSize
from seecoder.pipelines.stable_diffusion import SeeCoderPipeline
from seecoder.pipelines.stable_diffusion_xl import SeeCoderXLPipeline
from seecoder.presets import PRESETS, preset_sentence
from seecoder.sampling.methods.registry import METHODS

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
        ImportError: It is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("gradio is not installed; the web app needs it: pip install 'seecoder[app]'.") from error
    return gradio


class Variations:
    """What the button does, without any of the page.

    Args:
        pipe: A pipeline with an encoder.
        max_side: Largest height and width in pixels.
        image_size: Pictures of more pixels than a square of this side are reduced before they are encoded; "trained" is
            the side that the encoder was trained at.
        autoencoder_memory: GiB that the autoencoder may take; what takes more is done in tiles.
    """

    def __init__(
        self,
        pipe: SeeCoderPipeline | SeeCoderXLPipeline,
        max_side: int = 2048,
        image_size: ImageSize = "trained",
        autoencoder_memory: float = AUTOENCODER_MEMORY,
    ) -> None:
        require("max_side", max_side, whole(1))
        self.pipe = pipe
        self.max_side = max_side
        self.image_size: ImageSize = image_size
        self.autoencoder_memory = autoencoder_memory
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
    ) -> tuple[list[tuple[Any, str]], str]:
        """Vary the uploaded pictures.

        Args:
            paths: Files that gradio has put into its cache.
            together: One context of all pictures.
            count: Results a context.
            seed: Of the first; the others count up.
            height: Pixels.
            width: Pixels.
            steps: Denoising steps.
            guidance: Guidance scale.
            strength: Context scale.
            method: Name of a sampling method, of a preset, or "plain".
            stages: Show what every stage of the method made, too.
            progress: Called as `progress((done, total), desc=...)`.

        Returns:
            PIL images with captions for the gallery, and what there is to say.

        Raises:
            ValueError: No picture, too many, or a number out of range.
        """
        pictures = list(paths or [])
        if not 1 <= len(pictures) <= MAX_PICTURES:
            raise ValueError(f"Upload 1 to {MAX_PICTURES} pictures.")
        if not 1 <= count <= MAX_RESULTS or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"Ask for 1 to {MAX_RESULTS} results and a seed from 0 to {MAX_SEED}.")
        if max(height, width) > self.max_side:
            raise ValueError(f"Height and width may be {self.max_side} pixels at most.")
        settings = {
            "method": method,
            "height": height,
            "width": width,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "context_scale": strength,
            "autoencoder_memory": self.autoencoder_memory,
        }
        entries: list[Any] = [ImageSet(pictures)] if together else pictures
        with self._lock:
            return self._make(entries, range(seed, seed + count), stages, settings, progress)

    def _make(
        self,
        entries: list[Any],
        seeds: range,
        stages: bool,
        settings: dict[str, Any],
        progress: Callable[..., Any],
    ) -> tuple[list[tuple[Any, str]], str]:
        gallery: list[tuple[Any, str]] = []
        cell, notes = self.pipe.vae_scale_factor, []
        if settings["method"] in PRESETS:
            rows, columns = native_size(self.pipe.unet)
            size, native = (settings["height"], settings["width"]), (rows * cell, columns * cell)
            branches = 1 if settings["guidance_scale"] == 1 else 2
            notes.append(preset_sentence(settings["method"], size, native, settings["num_inference_steps"], branches))
        contexts = [self.pipe.context_arguments([entry], self.image_size) for entry in entries]
        jobs = [(index, seed) for index in range(len(entries)) for seed in seeds]
        cells = (settings["height"] // cell, settings["width"] // cell)
        count = default_batch_size(self.pipe.unet, cells, self.pipe.device)
        for start in range(0, len(jobs), count):
            batch = jobs[start : start + count]
            given = {name: torch.cat([contexts[index][name] for index, _ in batch]) for name in contexts[0]} | settings
            numbers = f"picture {start + 1}" if len(batch) == 1 else f"pictures {start + 1} to {start + len(batch)}"

            def show(done: int, steps: int, start: int = start, numbers: str = numbers) -> None:
                progress((start * steps + done, len(jobs) * steps), desc=f"{numbers} of {len(jobs)}")

            made, said = self._make_batch(batch, given, stages, show)
            gallery += made
            notes += [note for note in said if note not in notes]
        return gallery, "\n".join(filter(None, notes)) or "Done."

    def _make_batch(
        self, batch: Sequence[tuple[int, int]], given: dict[str, Any], stages: bool, show: Callable[[int, int], None]
    ) -> tuple[list[tuple[Any, str]], list[str]]:
        """Make pictures, as pairs of an entry and a seed, in one call; `show(steps done of all, steps of one)`."""
        captions = [f"picture {index + 1}, seed {seed}" for index, seed in batch]
        reached: list[list[tuple[Any, str]]] = [[] for _ in batch]

        def count_steps(pipe: Any, step: int, timestep: float, tensors: Any) -> None:
            show(len(batch) * (step + 1), pipe.num_timesteps)

        def keep(pipe: Any, stage: Any, images: Any) -> None:
            for entries, image, caption in zip(reached, images, captions, strict=True):
                entries.append((image, f"{caption}, after {stage.stage}"))

        output: Any = self.pipe(
            generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
            callback_on_step_end=count_steps,
            callback_on_step_end_tensor_inputs=[],
            callback_on_stage_end=keep if stages else None,
            **given,
        )
        pairs = zip(reached, output.images, captions, strict=True)
        return [pair for entries, image, caption in pairs for pair in (*entries, (image, caption))], output.notes


def build(vary: Variations) -> Any:
    """Build the page.

    Args:
        vary: What the button does.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ImportError: Gradio is not installed.
    """
    gradio = require_gradio()
    cell, max_side = vary.pipe.vae_scale_factor, vary.max_side
    native = [side * cell for side in native_size(vary.pipe.unet)]
    # Panoramas have other sizes and other needs; the command makes them.
    names = [name for name in (*PRESETS, "plain", *METHODS) if name != "syncdiffusion"]
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
                    method = gradio.Dropdown(names, value=names[0], label="Method above the native size")
                    stages = gradio.Checkbox(label="Show what every stage of the method made")
                    steps = gradio.Slider(1, 100, value=50, step=1, label="Steps")
                    guidance = gradio.Slider(1.0, 10.0, value=vary.pipe.default_guidance, step=0.1, label="Guidance")
                    strength = gradio.Slider(0.0, 2.0, value=1.0, step=0.05, label="Strength of the pictures")
                button = gradio.Button("Vary", variant="primary")
            with gradio.Column():
                gallery = gradio.Gallery(label="Variations", format="png")
                notes = gradio.Textbox(label="Notes", interactive=False)
        inputs = [files, together, count, seed, randomise, height, width, steps, guidance, strength, method, stages]
        button.click(answer, inputs, [gallery, seed, notes], concurrency_limit=1, api_name="vary")
    page.queue(default_concurrency_limit=1, max_size=16)
    return page


def serve(vary: Variations, *, port: int = 7860, **options: Any) -> Any:
    """Serve the page on this machine until interrupted.

    Args:
        vary: What the button does, with a pipeline on its device.
        port: On 127.0.0.1.
        options: Further arguments of gradio's `launch` (tests pass `prevent_thread_lock=True`).

    Raises:
        ImportError: Gradio is not installed.
        ValueError: An option that would open the app to others.
    """
    require("port", port, whole(1, 65_535))
    forbidden = sorted(set(options) & set(LAUNCH_OPTIONS))
    if forbidden:
        raise ValueError(f"`{forbidden[0]}` is not open to change: the app is for this machine only.")
    vary.pipe.set_progress_bar_config(disable=True)
    return build(vary).launch(server_port=port, **LAUNCH_OPTIONS, **options)
