"""Which methods go together, and how a list of them becomes one plan of stages.

Every method plays one part: it makes the stages of a run ("stages"), says through which windows the sample is seen
("windows"), changes the network ("network"), or edits the sample ("editor"). Methods of different parts compose where
the combination means something; methods of the same part do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch

from seecoder.base_model.facts import is_sdxl
from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.methods.geometry import scale_over
from seecoder.sampling.parts import Editor, Guidance, Opening, Outcome, Patch, Path, Run, Stage
from seecoder.sampling.views import Size, full_view


class Method(Protocol):
    """A published sampling method: frozen settings that play one part in a run."""

    role: ClassVar[str]


class StagesMethod(Method, Protocol):
    """Makes the stages of a run: DemoFusion, RectifiedHR."""

    starts_whole: ClassVar[bool]  # whether its first stage is a whole trajectory, which windows may make instead

    def stages(self, run: Run, recipe: "Recipe") -> list[Stage]:
        """The plan; `recipe` supplies what the other methods of the run contribute."""
        ...


class WindowsMethod(Method, Protocol):
    """Says through which windows the sample is seen: MultiDiffusion."""

    closed_loop: bool
    regions: Sequence[Any]

    def window_size(self, native_size: Size, size: Size) -> Size:
        """(height, width) of a window over latents of `size`."""
        ...

    def paths(self, run: Run, size: Size, patches: Mapping[str, Sequence[Patch]]) -> list[Path]:
        """Paths over windows; their weights add up to 1."""
        ...

    def by_region(self, run: Run, path: Path, size: Size) -> list[Path]:
        """A path split by the regions that have their own context, if there are any."""
        ...

    def without_bootstrap(self) -> "WindowsMethod":
        """The same windows for samples that have their objects already."""
        ...


class NetworkMethod(Method, Protocol):
    """Changes the network for samples that are larger than native: ScaleCrafter, HiDiffusion."""

    per_axis: ClassVar[bool]  # whether it acts on each axis by that axis's own scale

    def check(self, run: Run) -> None:
        """Check what names parts of the network, also where this run leaves it plain."""
        ...

    def patches(self, run: Run, view_size: Size) -> Mapping[str, Sequence[Patch]]:
        """Patches by network state, for views of this size."""
        ...

    def guidance(self, run: Run, view_size: Size) -> Guidance:
        """The guidance rule that goes with the patches."""
        ...


class EditorMethod(Method, Protocol):
    """Edits the sample between steps: SyncDiffusion."""

    @property
    def windows(self) -> WindowsMethod:
        """The windows it works on when no other method says so."""
        ...

    def editor(self, run: Run, path: Path) -> Editor:
        """The editor of a stage whose windows `path` plans."""
        ...


@dataclass(frozen=True)
class Recipe:
    """The methods of one run by the part they play."""

    maker: StagesMethod | None = None
    windows: WindowsMethod | None = None
    network: NetworkMethod | None = None
    sync: EditorMethod | None = None

    def plan(self, run: Run) -> list[Stage]:
        """The stages of the run.

        Raises:
            ValueError: If a method does not fit the request.
        """
        if self.network is not None:
            self.network.check(run)
        if self.maker is not None:
            return self.maker.stages(run, self)
        if run.image_latents is not None:
            raise ValueError("`image_latents` needs a method that starts from a picture. Use DemoFusion().")
        return [self.base_stage(run, run.size, "sampling")]

    def frame(self, run: Run, size: Size) -> Path:
        """The path that sees the whole sample at once, with the network changed where `size` exceeds native."""
        return Path(lambda step, picture: (full_view(step.latent_size),), patches=self._patches(run, size))

    def paths(self, run: Run, size: Size) -> list[Path]:
        """The paths of a stage: windows where a method says so and the sample is larger than native."""
        windows = self.windows
        if windows is None:
            return [self.frame(run, size)]
        window = windows.window_size(run.native_size, size)
        if self._changes_network(run, size) and not self._changes_network(run, window):
            raise ValueError(
                f"{_name(self.network)} changes the network for views above the native size, but the windows are "
                f"{window[0]}x{window[1]} cells at a native size of {run.native_size[0]}x{run.native_size[1]}. "
                "Make the windows larger, or leave it out."
            )
        return windows.paths(run, size, self._patches(run, window))

    def guidance(self, run: Run, size: Size) -> Guidance:
        """The guidance rule of a stage."""
        if self.network is not None and self._changes_network(run, size):
            view_size = size if self.windows is None or self.maker else self.windows.window_size(run.native_size, size)
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
        """One whole trajectory from noise at `size`; without `in_windows` the whole frame is seen at once."""
        # Regions have to be there from the beginning; otherwise windows of the native size would be the frame itself.
        has_regions = self.windows is not None and len(self.windows.regions) > 0
        in_windows = in_windows or has_regions or self.sync is not None
        paths = self.paths(run, size) if in_windows else [self.frame(run, size)]
        editors = [] if self.sync is None else [self.sync.editor(run, paths[0])]

        def begin(run: Run, outcome: Outcome | None) -> Opening:
            return Opening(run.first_sample(size), editors)

        return Stage(name, size, range(len(run.stepper)), begin, paths, self.guidance(run, size), finish)

    def _patches(self, run: Run, view_size: Size) -> Mapping[str, Sequence[Patch]]:
        if self.network is None or not self._changes_network(run, view_size):
            return {}
        return self.network.patches(run, view_size)

    def _changes_network(self, run: Run, size: Size) -> bool:
        """Whether views of `size` are above native for the network method of this run.

        A cascade's first stage has the native area at any aspect: the network's own size, by area alone.
        """
        if self.network is None:
            return False
        is_long = self.network.per_axis and self.maker is None and is_longer(size, run.native_size, _longest(run.unet))
        return exceeds(size, run.native_size) or is_long


def exceeds(size: Size, native_size: Size) -> bool:
    """Whether views of `size` hold noticeably more cells than the network was trained at."""
    return scale_over(size, native_size) > 1.05


def is_longer(size: Size, native_size: Size, longest: float) -> bool:
    """Whether an axis is more than `longest` times the native side."""
    return max(size[0] / native_size[0], size[1] / native_size[1]) > longest + 1e-6


def _longest(unet: Any) -> float:
    """Longest axis that a network knows at its native area, in native sides: SDXL's are trained up to 512x2048."""
    return 2.0 if is_sdxl(unet) else 1.5


