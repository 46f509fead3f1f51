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

from seecoder.app.guiding_fields import as_numbers, guiding_arguments, guiding_fields
from seecoder.base_model.facts import native_size
from seecoder.call_rules import check_arguments
from seecoder.checks import require, whole
from seecoder.encoder.context import ImageSet
from seecoder.pipelines.batches import Batches, default_batch_size
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY
from seecoder.pipelines.inputs import ImageSize
from seecoder.pipelines.stable_diffusion import SeeCoderPipeline
from seecoder.pipelines.stable_diffusion_xl import SeeCoderXLPipeline
from seecoder.presets import PRESETS, settled_preset
from seecoder.sampling.methods.registry import METHODS

MAX_FILE_SIZE = "20mb"
MAX_PICTURES = 8
MAX_RESULTS = 8
MAX_SEED = 2**31 - 1
_WHOLE = ("count", "seed", "height", "width", "num_inference_steps", "mask_feather")
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
        *,
        together: bool,
        count: int,
        seed: int,
        stages: bool,
        progress: Callable[..., Any],
        weights: str | None = None,
        reference_mask: str | None = None,
        negative: Sequence[str] | None = None,
        **settings: Any,
    ) -> tuple[list[tuple[Any, str]], str]:
        """Vary the uploaded pictures.

        Args:
            paths: Files that gradio has put into its cache.
            together: One context of all pictures.
            count: Results a context.
            seed: Of the first; the others count up.
            stages: Show what every stage of the method made, too.
            progress: Called as `progress((done, total), desc=...)`.
            weights: With `together`: a number for each picture, with spaces between; none counts all alike.
            reference_mask: File of what counts of the pictures, white; None counts all.
            negative: Files of pictures to lead away from.
            settings: Further arguments of the pipeline's call; those that are None or empty are left out, and numbers
                for networks that guide the result are texts.

        Returns:
            PIL images with captions for the gallery, and what there is to say.

        Raises:
            ValueError: No picture, too many, a number out of range, or what the pipeline refuses.
        """
        pictures = list(paths or [])
        if not 1 <= len(pictures) <= MAX_PICTURES:
            raise ValueError(f"Upload 1 to {MAX_PICTURES} pictures.")
        if not 1 <= count <= MAX_RESULTS or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"Ask for 1 to {MAX_RESULTS} results and a seed from 0 to {MAX_SEED}.")
        if max(settings["height"], settings["width"]) > self.max_side:
            raise ValueError(f"Height and width may be {self.max_side} pixels at most.")
        numbers = as_numbers("weights", weights or "") or None
        if numbers and not together:
            raise ValueError("Weights have no effect on pictures that are varied each for itself.")
        given = guiding_arguments({name: value for name, value in settings.items() if value not in (None, "", [])})
        check_arguments(given)
        masks = None if reference_mask is None else [reference_mask]
        entries = [ImageSet([picture], masks=masks) for picture in pictures]
        if together:
            entries = [ImageSet(pictures, numbers, masks=masks and masks * len(pictures))]
        with self._lock:
            contexts = [self.pipe.context_arguments([entry], self.image_size) for entry in entries]
            if negative:
                vectors = self.pipe.context_arguments([list(negative)], self.image_size)
                given |= {f"negative_{name}": values for name, values in vectors.items()}
            jobs = [(context, number) for context in contexts for number in range(seed, seed + count)]
            captions = [f"picture {place // count + 1}, seed {number}" for place, (_, number) in enumerate(jobs)]
            return self._make(jobs, captions, given | {"autoencoder_memory": self.autoencoder_memory}, stages, progress)

    def _make(
        self,
        jobs: list[tuple[dict[str, torch.Tensor], int]],
        captions: list[str],
        settings: dict[str, Any],
        stages: bool,
        progress: Callable[..., Any],
    ) -> tuple[list[tuple[Any, str]], str]:
        cell, notes = self.pipe.vae_scale_factor, []
        if settings["method"] in PRESETS:
            rows, columns = native_size(self.pipe.unet)
            size, native = (settings["height"], settings["width"]), (rows * cell, columns * cell)
            steps, guidance_scale = settings["num_inference_steps"], settings["guidance_scale"]
            notes.append(settled_preset(settings["method"], size, native, steps, guidance_scale)[2])
        reached: list[list[tuple[Any, str]]] = [[] for _ in jobs]

        def watch(places: Sequence[int]) -> dict[str, Any]:
            first, last = places[0], places[-1]
            numbers = f"picture {first + 1}" if first == last else f"pictures {first + 1} to {last + 1}"

            def count_steps(pipe: Any, step: int, timestep: float, tensors: Any) -> None:
                done, steps = len(places) * (step + 1), pipe.num_timesteps
                progress((first * steps + done, len(jobs) * steps), desc=f"{numbers} of {len(jobs)}")

            def keep(pipe: Any, stage: Any, images: Any) -> None:
                for place, image in zip(places, images, strict=True):
                    reached[place].append((image, f"{captions[place]}, after {stage.stage}"))

            return {
                "callback_on_step_end": count_steps,
                "callback_on_step_end_tensor_inputs": [],
                "callback_on_stage_end": keep if stages else None,
            }

        gallery: list[tuple[Any, str]] = []
        cells = (settings["height"] // cell, settings["width"] // cell)
        size = default_batch_size(self.pipe.unet, cells, self.pipe.device)
        for place, image, said in Batches(self.pipe, settings, size, watch).run(jobs):
            gallery += [*reached[place], (image, captions[place])]
            notes += [note for note in said if note not in notes]
        return gallery, "\n".join(filter(None, notes)) or "Done."


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

    def answer(values: dict[Any, Any], progress: Any = progress_bar) -> Any:
        given = {name: values[component] for name, component in parts.items()}
        given |= {name: int(given[name] or 0) for name in _WHOLE}  # None of an empty field
        if given.pop("randomise"):
            given["seed"] = secrets.randbelow(MAX_SEED + 1 - MAX_RESULTS)
        try:
            gallery, notes = vary(given.pop("files"), progress=progress, **given)
        except (ValueError, RuntimeError) as error:
            raise gradio.Error(str(error)) from error
        return gallery, given["seed"], notes

    def upload(label: str, **options: Any) -> Any:
        return gradio.File(label=label, file_types=["image"], **options)

    parts: dict[str, Any] = {}
    with gradio.Blocks(title="seecoder", delete_cache=(_DAY // 24, _DAY), analytics_enabled=False) as page:
        gradio.Markdown("# seecoder\nPictures in, new pictures out.")
        with gradio.Row():
            with gradio.Column():
                parts["files"] = upload(f"Pictures (1 to {MAX_PICTURES})", file_count="multiple")
                parts["together"] = gradio.Checkbox(label="Make one context of all pictures")
                parts["weights"] = gradio.Textbox(label="Their weights in it, such as 2 1 (empty: all alike)")
                parts["count"] = gradio.Slider(1, MAX_RESULTS, value=2, step=1, label="Variations")
                with gradio.Row():
                    parts["seed"] = gradio.Number(value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed")
                    parts["randomise"] = gradio.Checkbox(value=True, label="Randomise the seed")
                with gradio.Accordion("Beside the pictures", open=False):
                    parts["context_scale"] = gradio.Slider(0.0, 2.0, 1.0, step=0.05, label="Strength of the pictures")
                    parts["reference_mask"] = upload("Mask of the pictures: what counts of them is white")
                    parts["negative"] = upload("Pictures to lead away from", file_count="multiple")
                    if vary.pipe.text_encoder is not None:
                        parts["text"] = gradio.Textbox(label="Text: what to show besides")
                        parts["negative_text"] = gradio.Textbox(label="What not to show (goes with the text)")
                        parts["text_weight"] = gradio.Number(
                            value=None, label="The text's part, 0 to 1 (empty: side by side with the pictures)"
                        )
                with gradio.Accordion("Guide the results", open=False) as guides:
                    fields = guiding_fields(gradio, vary.pipe, upload)
                guides.visible = bool(fields)
                parts |= fields
                with gradio.Accordion("Redraw a picture", open=False):
                    parts["start_image"] = upload("Picture to redraw")
                    parts["mask_image"] = upload("Mask: what is white is redrawn")
                    parts["strength"] = gradio.Number(value=None, label="Strength, above 0 to 1 (empty: 0.8, masks 1)")
                    parts["mask_feather"] = gradio.Number(value=0, precision=0, minimum=0, label="Pixels of the fade")
                with gradio.Accordion("More", open=False):
                    parts["height"] = gradio.Slider(native[0] // 2, max_side, native[0], step=8 * cell, label="Height")
                    parts["width"] = gradio.Slider(native[1] // 2, max_side, native[1], step=8 * cell, label="Width")
                    parts["method"] = gradio.Dropdown(names, value=names[0], label="Method above the native size")
                    parts["stages"] = gradio.Checkbox(label="Show what every stage of the method made")
                    parts["num_inference_steps"] = gradio.Slider(1, 100, value=50, step=1, label="Steps")
                    parts["guidance_scale"] = gradio.Slider(
                        1.0, 10.0, value=vary.pipe.default_guidance, step=0.1, label="Guidance"
                    )
                button = gradio.Button("Vary", variant="primary")
            with gradio.Column():
                gallery = gradio.Gallery(label="Variations", format="png")
                notes = gradio.Textbox(label="Notes", interactive=False)
        outputs = [gallery, parts["seed"], notes]
        button.click(answer, set(parts.values()), outputs, concurrency_limit=1, api_name="vary")
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
    if forbidden := sorted(set(options) & set(LAUNCH_OPTIONS)):
        raise ValueError(f"`{forbidden[0]}` is not open to change: the app is for this machine only.")
    vary.pipe.set_progress_bar_config(disable=True)
    return build(vary).launch(server_port=port, **LAUNCH_OPTIONS, **options)
