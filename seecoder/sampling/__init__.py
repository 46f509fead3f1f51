"""Sampling above the training resolution: one engine, and the published methods as short files on top of it.

The engine knows nothing of pipelines, encoders or VAEs. `sample` works on

* a *denoiser*, `denoiser(latents, timestep, context, **conditions) -> output`:
    latents (N, C, h, w), already scaled for the network, in `context`'s device and data type;
    timestep a scalar tensor, as the scheduler lists it;
    context (N, tokens, width), one row per latent;
    conditions whatever `added_conditions` and `control` gave, every tensor with N rows;
    output (N, C, h, w) in the scheduler's `prediction_type` (noise, v or sample).
    For a diffusers UNet: `lambda x, t, c, **k: unet(x, t, encoder_hidden_states=c, return_dict=False, **k)[0]`.
    N is branches x (image, view) pairs, branch after branch, unconditional first;
* any diffusers *scheduler* of the noise-, v- or sample-predicting kind (copied for the call, never changed);
* *latents*: all sizes are (height, width) in latent cells.

    latents = sample(denoiser, scheduler, latent_shape=(1, 4, 128, 128), native_size=(64, 64), context=context,
                     negative_context=zeros, guidance_scale=4.0, method=DemoFusion(), generator=generator)

A method may need more:

* `decoder(latents) -> pixels` and `encoder(pixels) -> latents`. Latents are those of the trajectory (scaled as the
  network knows them); pixels are (N, 3, height, width) in [-1, 1]; both are on the latents' device. The encoder gives
  the mode, not a draw. SyncDiffusion needs the decoder and takes gradients through it; RectifiedHR needs both;
  MultiDiffusion needs the encoder for bootstrapped regions.
* `unet`: the module that `denoiser` calls, for methods that patch layers (ScaleCrafter, HiDiffusion). It comes back
  bit-identical, also when the run is interrupted.
* `added_conditions(view, branch, latent_size) -> mapping`: keyword arguments of the denoiser for one view (a `View`:
  its place in the latents of the current stage, whose size is `latent_size`) and one branch ("positive" or
  "negative"). Tensors have 1 or B rows; mappings of tensors are allowed (`added_cond_kwargs` of SDXL).
* `control`: a `Control`, that is the control picture and a callable that runs the ControlNet; or several of them.
* `image_latents`: clean latents of a given picture, which DemoFusion takes in place of its first stages.
* `start_image`: a `StartImage`, a picture that is redrawn: by a strength, and under a mask, whatever the method.
* `extra_channels(latent_size)`: what an inpainting network reads below the sample, cut to every view.

Randomness: every picture has its own stream (`randomness`), never torch's global one during a run. A picture is the
same alone, in a batch, and for every `view_batch_size` (up to rounding).

Memory: the sample is kept in float32. The denoiser runs in `context`'s data type on `view_batch_size` native-sized
(image, view) pairs at a time, larger views by their area, so memory does not grow with the number of views.
SyncDiffusion is the exception: it keeps one offset for each of its windows (its Algorithm 1).

Methods, by the part that they play:

    MultiDiffusion   windows   methods/multidiffusion.py   fused windows, regions with their own context, closed loops
    DemoFusion       stages    methods/demofusion/         skip residual, dilated sampling; from noise or a picture
    RectifiedHR      stages    methods/rectifiedhr.py      one trajectory, resolution changed near its end
    ScaleCrafter     network   methods/scalecrafter/       re-dilation, dispersion, noise-damped guidance
    HiDiffusion      network   methods/hidiffusion/        small deep features, window attention
    SyncDiffusion    editor    methods/syncdiffusion.py    windows of a panorama that agree

Methods of different parts go together in a list; what does not go together is refused with the reason (`composition`).
In `[ScaleCrafter(), DemoFusion()]` the re-dilated network sees the whole frame in place of DemoFusion's lattices.
`[ScaleCrafter(), RectifiedHR()]` draws the layout at the native size and lets the re-dilated network enlarge it, at
less cost than plain sampling. A closed panorama (`closed_loop=True`) has to be decoded around its border
(`in_tiles(…, wrap=True)`).

`on_step(Progress)` is called after every step of the whole run and may return `Changes`, `on_stage(StageEnd)` after
every stage with its clean latents (previews). Raising in either ends the run.
"""

from seecoder.sampling.conditions import Control
from seecoder.sampling.engine import sample
from seecoder.sampling.image_to_image import StartImage
from seecoder.sampling.methods.demofusion.demofusion import DemoFusion
from seecoder.sampling.methods.hidiffusion.hidiffusion import HiDiffusion
from seecoder.sampling.methods.multidiffusion import MultiDiffusion, Region
from seecoder.sampling.methods.rectifiedhr import RectifiedHR
from seecoder.sampling.methods.scalecrafter.scalecrafter import ScaleCrafter
from seecoder.sampling.methods.syncdiffusion import SyncDiffusion
from seecoder.sampling.recipe import Method
from seecoder.sampling.stages import Changes, Progress, StageEnd
from seecoder.sampling.tiles.tile_statistics import normalised_like, shrunken
from seecoder.sampling.tiles.tiling import in_tiles
from seecoder.sampling.views import View

__all__ = [
    "Changes",
    "Control",
    "DemoFusion",
    "HiDiffusion",
    "Method",
    "MultiDiffusion",
    "Progress",
    "RectifiedHR",
    "Region",
    "ScaleCrafter",
    "StageEnd",
    "StartImage",
    "SyncDiffusion",
    "View",
    "in_tiles",
    "normalised_like",
    "sample",
    "shrunken",
]