def compose(method: Method | Sequence[Method] | None) -> Recipe:
    """The recipe of one method, of several, or of none.

    Raises:
        TypeError: If something is not a sampling method.
        ValueError: If the methods do not compose; the message says why.
    """
    methods: list[Any] = [] if method is None else list(method) if isinstance(method, Sequence) else [method]
    parts: dict[str, Any] = {}
    for entry in methods:
        role = getattr(entry, "role", None)
        if role not in _WHY_ONE or isinstance(entry, type):
            raise TypeError(f"`method`={entry!r} is not a sampling method. Use for instance DemoFusion().")
        if role in parts:
            raise ValueError(f"{_name(parts[role])} and {_name(entry)} do not compose: {_WHY_ONE[role]}")
        parts[role] = entry
    return _checked(Recipe(parts.get("stages"), parts.get("windows"), parts.get("network"), parts.get("editor")))


_WHY_ONE = {
    "stages": "both decide which resolutions the run goes through. Use one.",
    "windows": "both decide through which windows the sample is seen. Use one.",
    "network": "both change how far the same inner layers reach. Use one.",
    "editor": "both edit the sample by what its windows show. Use one.",
}


def _checked(recipe: Recipe) -> Recipe:
    """The recipe with its windows filled in, or the reason why its parts do not go together."""
    if recipe.sync is not None:
        recipe = replace(recipe, windows=_windows_of(recipe.sync, recipe.windows))
    if recipe.sync is not None and recipe.maker is not None and not recipe.maker.starts_whole:
        raise ValueError(
            f"{_name(recipe.sync)} and {_name(recipe.maker)} do not compose: windows are synchronised in the first "
            f"steps, which {_name(recipe.maker)} makes at the native size, where there is one window only."
        )
    closed = recipe.windows is not None and recipe.windows.closed_loop
    if closed and recipe.maker is not None:
        raise ValueError(
            f"A closed loop and {_name(recipe.maker)} do not compose: its stages look at the whole frame, which has "
            "a left and a right end. Sample the loop at its full size, or leave the loop open."
        )
    return recipe


def _windows_of(sync: EditorMethod, windows: WindowsMethod | None) -> WindowsMethod:
    """The windows that are synchronised: those of the method that makes windows, else the editor's own."""
    if windows is None:
        return sync.windows
    for name in ("window", "stride", "closed_loop"):
        asked = getattr(sync, name, None)
        if asked and _pair(asked) != _pair(getattr(windows, name, None)):
            raise ValueError(
                f"{_name(sync)} and {_name(windows)} do not compose: `{name}`={asked} of {_name(sync)} would have no "
                f"effect, as the windows are those of {_name(windows)}. Set `{name}` of {_name(windows)} instead."
            )
    return windows


def _pair(value: Any) -> Any:
    """A length for both axes as a pair, so that 16 is (16, 16) and a list is a tuple; all else as it is."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _name(method: object) -> str:
    return type(method).__name__
