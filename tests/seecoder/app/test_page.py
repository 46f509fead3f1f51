"""The web app: what the button does, and what the server lets out and in."""

import asyncio

import pytest
import torch
from transformers import CLIPImageProcessor

from seecoder import SeeCoderPipeline
from seecoder.app import page
from seecoder.app.page import LAUNCH_OPTIONS, MAX_FILE_SIZE, Variations, build, serve
from seecoder.images.gate import load_image
from seecoder.images.saving import save_image
from tests.fixtures.pipelines import (
    build_controlnet,
    build_image_encoder,
    build_ip_adapter,
    build_t2i_adapter,
    build_unet,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def closed_event_loops(monkeypatch):
    """Gradio makes event loops that it never closes, and unclosed ones are errors when the suite ends."""
    made, original = [], asyncio.SelectorEventLoop.__init__

    def remember(self, *given):
        made.append(self)
        original(self, *given)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "__init__", remember)
    yield
    asyncio.set_event_loop(None)
    for loop in made:
        if not loop.is_running():
            loop.close()


@pytest.fixture
def pipe(parts):
    pipeline = SeeCoderPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def files(picture, tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for path, pixels in zip(paths, (picture, 1 - picture), strict=True):
        save_image(pixels, path)
    return paths


@pytest.fixture
def vary(pipe):
    button = Variations(pipe, 64)

    def press(paths, **changes):
        seen = []
        values = {
            "together": False, "count": 2, "seed": 5, "height": 16, "width": 16, "num_inference_steps": 2,
            "guidance_scale": 2.0, "context_scale": 1.0, "method": "plain", "stages": False,
        }  # fmt: skip
        values.update(changes)
        gallery, notes = button(paths, **values, progress=lambda share, desc: seen.append((share, desc)))
        return gallery, notes, seen

    return press


def test_every_picture_is_varied_and_progress_is_told(vary, files):
    gallery, notes, seen = vary(files)
    assert [caption for _, caption in gallery] == [f"picture {i}, seed {s}" for i in (1, 2) for s in (5, 6)]
    assert all(load_image(image).shape == (3, 16, 16) for image, _ in gallery)
    assert notes == "Done."
    assert seen == [((4, 8), "pictures 1 to 4 of 4"), ((8, 8), "pictures 1 to 4 of 4")]


def test_what_memory_does_not_hold_together_is_made_in_turn(vary, files, monkeypatch):
    together, _, _ = vary(files, height=32, width=32, guidance_scale=3.0)
    monkeypatch.setattr(page, "default_batch_size", lambda unet, size, device: 3)
    in_turn, _, seen = vary(files, height=32, width=32, guidance_scale=3.0)
    assert [text for _, text in seen] == ["pictures 1 to 3 of 4"] * 2 + ["picture 4 of 4"] * 2
    assert [share for share, _ in seen] == [(3, 8), (6, 8), (7, 8), (8, 8)]
    assert [caption for _, caption in in_turn] == [caption for _, caption in together]
    for (one, _), (other, _) in zip(in_turn, together, strict=True):
        assert (load_image(one) - load_image(other)).abs().max() <= 1 / 255 + 1e-6


def test_stages_are_shown_before_their_picture_and_progress_counts_their_steps(vary, files):
    gallery, _, seen = vary(files[:1], count=2, method="demofusion", height=32, width=32, stages=True)
    assert [caption.partition(", after ")[0] for _, caption in gallery] == [
        f"picture 1, seed {s}" for s in (5, 5, 6, 6)
    ]
    assert [", after " in caption for _, caption in gallery] == [True, False, True, False]
    assert [load_image(image).shape[-1] for image, _ in gallery] == [16, 32, 16, 32]
    (_, total), _ = seen[-1]
    assert [share for share, _ in seen] == [(step, total) for step in range(2, total + 1, 2)]
    assert total > 2 * 2  # two pictures of two stages, two steps each at most


def test_a_preset_is_said_with_its_cost(vary, files):
    gallery, notes, _ = vary(files[:1], count=1, method="auto", height=32, width=32, num_inference_steps=8)
    assert load_image(gallery[0][0]).shape == (3, 32, 32)
    assert notes.startswith("auto: scalecrafter,rectifiedhr switch_at=(0.85,), about 22 native-sized windows")
    assert vary(files[:1], count=1, method="auto")[1] == "Done."


def test_pictures_together_make_one_context(vary, files):
    gallery, _, _ = vary(files, together=True, count=1, method="multidiffusion", height=32, width=32)
    assert len(gallery) == 1
    assert load_image(gallery[0][0]).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("paths", "changes"),
    [([], {}), (None, {}), (["x"] * 9, {}), (["x"], {"count": 9}), (["x"], {"seed": -1}), (["x"], {"height": 128})],
)
def test_limits(vary, paths, changes):
    with pytest.raises(ValueError, match=r"Upload|Ask for|Height"):
        vary(paths, **changes)


