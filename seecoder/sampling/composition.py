"""Which methods go together: how one method or a list of them becomes a recipe, or is refused with the reason."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from seecoder.sampling.methods.multidiffusion import MultiDiffusion
from seecoder.sampling.methods.syncdiffusion import SyncDiffusion
from seecoder.sampling.recipe import Method, NetworkMethod, Recipe, StagesMethod

Part = TypeVar("Part")


def compose(method: Method | Sequence[Method] | None) -> Recipe:
    """The recipe of one method, of several, or of none.

    Raises:
        TypeError: If something is not a sampling method.
        ValueError: If the methods do not compose; the message says why.
    """
    methods: list[Any] = [] if method is None else list(method) if isinstance(method, list | tuple) else [method]
    for entry in methods:
        if not isinstance(entry, Method):
            raise TypeError(f"`method`={entry!r} is not a sampling method. Use for instance DemoFusion().")
    recipe = Recipe(
        stages=_only(methods, StagesMethod, "both decide which resolutions the run goes through"),
        windows=_only(methods, MultiDiffusion, "both decide through which windows the sample is seen"),
        network=_only(methods, NetworkMethod, "both change how far the same inner layers reach"),
        editor=_only(methods, SyncDiffusion, "both edit the sample by what its windows show"),
    )
    if recipe.editor is not None:
        recipe = replace(recipe, windows=_edited_windows(recipe.editor, recipe.windows))
    _check_stages(recipe)
    return recipe


def _only(methods: Sequence[Any], part: type[Part], conflict: str) -> Part | None:
    """The one method that plays a part, or None.

    Raises:
        ValueError: If several do; `conflict` is the reason.
    """
    found = [entry for entry in methods if isinstance(entry, part)]
    if len(found) > 1:
        raise ValueError(f"{_name(found[0])} and {_name(found[1])} do not compose: {conflict}. Use one.")
    return found[0] if found else None


def _check_stages(recipe: Recipe) -> None:
    """Refuse stages that the other methods of a recipe cannot go with."""
    stages, editor, windows = recipe.stages, recipe.editor, recipe.windows
    if stages is None:
        return
    if editor is not None and not stages.starts_whole:
        raise ValueError(
            f"{_name(editor)} and {_name(stages)} do not compose: windows are synchronised in the first steps, which "
            f"{_name(stages)} makes at the native size, where there is one window only."
        )
    if windows is not None and windows.closed_loop:
        raise ValueError(
            f"A closed loop and {_name(stages)} do not compose: its stages look at the whole frame, which has a left "
            "and a right end. Sample the loop at its full size, or leave the loop open."
        )


def _edited_windows(editor: SyncDiffusion, windows: MultiDiffusion | None) -> MultiDiffusion:
    """The windows that an editor works on: those of the method that makes windows, else the editor's own."""
    if windows is None:
        return editor.windows
    for name in ("window", "stride", "closed_loop"):
        value = getattr(editor, name)
        if value and _pair(value) != _pair(getattr(windows, name)):
            raise ValueError(
                f"{_name(editor)} and {_name(windows)} do not compose: `{name}`={value} of {_name(editor)} would have "
                f"no effect, as the windows are those of {_name(windows)}. Set `{name}` of {_name(windows)} instead."
            )
    return windows


def _pair(value: Any) -> Any:
    """A length for both axes as a pair, so that 16 is (16, 16) and a list is a tuple; all else as it is."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _name(method: object) -> str:
    return type(method).__name__
