"""Checkpoints of one file in the layout of the original code: Stable Diffusion 1.x, 2.x and XL, VAEs and ControlNets.

diffusers' own functions rename the weights. How the networks are built is read off their shapes, so that nothing has to
be fetched, and every weight has to be there, to fit and to be used, as in folders. Only what is listed here as not
needed, such as the text encoder, is left out.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils as ldm
from torch import Tensor

from seecoder.base_model.architectures import controlnet_config, count_numbers, unet_config, vae_config
from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE
from seecoder.weights.safetensors_files import WeightsError, read_safetensors
from seecoder.weights.strict_loading import load_strict, refuse_differences

logger = logging.getLogger(__name__)

_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "controlnet": "control_model."}
FILE_PARTS = (*_PREFIXES, "scheduler")
_FIRST = {  # names by which a file without prefixes is known, in the original layout and in that of diffusers
    "unet": ("input_blocks.0.0.weight", "conv_in.weight"),
    "vae": ("encoder.conv_in.weight",),
    "controlnet": ("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"),
}
_CONVERTERS: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "unet": ldm.convert_ldm_unet_checkpoint,
    "vae": ldm.convert_ldm_vae_checkpoint,
    "controlnet": ldm.convert_controlnet_checkpoint,
}
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "controlnet": "ControlNetModel"}
_NOT_NEEDED = re.compile(  # text encoders, averages, losses, and numbers of the schedule, which is Stable Diffusion's
    r"(cond_stage_model|conditioner|model_ema|embedding_manager|loss)\..*|betas|alphas_cumprod(_prev)?|(sqrt|log)_\w+|logvar"
    r"|posterior_\w+|lvlb_weights|scale_factor|global_step|v_pred|ztsnr|denoiser\.sigmas"
)
_OTHERS = (  # what else lies in such files, by a name that only it has
    (r"conditioner\.embedders\.0\.model\.", "SDXL's refiner, which only finishes pictures of the base model"),
    (r"joint_blocks\.\d", "Stable Diffusion 3"),
    (r"(double|single)_blocks\.\d", "Flux"),
    (r"clip_txt_mapper\.|\.channelwise\.", "Stable Cascade"),
    (r"edm_mean$|edm_vpred\.", "a base trained as EDM (Playground 2.5, CosXL)"),
    (r"lora_(unet|te\d?)_|lora[._](A|B|up|down|linear_layer)\b|hada_w1|lokr_w1", "a LoRA; `--lora` takes it"),
    (r"(ip_adapter|image_proj)\.", "an IP-Adapter"),
    (r"(adapter\.)?body\.\d+\.", "a T2I-Adapter"),
    (r"(emb_params|string_to_param|clip_[lg])$", "an embedding of words (textual inversion)"),
    (r"motion_modules\.|\w+\.time_stack\.", "a model for video"),
    (r"low_scale_model\.", "an upscaler"),
    (r"depth_model\.", "a depth-to-image model"),
    (r"noise_augmentor\.", "an unCLIP model, which reads a picture's embedding"),
    (r"lora_controlnet$", "a Control-LoRA"),
    (r"context$", "ready contexts; `--encoder` takes them"),
    (r"ctx\.image\.|(backbone|decoder\.layers|query_transformer)\.", "an encoder; `--encoder` takes it"),
)


@cache
def say_once(text: str) -> None:
    """Log a note, however often the same base is opened."""
    logger.warning(text)


class SingleFile:
    """A checkpoint in one file.

    Args:
        source: Its path, for messages.
        tensors: Its tensors by name.
        metadata: What its header says; where it names the prediction type, this is believed.
    """

    def __init__(self, source: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        self.source, self.tensors, self.metadata = source, tensors, metadata

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "SingleFile":
        """Open a file; its tensors are read when they are used.

        Raises:
            FileNotFoundError: There is no such file.
            WeightsError: It is a pickle, damaged or something else.
        """
        return cls(os.fspath(path), *read_safetensors(path))

    @property
    def other(self) -> str | None:
        """What the file is if it is known and no base, VAE or ControlNet; else None."""
        for pattern, meaning in _OTHERS:
            if any(re.search(rf"(^|\.){pattern}", name) for name in self.tensors):
                return meaning
        return None

    def has(self, part: str) -> bool:
        """Say whether the file holds `unet`, `vae` or `controlnet`."""
        return self._prefix(part) is not None

    @property
    def is_turbo(self) -> bool:
        """Whether it is called as SD-Turbo and SDXL-Turbo are: of 512 pixels, and noise is what they predict."""
        found = re.match(r"sd[-_]?(xl)?[-_]turbo", Path(self.source).name.lower()) is not None
        if found:
            say_once(f"`{self.source}` is taken for Stability's Turbo, of 512 pixels, by its name; if not, rename it.")
        return found

    @property
    def has_averages(self) -> bool:
        """Whether the UNet is there twice: as trained, and averaged over the training (EMA)."""
        return any(name.startswith("model_ema.diffusion_model") for name in self.tensors)

    def description(self) -> dict[str, Any]:
        """Tell what the file is, for a reader."""
        if self.other is not None:
            return {"kind": self.other}
        parts = [part for part in _PREFIXES if self.has(part)]
        facts: dict[str, Any] = {"kind": "checkpoint in one file", "parts": ", ".join(parts)}
        if self.has("unet"):
            config = self.config("unet")
            is_sdxl, is_linear = config["addition_embed_type"] is not None, config["use_linear_projection"]
            facts |= {
                "family": "SDXL" if is_sdxl else "SD 2.x" if is_linear else "SD 1.x",
                "inpainting": "yes" if config["in_channels"] == 2 * config["out_channels"] + 1 else "no",
                "predicts": self.prediction_type(),
                "average": "yes" if self.has_averages else "no",
                "context width": config["cross_attention_dim"],
            }
        return facts if parts else {}

    def config(self, part: str, *, prediction_type: str | None = None, sdxl: bool = False) -> dict[str, Any]:
        """Tell how a part is built, as a diffusers folder would.

        Args:
            part: `unet`, `vae`, `controlnet` or `scheduler`.
            prediction_type: What the UNet predicts; None for what the file says, or else its family.
            sdxl: Whether the latents of a VAE alone are scaled as SDXL's.

        Raises:
            WeightsError: The part is not there, or is not as any of these families have it.
        """
        if part == "scheduler":
            return self._scheduler(prediction_type)
        config = self._architecture(part)
        if part == "vae":
            sdxl = self._reads_added if self.has("unet") else sdxl
            config |= {"scaling_factor": 0.13025, "sample_size": 1024} if sdxl else {"scaling_factor": 0.18215}
        elif part == "unet":
            side = re.fullmatch(r"(\d+)x\1", self.metadata.get("modelspec.resolution", ""))
            if self.is_turbo or side:
                config["sample_size"] = 64 if self.is_turbo or not side else int(side[1]) // 8
            elif config["upcast_attention"] and self.prediction_type(prediction_type) == "v_prediction":
                config["sample_size"] = 96
        return {"_class_name": _CLASSES[part], **config}

    def _architecture(self, part: str) -> dict[str, Any]:
        """Read off the shapes of its weights how a part is built."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights(part).items()}
        try:
            return {"unet": unet_config, "vae": vae_config, "controlnet": controlnet_config}[part](shapes)
        except (KeyError, IndexError, ValueError) as error:
            lacking = str(error) if isinstance(error, KeyError) else "whole blocks"
            raise WeightsError(
                f"`{self.source}` is no complete checkpoint: its {part} lacks {lacking}. Get it again."
            ) from error

    def load(self, part: str, dtype: torch.dtype | None = None, *, variant: str | None = None, **options: Any) -> Any:
        """Build a part with its weights.

        Args:
            part: `unet`, `vae` or `controlnet`.
            dtype: What to hold the weights in; None for float32.
            variant: "non_ema" for the weights as trained where averages are there, too; they are used otherwise.
            options: Those of `config`.

        Returns:
            The network in evaluation mode, on the CPU.

        Raises:
            WeightsError: Weights are missing, unexpected or of another shape.
        """
        config = self.config(part, **options)
        weights = {name: value.to(dtype or torch.float32) for name, value in self.weights(part, variant).items()}
        cls: Any = getattr(diffusers, config["_class_name"])
        with init_empty_weights():
            model = cls.from_config(config)
        load_strict(model, weights, source=self.source)
        return model.eval()

    def save(self, folder: Path, **options: Any) -> None:
        """Write UNet, VAE and scheduler as a diffusers folder, in the dtype of the file.

        Args:
            folder: It must exist.
            options: Those of `config`.

        Raises:
            WeightsError: A part is not there or does not fit.
        """
        index: dict[str, Any] = {"_class_name": f"StableDiffusion{'XL' * self._reads_added}Pipeline"}
        for part in ("unet", "vae"):
            network = self.load(part, next(iter(self.weights(part).values())).dtype, **options)
            network.save_pretrained(folder / part)
            index[part] = ["diffusers", type(network).__name__]
        scheduler: Any = diffusers.DDIMScheduler.from_config(self.config("scheduler", **options))
        scheduler.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def prediction_type(self, given: str | None = None) -> str:
        """Tell what the UNet predicts, "epsilon" or "v_prediction".

        Args:
            given: What the user says; None for the file's marks, or else what is assumed of the family, with a note.
        """
        said = self.metadata.get("modelspec.prediction_type") or self.metadata.get("modelspec.architecture", "")
        if given is not None:
            return given
        if "v_pred" in self.tensors or re.fullmatch(r"v|v_prediction|.*-v", said):
            return "v_prediction"
        config = self._architecture("unet")
        if said or self.is_turbo or not config["upcast_attention"] or config["in_channels"] != config["out_channels"]:
            return "epsilon"
        say_once(
            f"`{self.source}` is SD 2.x and does not say what it predicts; velocity is assumed, as of the published "
            "models of 768 pixels. For one of 512 give prediction_type='epsilon'; for training, to `seecoder import`."
        )
        return "v_prediction"

    def weights(self, part: str, variant: str | None = None) -> dict[str, Tensor]:
        """Give the weights of a part by diffusers' names.

        Args:
            part: `unet`, `vae` or `controlnet`.
            variant: "non_ema" for the UNet as trained where its average is there, too.

        Raises:
            WeightsError: The part is not there, or the file holds weights that are not known.
        """
        if self.other is not None:
            raise WeightsError(f"`{self.source}` must be a checkpoint of SD 1.x, 2.x or SDXL; it is {self.other}.")
        prefix = self._prefix(part)
        if prefix is None:
            found = [name for name in _PREFIXES if self.has(name)]
            raise WeightsError(
                f"`{self.source}` must be a checkpoint in one file with a {part}; it has "
                f"{' and '.join(found) or 'no part of SD 1.x, 2.x or SDXL'}. Give its {part} beside it."
            )
        names = {name.removeprefix(prefix): name for name in self.tensors if name.startswith(prefix)}
        names = {own: name for own, name in names.items() if not _NOT_NEEDED.fullmatch(own)}
        if part == "unet" and self.has_averages and variant != "non_ema":
            names = {own: "model_ema." + f"diffusion_model.{own}".replace(".", "") for own in names}
        known = (*names.values(), *(name for name in self.tensors if name.startswith(tuple(_PREFIXES.values()))))
        others = [name for name in self.tensors.keys() - set(known) if not _NOT_NEEDED.fullmatch(name)]
        missing = [name for name in names.values() if name not in self.tensors]
        refuse_differences(missing=missing, unexpected=sorted(others), source=self.source, target="a known checkpoint")
        own = {name: _as_linear(name, self.tensors[stored]) for name, stored in names.items()}
        converted = own if any("down_blocks." in name for name in own) else self._converted(part, own)
        used = {id(tensor) for tensor in converted.values()}
        unused = sorted(names[name] for name, tensor in own.items() if id(tensor) not in used)
        refuse_differences(unexpected=unused, source=self.source, target=f"the {part} of a known checkpoint")
        return converted

    @property
    def _reads_added(self) -> bool:
        """Whether the UNet is SDXL's: it reads an added vector, and its first level has no attention."""
        names = {name.removeprefix(_PREFIXES["unet"]) for name in self.tensors}
        first = any(name.startswith(("input_blocks.1.1.", "down_blocks.0.attentions.")) for name in names)
        return not first and bool(names & {"label_emb.0.0.weight", "add_embedding.linear_1.weight"})

    def _prefix(self, part: str) -> str | None:
        """What the names of a part begin with: its prefix, nothing in a file of its own, None if it is not there."""
        if any(name.startswith(_PREFIXES[part]) for name in self.tensors):
            return _PREFIXES[part]
        is_controlnet = any(first in self.tensors for first in _FIRST["controlnet"])
        bare = any(first in self.tensors for first in _FIRST[part]) and is_controlnet == (part == "controlnet")
        return "" if bare else None

    def _converted(self, part: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights of a part from the original layout."""
        levels = count_numbers(own, "encoder.down.") if part == "vae" else 0
        down = next((n for n in range(1, len(own)) if f"input_blocks.{n}.0.op.weight" in own), None)
        config: dict[str, Any] = {
            "layers_per_block": (down or count_numbers(own, "input_blocks.")) - 1,
            "down_block_types": ("",) * levels,
            "up_block_types": ("",) * levels,
            "num_class_embeds": "label_emb.weight" in own or None,
        }
        if "label_emb.0.0.weight" in own:
            config |= {"addition_embed_type": "text_time"} if self._reads_added else {"class_embed_type": "projection"}
        prefixed = {_PREFIXES[part] + name: tensor for name, tensor in own.items()}
        try:
            converted = _CONVERTERS[part](prefixed, config=config)
        except (KeyError, AttributeError) as error:  # what diffusers' functions say where a weight is missing
            raise WeightsError(f"`{self.source}` is no complete checkpoint: its {part} lacks {error}.") from error
        return {name: tensor for name, tensor in converted.items() if tensor is not None}

    def _scheduler(self, prediction_type: str | None) -> dict[str, Any]:
        zero_snr = "ztsnr" in self.tensors
        return {
            "_class_name": "DDIMScheduler",
            **STABLE_DIFFUSION_SCHEDULE,
            "prediction_type": self.prediction_type(prediction_type),
            "rescale_betas_zero_snr": zero_snr,
            "timestep_spacing": "trailing" if zero_snr or self.is_turbo else "leading",
        }


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """The VAE's attention as linear layers, which the original code has as convolutions of one pixel."""
    is_convolution = ".attn_1." in name and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
    return tensor[:, :, 0, 0] if is_convolution else tensor