@pytest.mark.heavy
def test_the_app_is_for_this_machine_only(pipe, monkeypatch):
    gradio = pytest.importorskip("gradio")
    seen = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **options: seen.update(options, page=self))
    serve(Variations(pipe), port=7999)
    assert seen["server_name"] == "127.0.0.1"
    assert seen["share"] is False
    assert seen["max_file_size"] == MAX_FILE_SIZE == "20mb"
    assert seen["allowed_paths"] == []
    blocks = seen["page"]
    assert blocks.delete_cache == (3600, 86_400)
    assert blocks.default_concurrency_limit == 1 if hasattr(blocks, "default_concurrency_limit") else True
    assert [fn.concurrency_limit for fn in blocks.fns.values()] == [1]
    for name in LAUNCH_OPTIONS:
        with pytest.raises(ValueError, match=name):
            serve(Variations(pipe), **{name: None})


def test_files_that_are_not_its_own_are_not_given_out(pipe, tmp_path):
    pytest.importorskip("gradio")
    from gradio.routes import App
    from starlette.testclient import TestClient

    secret = tmp_path / "secret.txt"
    secret.write_text("not for you")
    blocks = build(Variations(pipe, 64))
    with TestClient(App.create_app(blocks)) as client:
        assert client.get("/config").status_code == 200
        for path in (secret, "/etc/passwd", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"):
            assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def pixels(gallery):
    return torch.stack([load_image(image) for image, _ in gallery])


def test_weights_masks_and_negative_pictures_are_those_of_a_call(pipe, vary, files):
    mask = files[0].replace("0.png", "mask.png")
    save_image((torch.arange(64) < 32).float().expand(3, 64, 64), mask)
    room = files[0].replace("0.png", "room.png")
    save_image(torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(1)), room)
    settings = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 2.0}

    def made(image, **options):
        generator = torch.Generator().manual_seed(5)
        return pipe(image, generator=generator, output_type="pt", **settings, **options).images

    def close(gallery, expected):
        assert (pixels(gallery) - expected).abs().max() <= 0.5 / 255 + 1e-5

    weighted, _, _ = vary(files, together=True, weights="3 1", count=1)
    close(weighted, made([files], context_weights=[3, 1]))
    masked, _, _ = vary(files[:1], reference_mask=mask, count=1)
    close(masked, made(files[0], image_mask=mask))
    negative, _, _ = vary(files[:1], negative=files[1:], count=1)
    close(negative, made(files[0], negative_context=pipe.encode_context(files[1])))
    redrawn, _, _ = vary(files[:1], start_image=room, mask_image=mask, mask_feather=1, count=1)
    close(redrawn, made(files[0], start_image=room, mask_image=mask, mask_feather=1))
    with pytest.raises(ValueError, match="Weights have no effect"):
        vary(files, weights="3 1")
    with pytest.raises(ValueError, match="`strength` has no effect without `start_image`"):
        vary(files, strength=0.5)


