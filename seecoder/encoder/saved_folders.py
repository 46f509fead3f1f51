"""Folders that diffusers writes and reads, without what it does silently: half-fitting weights, and pickles."""

import os
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin

from seecoder.lookup import check_source
from seecoder.weights.safetensors_files import WeightsError
from seecoder.weights.strict_loading import refuse_differences, refuse_report


class SavedInFolders(ModelMixin, ConfigMixin):
    """An encoder that reads its folders strictly, and writes safetensors alone."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any) -> Any:
        """Load a folder or Hub repository that `save_pretrained` wrote, strictly.

        Args:
            pretrained_model_name_or_path: Folder, or name of a repository on the Hub.
            **kwargs: Those of `diffusers.ModelMixin.from_pretrained` (`dtype`, `subfolder`, `revision`, `token`, ...).
                Only safetensors are read.

        Returns:
            The encoder in eval mode; with `output_loading_info=True`, a pair of it and diffusers' report.

        Raises:
            WeightsError: Weights are missing, unexpected or of another shape. diffusers alone would only log them.
            ValueError: `use_safetensors=False`.
        """
        source, wants_report = str(pretrained_model_name_or_path), kwargs.pop("output_loading_info", False)
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError(
                "`use_safetensors`=False would load a pickle, which can run code; only safetensors are read."
            )
        if "dtype" in kwargs:
            kwargs["torch_dtype"] = kwargs.pop("dtype")  # the name that older diffusers know, and newer ones still do
        if kwargs.get("device_map") is None and kwargs.get("quantization_config") is None:
            # The other way of loading would cast the positional encoding, which is kept in float32.
            kwargs["low_cpu_mem_usage"] = False
        check_source("encoder", source, **kwargs)
        try:
            loaded: Any = super().from_pretrained(source, use_safetensors=True, output_loading_info=True, **kwargs)
            model, report = loaded
        except RuntimeError as error:
            mismatched = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            refuse_differences(mismatched=mismatched, source=source, target="its configuration")
            raise
        variant = "position-aware" if model.config["position_aware"] else "plain"
        refuse_report(
            report,
            source=source,
            target=f"its configuration, which is a {variant} encoder's",
            hint="The folder is damaged or mixed from two; export it again.",
        )
        return (model, report) if wants_report else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write configuration and weights to a folder for `from_pretrained`.

        Args:
            save_directory: The folder; created if it does not exist.
            *args: Those of `diffusers.ModelMixin.save_pretrained`, in its order.
            **kwargs: The same by name (`variant`, `max_shard_size`, `push_to_hub`, ...).

        Raises:
            ValueError: `safe_serialization=False`.
            WeightsError: A weight has no values (it is on the meta device).
            NotADirectoryError: `save_directory` is a file.
        """
        positional = dict(zip(("is_main_process", "save_function", "safe_serialization"), args, strict=False))
        options = {**positional, **kwargs}
        if options.get("safe_serialization", True) is False:
            raise ValueError("`safe_serialization`=False would write a pickle, which no reader here accepts.")
        if Path(save_directory).is_file():
            raise NotADirectoryError(f"`save_directory`={str(save_directory)!r} is a file; give a folder.")
        if empty := [name for name, tensor in self.state_dict().items() if tensor.is_meta]:
            first = ", ".join(empty[:3])
            raise WeightsError(f"{len(empty)} weights have no values yet (first: {first}); load them first.")
        super().save_pretrained(save_directory, *args, **kwargs)
