"""Trains SeeCoder against a frozen base: the noise loss alone teaches it what a picture's context is.

"Prompt-Free Diffusion: Taking 'Text' out of Text-to-Image Diffusion Models", arXiv 2305.16223, section 4.2. The picture
is encoded twice: by the autoencoder, whose latent is noised, and by SeeCoder, whose context should help the UNet to
tell the noise. Backbone, autoencoder and UNet are frozen; the gradient passes through the UNet into the context.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.parallel import DistributedDataParallel

from data.shards.caching.maps import MapsSource, map_column
from data.shards.caching.moments import MEAN, STD, MomentsSource, encode_moments
from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.fit import check_parts, check_picture_size
from seecoder.base_model.loading import load_config, load_frozen
from seecoder.checks import choice, number, optional, require
from seecoder.encoder.input_checks import MIN_SIDE
from seecoder.weights.atomic import atomic_directory
from seecoder.weights.digests import tensors_sha256
from train.frozen.half_gradients import run_frozen
from train.frozen.held_weights import hold_weights
from train.run.variation_metrics import VariationMetrics, variation_figures
from train.settings import BELOW_ONE, OptimizerSettings
from train.stages.context_gaps import held_out_figures
from train.stages.denoising import DenoisingStage
from train.stages.encoder_weights import ENCODER_SIZE, describe_encoder, load_trained, seeded_encoder
from train.stages.noise import uniform
from train.stages.noise_schedule import MIN_SNR_GAMMA, PREDICTIONS, NoiseSchedule
from train.stages.previews import Preview, require_preview, score_previews, write_sheet


class SeeCoderStage(DenoisingStage):
    """Trains the decoder and the query transformer of a `SeeCoder`.

    Args:
        optimizer: The optimizer and its learning rate.
        base: Folder or repository of the frozen base model, in diffusers' form, or a checkpoint in one file.
        encoder: Arguments of `SeeCoder`.
        backbone_weights: Safetensors file or folder of the frozen backbone, or "timm:NAME"; None leaves it random,
            which only makes sense with `init_from`.
        init_from: Weights to start a new stage from (see `encoder_weights.load_trained`); the optimizer starts afresh.
        position_gain: How strongly positions count from the first step on: the Xavier gain of the positional encoding's
            last weight. 0 as published: it starts as the plain encoder, and learns slowly to look at places.
        prediction_type: What the base's UNet predicts, where the base does not say it or says it wrongly; None for what
            it says. A file of SD 2.x says nothing and is taken to predict velocity.
        variant: Which weights of the base are read, such as "fp16" or "non_ema"; None for those without a name, or in a
            folder the only ones.
        frozen_dtype: Dtype in which the UNet and the backbone are held. Through "float16", for GPUs that have no
            bfloat16, gradients pass with a scale of their own, so that they do not vanish.
        frozen_weights: "int8" or "float8" hold the UNet's weights in eight bits (of torchao; "int8" is the more exact)
            and compute in `frozen_dtype`. Autoencoder and backbone stay as they are, because caches are theirs exactly.
        offload: Of "unet" and "vae", whose weights stay in the CPU's memory; each layer fetches its own for every use.
        vae_dtype: Dtype of the autoencoder.
        context_dropout: Probability of a zero context. Nothing trains on such a sample, because a zero context carries
            no trained parameter; so the default is off.
        min_snr_gamma: Weigh the loss by min-SNR; None is the plain mean square.
        timestep_sampling: "uniform", and every loss is multiplied by its weight; or "weighted": timesteps are drawn as
            often as they weigh, which is the same gradient with less noise; `loss_level_*` in the log are then means
            over these.
        gradient_checkpointing: Parts that recompute activations in the backward pass, to save memory; "auto": as few as
            the device's memory allows, which `python -m train` finds out before it makes the stage.
        compiled: Parts that `torch.compile` makes faster after some minutes of work at the first step; for pictures of
            one size.
        encoder_size: Side of the square whose area the encoder sees pictures at; None: the size of the latents'.
        loss_outside_mask: What the loss counts where a sample's mask is black; where it is white it counts 1.
        preview: What the preview sheets show; None for none.
        metrics: Variations of held-out pictures that every evaluation measures as `seecoder eval` does; None for none.
            Needs `preview`.
        export_encoder: Write the whole encoder as a folder with every checkpoint. `seecoder export` does it later from
            a checkpoint.
        **options: Those of `Stage`.
    """

    frozen_names = ("vae", "unet", "encoder.backbone")

    def __init__(
        self,
        optimizer: OptimizerSettings,
        base: str,
        encoder: dict[str, Any],
        backbone_weights: str | None = None,
        init_from: str | None = None,
        position_gain: float = 0.0,
        prediction_type: Literal["epsilon", "v_prediction"] | None = None,
        variant: str | None = None,
        frozen_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        frozen_weights: Literal["int8", "float8"] | None = None,
        offload: tuple[Literal["unet", "vae"], ...] = (),
        vae_dtype: Literal["float32", "bfloat16"] = "float32",
        context_dropout: float = 0.0,
        min_snr_gamma: float | None = None,
        timestep_sampling: Literal["uniform", "weighted"] = "uniform",
        gradient_checkpointing: tuple[Literal["encoder", "unet"], ...] | Literal["auto"] = (),
        compiled: tuple[Literal["decoder", "unet"], ...] = (),
        encoder_size: int | None = None,
        loss_outside_mask: float = 0.0,
        preview: Preview | None = None,
        metrics: VariationMetrics | None = None,
        export_encoder: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, **options)
        require("context_dropout", context_dropout, BELOW_ONE)
        require("timestep_sampling", timestep_sampling, choice("uniform", "weighted"))
        require("prediction_type", prediction_type, optional(choice(*PREDICTIONS)))
        require("min_snr_gamma", min_snr_gamma, MIN_SNR_GAMMA)
        require("encoder_size", encoder_size, ENCODER_SIZE)
        require("loss_outside_mask", loss_outside_mask, number(0.0, 1.0))
        if gradient_checkpointing == "auto":
            raise ValueError(
                "`gradient_checkpointing`='auto' must be names of parts here: only `python -m train fit` chooses them. "
                'Give (), ("encoder",) or ("encoder", "unet").'
            )
        parts = ("unet", "vae", "scheduler")
        unet, vae, scheduler = (load_config(base, part, prediction_type=prediction_type) for part in parts)
        check_parts(unet, vae, encoder=encoder, training=True)
        self.schedule = NoiseSchedule(scheduler)
        read: dict[str, Any] = {"prediction_type": prediction_type, "variant": variant}
        self.vae = load_frozen(base, "vae", vae_dtype, **read)
        self.unet = load_frozen(base, "unet", frozen_dtype, **read)
        self.encoder = seeded_encoder(encoder, self.seed, position_gain)
        self.backbone_source = backbone_weights or ""
        if backbone_weights:
            self.encoder.load_backbone_weights(backbone_weights)
        if init_from is not None:
            load_trained(self.encoder, init_from)
        self._freeze(frozen_dtype, gradient_checkpointing)
        for name, form in (("unet", frozen_weights), ("vae", None)):
            if form is not None or name in offload:
                hold_weights(getattr(self, name), form, offload=name in offload)
        for name in compiled:  # in place: names of weights stay as they are
            {"decoder": self.encoder.decoder, "unet": self.unet}[name].compile(dynamic=False)
        self.base_source, self.encoder_size = base, encoder_size
        self.context_dropout, self.min_snr_gamma = context_dropout, min_snr_gamma
        self.timestep_sampling, self.loss_outside_mask = timestep_sampling, loss_outside_mask
        require_preview(preview, metrics)
        self.preview, self.metrics, self.export_encoder = preview, metrics, export_encoder

    def _freeze(self, frozen_dtype: str, gradient_checkpointing: tuple[str, ...]) -> None:
        """Ask for gradients of exactly what training moves."""
        trained = {id(weight) for _, weight in self.encoder.trainable_named_parameters()}
        for weight in self.encoder.parameters():
            weight.requires_grad_(id(weight) in trained)
        self.backbone_sha256 = tensors_sha256(self.encoder.backbone.state_dict())
        self.encoder.backbone.to(getattr(torch, frozen_dtype))
        for name in gradient_checkpointing:
            getattr(self, name).enable_gradient_checkpointing()
        self.freeze_parts()
        frozen = [name for name, weight in self.named_parameters() if not weight.requires_grad]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, frozen)  # the same in all processes

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Weighted mean square of one micro-batch."""
        keys = batch["keys"]
        context, pooled = self.encode(batch, keys)
        if self.context_dropout:
            kept = uniform(self.seed, "context_dropout", keys, 1) >= self.context_dropout
            context = context * kept.to(context).unsqueeze(-1)
        times, weights = self.draw_timesteps(keys)
        errors = self.errors(batch, keys, times, context, pooled)
        self.record_levels(errors, times)
        return (errors * weights.to(errors.device)).mean()

    def draw_timesteps(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps of the samples' own, (N,) int64, and what their losses count, (N,) or (); on the CPU."""
        if self.timestep_sampling == "weighted":
            draws = uniform(self.seed, "timestep", keys, 1)[:, 0].double()
            return self.schedule.weighted_timesteps(draws, self.min_snr_gamma)
        times = self.uniform_timesteps(keys)
        return times, self.schedule.min_snr_weights(times, self.min_snr_gamma)

    def encode(self, batch: dict[str, Any], keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Context and pooled vector of a batch; with keys, positions get their samples' own jitter."""
        pixels = batch.get("frames", batch["pixels"]).float() / 255  # a picture's whole, or its reference
        if self.encoder_size is not None:  # as many pixels for all proportions
            ratio = (pixels.shape[-2] / pixels.shape[-1]) ** 0.5
            size = max(MIN_SIDE, round(self.encoder_size * ratio)), max(MIN_SIDE, round(self.encoder_size / ratio))
            pixels = interpolate(pixels, size=size, mode="bilinear", antialias=True)
        jitter = None
        if keys is not None and self.encoder.config["position_aware"]:
            levels = self.encoder.draw_position_jitter(batch_size=1)
            assert levels is not None
            draws = uniform(self.seed, "position_jitter", keys, levels[0].numel())
            jitter = (draws - 0.5).view(len(keys), *levels.shape[1:]).to(pixels.device)
        if map_column(0) in batch:
            output = self.encoder.encode_maps(self.maps(batch, pixels), jitter)
        else:
            output = self.encoder.encode(pixels, jitter)
        return output.context, output.pooled

    def maps(self, batch: dict[str, Any], pixels: Tensor) -> list[Tensor]:
        """Maps of the backbone: from the batch where they were cached, by the backbone where they were not."""
        names = [
            map_column(level) for level in range(len(self.encoder.backbone.channels)) if map_column(level) in batch
        ]
        return _completed(batch, names, MapsSource.flag, lambda rows: self.encoder.compute_maps(pixels[rows]))

    def maps_source(self, size: int) -> MapsSource | None:
        """What cached maps must be of; None if the encoder sees pictures at another size."""
        return None if self.encoder_size is not None else MapsSource.from_encoder(self.encoder, size)

    def errors(
        self, batch: dict[str, Any], keys: Tensor, times: Tensor, context: Tensor, pooled: Tensor | None
    ) -> Tensor:
        """Mean square error of each sample, (N,), for a context and a pooled vector."""
        dtype = self.unet.dtype
        size = batch["pixels"].shape[-2:]  # of pictures that are neither cut nor scaled, unless the source says more
        time_ids = batch.get("size_ids", torch.tensor([*size, 0, 0, *size]))

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            def unet(context: Tensor, *vectors: Tensor) -> Tensor:
                extra = added_conditions(vectors[0], time_ids) if vectors else {}
                return self.unet(noisy.to(dtype), times, encoder_hidden_states=context, **extra).sample

            return run_frozen(unet, [context] if pooled is None else [context, pooled], dtype)

        moments, weights = self.moments(batch), None
        if "mask" in batch:
            inside = interpolate(batch["mask"].float() / 255, size=moments[0].shape[-2:], mode="area")
            weights = self.loss_outside_mask + (1 - self.loss_outside_mask) * inside
        return self.prediction_errors(moments, keys, times, predict, weights)

    def moments(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Posterior of the latent: from the batch where it was cached, by the autoencoder where it was not."""

        def compute(rows: slice | Tensor) -> tuple[Tensor, Tensor]:
            return encode_moments(self.vae, batch["pixels"][rows].float() / 255)

        names = [MEAN, STD] if MEAN in batch else []
        mean, std = _completed(batch, names, MomentsSource.flag, compute)
        return mean.float(), std.float()

    def moments_source(self, size: int) -> MomentsSource:
        """What cached moments of square pictures must be of, to be those that `moments` would compute."""
        return MomentsSource.from_vae(self.vae, size)

    def evaluate(self) -> dict[str, float]:
        """Held-out loss, and what each picture's own context has to do with it: see `held_out_figures`."""
        figures = held_out_figures(self)
        if self.metrics is not None:
            figures |= variation_figures(self, self.metrics, Path(self.trainer.default_root_dir))
        return figures

    @cached_property
    def conditioner(self) -> Any:
        """The world's conditioner, if the base has one; no submodule: it is neither trained nor saved."""
        if not (Path(self.base_source) / "conditioner").is_dir():
            return None
        from data.world.conditioner import load_conditioner

        loaded: Any = load_conditioner(self.base_source)
        return loaded.requires_grad_(False).to(self.device)

    def on_fit_start(self) -> None:
        """Record in the encoder what it is trained for: whoever uses it takes that from there."""
        super().on_fit_start()
        check_picture_size(self.vae, *self.data.held_out_pixels.shape[-2:])
        facts = {"image_size": self.encoder_size or self.data.held_out_pixels.shape[-1]}
        if self.preview is not None:
            facts["guidance_scale"] = self.preview.guidance_scale
        self.encoder.register_to_config(**facts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `seecoder export` needs."""
        super().on_save_checkpoint(checkpoint)
        averages = checkpoint.get("ema", {}).get("averages", {})
        averages = {name.removeprefix("encoder."): value for name, value in averages.items()}
        checkpoint["seecoder"] = describe_encoder(self.encoder, averages, self.backbone_source, self.backbone_sha256)

    def export(self, folder: Path) -> dict[str, float]:
        """Write `encoder/`, whole, and a preview sheet; in the world, what the reader makes of its pictures."""
        if self.export_encoder:
            with atomic_directory(folder / "encoder", overwrite=True) as temporary:
                self.encoder.save_pretrained(temporary)
        data = self.data
        if self.preview is not None and len(data.held_out_pixels):
            batch = data.held_out_batch(slice(self.preview.pictures), self.device)
            inputs = [batch[name] for name in ("frames", "pixels") if name in batch]
            sheet = folder / "previews" / f"step-{self.global_step:08d}.png"
            pictures = write_sheet(self, inputs, *self.encode(batch, None), sheet)
            if data.held_out_scenes is not None and self.conditioner is not None:
                return score_previews(pictures, data.held_out_scenes[: len(inputs[0])])
        return {}


def _completed(
    batch: dict[str, Any], names: list[str], flag: str, compute: Callable[[slice | Tensor], Sequence[Tensor]]
) -> list[Tensor]:
    """Columns of a batch, whether all, some or none of its samples are cached.

    Args:
        batch: The batch; rows of samples that are not cached hold anything.
        names: Its columns; empty where nothing is cached.
        flag: Column that says of each sample whether it is; absent where all are.
        compute: Makes the columns of the samples with these row numbers.
    """
    if not names:
        return list(compute(slice(None)))
    columns = [batch[name] for name in names]
    absent = [row for row, is_cached in enumerate(batch.get(flag, ())) if not is_cached]
    if not absent:
        return columns
    rows = torch.tensor(absent, device=columns[0].device)
    return [
        column.float().index_copy(0, rows, made.float()) for column, made in zip(columns, compute(rows), strict=True)
    ]