def test_a_text_is_shown_beside_the_pictures_where_the_base_brings_its_encoder(parts, text_parts, files):
    pipe = SeeCoderPipeline(**parts, **text_parts)
    pipe.set_progress_bar_config(disable=True)
    pytest.importorskip("gradio")
    labels = [getattr(block, "label", "") for block in build(Variations(pipe, 64)).blocks.values()]
    assert "Text: what to show besides" in labels
    values = {"together": False, "count": 1, "seed": 5, "height": 16, "width": 16, "num_inference_steps": 2}
    values |= {"guidance_scale": 2.0, "method": "plain", "stages": False, "progress": lambda share, desc: None}
    gallery, _ = Variations(pipe, 64)(files[:1], text="abc", negative_text="", text_weight=None, **values)
    expected = pipe(
        files[0],
        text="abc",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    assert (pixels(gallery) - expected).abs().max() <= 0.5 / 255 + 1e-5


def test_the_page_calls_the_button_and_shows_errors(pipe, files):
    gradio = pytest.importorskip("gradio")
    blocks = build(Variations(pipe, 64))
    (function,) = blocks.fns.values()
    assert not any("Text:" in str(getattr(block, "label", "")) for block in blocks.blocks.values())

    def press(**changes):
        values = {component: component.value for component in function.inputs}
        by_label = {component.label: component for component in values}
        values[by_label["Pictures (1 to 8)"]] = [files[0]]
        given = {"Height": 16, "Width": 16, "Steps": 1, "Variations": 1, "Seed": 7, "Randomise the seed": False}
        given |= {"Method above the native size": "plain"}
        for label, value in (given | changes).items():
            values[by_label[label]] = value
        return function.fn(values, lambda *given, **named: None)

    gallery, seed, notes = press()
    assert seed == 7
    assert len(gallery) == 1
    assert notes == "Done."
    assert press(**{"Randomise the seed": True})[1] != press(**{"Randomise the seed": True})[1]
    with pytest.raises(gradio.Error, match="Ask for 1 to 8 results"):
        press(Variations=9)


def test_a_browser_is_answered(pipe, files):
    """The page as a client sees it: files are uploaded, the button is pressed, pictures come back."""
    client_of = pytest.importorskip("gradio_client")
    blocks = build(Variations(pipe, 64))
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
    try:
        client = client_of.Client(address, verbose=False)
        (function,) = blocks.fns.values()
        inputs = sorted(function.inputs, key=lambda block: block._id)
        given = [component.value for component in inputs]
        places = {component.label: place for place, component in enumerate(inputs)}
        given[places["Pictures (1 to 8)"]] = [client_of.handle_file(files[0])]
        for label, value in {"Height": 16, "Width": 16, "Steps": 1, "Randomise the seed": False}.items():
            given[places[label]] = value
        gallery, seed, notes = client.predict(*given, api_name="/vary")
    finally:
        blocks.close()
    assert len(gallery) == 2
    assert seed == 0
    assert notes == "Done."


def test_networks_that_see_pictures_of_their_own_get_them_from_a_browser(parts, files):
    client_of = pytest.importorskip("gradio_client")
    nets = {"controlnet": build_controlnet(parts["unet"]), "adapter": [build_t2i_adapter(4), build_t2i_adapter(5)]}
    pipe = SeeCoderPipeline(**parts, **nets)
    pipe.set_progress_bar_config(disable=True)
    blocks = build(Variations(pipe, 64))
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
    try:
        client = client_of.Client(address, verbose=False)
        (function,) = blocks.fns.values()
        inputs = sorted(function.inputs, key=lambda block: block._id)
        places = {component.label: place for place, component in enumerate(inputs)}

        def press(**changes):
            given = [component.value for component in inputs]
            seen = {"What the ControlNet sees (of several: in their order)": files[1:]}
            seen |= {"What the T2I-Adapter sees (of several: in their order)": files, "Pictures (1 to 8)": files[:1]}
            for label, paths in seen.items():
                given[places[label]] = [client_of.handle_file(path) for path in paths]
            values = {"Height": 16, "Width": 16, "Steps": 2, "Variations": 1, "Randomise the seed": False}
            for label, value in (values | changes).items():
                given[places[label]] = value
            gallery, _, _ = client.predict(*given, api_name="/vary")
            return pixels([(entry["image"], "") for entry in gallery])

        strengths = {"ControlNet: Strength (empty: 1)": "0.5", "T2I-Adapter: Strength (empty: 1)": "1 0.25"}
        guided = press(**strengths)
        assert torch.equal(press(**strengths, **{"Pixels of the fade": None, "Seed": None}), guided)  # emptied: 0
        with pytest.raises(client_of.exceptions.AppError, match="must be one number, or 2: one for every network"):
            press(**{"T2I-Adapter: Strength (empty: 1)": "1 2 3"})
    finally:
        blocks.close()
    expected = pipe(
        files[0],
        control_image=files[1],
        controlnet_conditioning_scale=0.5,
        adapter_image=files,
        adapter_conditioning_scale=[1.0, 0.25],
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert (guided - expected).abs().max() <= 0.5 / 255 + 1e-5


def test_an_ip_adapter_gets_its_picture_and_a_network_without_one_is_named(parts, files):
    pipe = SeeCoderPipeline(**parts | {"unet": build_unet()}, controlnet=build_controlnet(parts["unet"]))
    labels = [getattr(block, "label", "") for block in build(Variations(pipe, 64)).blocks.values()]
    assert "What the IP-Adapter sees" not in labels
    values = {"together": False, "count": 1, "seed": 5, "height": 16, "width": 16, "num_inference_steps": 1}
    values |= {"guidance_scale": 2.0, "method": "plain", "stages": False, "progress": lambda share, desc: None}
    with pytest.raises(ValueError, match="there is a `controlnet` but no `control_image`; one works only with"):
        Variations(pipe, 64)(files[:1], **values)
    pipe = SeeCoderPipeline(
        **parts | {"unet": build_unet()},
        image_encoder=build_image_encoder(),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    )
    pipe.load_ip_adapter(build_ip_adapter(pipe.unet), image_encoder_folder=None)
    pipe.set_progress_bar_config(disable=True)
    labels = [getattr(block, "label", "") for block in build(Variations(pipe, 64)).blocks.values()]
    assert "What the IP-Adapter sees" in labels
    gallery, _ = Variations(pipe, 64)(files[:1], ip_adapter_image=files[1], **values)
    expected = pipe(
        files[0],
        ip_adapter_image=files[1],
        num_inference_steps=1,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    assert (pixels(gallery) - expected).abs().max() <= 0.5 / 255 + 1e-5
    with pytest.raises(ValueError, match="an IP-Adapter is loaded, but there is neither `ip_adapter_image`"):
        Variations(pipe, 64)(files[:1], **values)
