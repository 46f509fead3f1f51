"""The call that the pipelines for Stable Diffusion and SDXL share; `Request` holds its arguments."""

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from seecoder.pipelines.base import ContextPipeline
from seecoder.pipelines.call import Call, SeeCoderPipelineOutput
from seecoder.pipelines.request import Request

_Arguments = ParamSpec("_Arguments")


def _taking(
    request: Callable[_Arguments, Request],
) -> Callable[Concatenate[Any, _Arguments], SeeCoderPipelineOutput | tuple[Any, ...]]:
    """Make a method that takes what a request does, with its signature and its help."""

    def __call__(
        self: ContextPipeline, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> SeeCoderPipelineOutput | tuple[Any, ...]:
        asked = request(*args, **kwargs)
        output = Call(self, asked).run()
        return output if asked.return_dict else output.to_tuple()

    taken = inspect.signature(request)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __call__.__signature__ = taken.replace(  # type: ignore[attr-defined]
        parameters=[first, *taken.parameters.values()], return_annotation=SeeCoderPipelineOutput
    )
    __call__.__doc__ = request.__doc__
    return __call__


class VariationPipeline(ContextPipeline):
    """A pipeline that makes pictures of pictures."""

    __call__ = _taking(Request)
