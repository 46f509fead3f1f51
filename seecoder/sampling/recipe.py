"""The parts that methods play in a run, and the recipe that holds one method for each part.

A method is frozen settings; those that mean nothing are refused with a ValueError as soon as it is made. It makes the
stages of a run (`StagesMethod`), says through which windows the sample is seen (`MultiDiffusion`), changes the network
(`NetworkMethod`), or edits the sample by what its windows show (`SyncDiffusion`). Methods of different parts compose
where the combination means something (`composition`); methods of the same part do not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from seecoder.base_model.facts import is_sdxl
from seecoder.presets import scale_over
from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.methods.multidiffusion import MultiDiffusion
from seecoder.sampling.methods.syncdiffusion import SyncDiffusion
from seecoder.sampling.path import Patches, Path
from seecoder.sampling.sizes import exceeds_area, exceeds_side
from seecoder.sampling.stages import Outcome, Run, Stage, StageStart
from seecoder.sampling.views import Size, full_view


class StagesMethod(ABC):
    """Makes the stages of a run: DemoFusion, RectifiedHR.

    Attributes:
        starts_whole: Whether its first stage is a whole trajectory, which windows may make instead.
        enlarges_images: Whether a run may begin with clean latents of a picture (`image_latents`), which it enlarges.
    """

    starts_whole: ClassVar[bool]
    enlarges_images: ClassVar[bool] = False

    @abstractmethod
    def plan(self, run: Run, recipe: "Recipe") -> list[Stage]:
        """The stages of the run; `recipe` supplies what its other methods contribute.

        Raises:
            ValueError: If the method does not fit the request.
        """


class NetworkMethod(ABC):
    """Changes the network for samples that are larger than native: ScaleCrafter, HiDiffusion.

    Attributes:
        per_axis: Whether it acts on each axis by that axis's own scale.
    """

    per_axis: ClassVar[bool]

    @abstractmethod
    def check_layers(self, unet: Any) -> None:
        """Refuse settings that name parts that the network lacks, also where the run leaves it plain.

        Raises:
            ValueError: If a part does not exist.
        """

    @abstractmethod
    def patches(self, run: Run, view_size: Size) -> Patches:
        """Patches by network state, for views of this size, in a run that has a `unet`.

        Raises:
            ValueError: If a setting does not fit the network, or has no effect.
        """

    def guidance(self, run: Run, view_size: Size) -> ClassifierFree:
        """The guidance rule that goes with the patches: the ordinary one."""
        return ClassifierFree(run.guidance_scale, run.guidance_rescale)


Method = StagesMethod | MultiDiffusion | NetworkMethod | SyncDiffusion


@dataclass(frozen=True)
class Recipe:
    """The methods of one run by the part they play; `compose` makes it.

    Attributes:
        stages: None is one stage at the size of the result.
        windows: None sees the whole sample at once.
        network: None leaves the network as it is.
        editor: None leaves the sample as it is.
    """

    stages: StagesMethod | None = None
    windows: MultiDiffusion | None = None
    network: NetworkMethod | None = None
    editor: SyncDiffusion | None = None

    def restarts(self, size: Size, native_size: Size) -> bool:
        """Whether a run begins inside a trajectory, or edits the sample so that a scheduler must forget the past.

        Args:
            size: (height, width) of the result in cells.
            native_size: (height, width) in cells that the network was trained at; there is one stage up to it.
        """
        return self.editor is not None or (self.stages is not None and scale_over(size, native_size) > 1.0)

    def plan(self, run: Run) -> list[Stage]:
        """The stages of the run.

        Raises:
            ValueError: If a method does not fit the request.
        """
        if self.network is not None and run.unet is not None:
            self.network.check_layers(run.unet)
        if run.image_latents is not None and (self.stages is None or not self.stages.enlarges_images):
            raise ValueError("`image_latents` needs a method that starts from a picture. Use DemoFusion().")
        if self.stages is not None:
            return self.stages.plan(run, self)
        return [self.base_stage(run, run.size, "sampling")]

    def frame_path(self, run: Run, size: Size) -> Path:
        """The path that sees the whole sample at once, with the network changed where `size` exceeds native."""
        patches = self._patches(run, size)
        return Path(lambda step, image: (full_view(step.latent_size),), patches=patches, whole=True)

    def paths(self, run: Run, size: Size) -> list[Path]:
        """The paths of a stage: windows where a method says so and the sample is larger than native."""
        windows = self.windows
        if windows is None:
            return [self.frame_path(run, size)]
        window = windows.window_size(run.native_size, size)
        if self._changes_network(run, size) and not self._changes_network(run, window):
            raise ValueError(
                f"{type(self.network).__name__} changes the network for views above the native size, but the windows "
                f"are {window[0]}x{window[1]} cells at a native size of {run.native_size[0]}x{run.native_size[1]}. "
                "Make the windows larger, or leave it out."
            )
        return windows.paths(run, size, self._patches(run, window))

    def guidance(self, run: Run, size: Size) -> ClassifierFree:
        """The guidance rule of a stage."""
        if self.network is not None and self._changes_network(run, size):
            windows = self.windows if self.stages is None else None
            view_size = size if windows is None else windows.window_size(run.native_size, size)
            return self.network.guidance(run, view_size)
        return ClassifierFree(run.guidance_scale, run.guidance_rescale)

    def base_stage(
        self,
        run: Run,
        size: Size,
        name: str,
        finish: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        in_windows: bool = True,
    ) -> Stage:
        """One whole trajectory, from noise or from the picture that the run redraws.

        Args:
            run: The request.
            size: (height, width) of the stage in cells.
            name: Shown with the progress.
            finish: Applied to the sample after the last step.
            in_windows: Whether it is seen in windows where a method makes them; else the whole frame at once.
        """
        # Regions have to be there from the beginning; otherwise windows of the native size would be the frame itself.
        has_regions = self.windows is not None and len(self.windows.regions) > 0
        in_windows = in_windows or has_regions or self.editor is not None
        paths = self.paths(run, size) if in_windows else [self.frame_path(run, size)]
        editors = [] if self.editor is None else [self.editor.editor(run, paths[0])]

        def begin(run: Run, before: Outcome | None) -> StageStart:
            return run.first_start(size, editors)

        return Stage(
            name, size, range(run.first_step, len(run.stepper)), begin, paths, self.guidance(run, size), finish
        )

    def _patches(self, run: Run, view_size: Size) -> Patches:
        if self.network is None or not self._changes_network(run, view_size):
            return {}
        if run.unet is None:
            name = type(self.network).__name__
            raise ValueError(f"{name}() changes layers of the network. Give sample() the `unet`.")
        return self.network.patches(run, view_size)

    def _changes_network(self, run: Run, size: Size) -> bool:
        """Whether views of `size` are above native for the network method of this run.

        A cascade's first stage has the native area at any aspect: the network's own size, by area alone.
        """
        if self.network is None:
            return False
        by_side = self.network.per_axis and self.stages is None
        return exceeds_area(size, run.native_size) or (
            by_side and exceeds_side(size, run.native_size, max_native_sides(run.unet))
        )


def max_native_sides(unet: Any) -> float:
    """Longest axis that a network knows at its native area, in native sides: SDXL's are trained up to 512x2048."""
    return 2.0 if is_sdxl(unet) else 1.5
