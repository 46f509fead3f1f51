"""The web app: what the button does, and what the server lets out and in."""

import contextlib
import socket
import urllib.error
import urllib.request

import pytest

from seecoder import SeeCoderPipeline
from seecoder.app import LAUNCH_OPTIONS, MAX_FILE_SIZE, Variations, build, serve
from seecoder.images import load_image, save_image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


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
def vary(pipe, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    button = Variations(pipe, 64, folder)

    def press(paths, **changes):
        seen = []
        values = {
            "together": False, "count": 2, "seed": 5, "height": 16, "width": 16, "steps": 2, "guidance": 2.0,
            "strength": 1.0, "method": "plain",
        }  # fmt: skip
        values.update(changes)
        gallery, notes = button(paths, **values, progress=lambda share, desc: seen.append((share, desc)))
        return gallery, notes, seen

    return press


def test_every_picture_is_varied_and_progress_is_told(vary, files):
    gallery, notes, seen = vary(files)
    assert [caption for _, caption in gallery] == [f"picture {i}, seed {s}" for i in (1, 2) for s in (5, 6)]
    assert all(load_image(path).shape == (3, 16, 16) for path, _ in gallery)
    assert notes == "Done."
    assert seen[0] == ((1, 8), "picture 1 of 4")
    assert seen[-1] == ((8, 8), "picture 4 of 4")


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


def test_the_app_is_for_this_machine_only(pipe, monkeypatch):
    gradio = pytest.importorskip("gradio")
    seen = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **options: seen.update(options, page=self))
    serve(pipe, port=7999)
    assert seen["server_name"] == "127.0.0.1"
    assert seen["share"] is False
    assert seen["max_file_size"] == MAX_FILE_SIZE == "20mb"
    assert seen["allowed_paths"] == []
    page = seen["page"]
    assert page.delete_cache == (3600, 86_400)
    assert page.default_concurrency_limit == 1 if hasattr(page, "default_concurrency_limit") else True
    assert [fn.concurrency_limit for fn in page.fns.values()] == [1]
    for name in LAUNCH_OPTIONS:
        with pytest.raises(ValueError, match=name):
            serve(pipe, **{name: None})


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_real_server_gives_out_nothing_else(pipe, files, tmp_path):
    """Starts the server, varies a picture through it, and asks for files that are not its own."""
    pytest.importorskip("gradio")
    client_module = pytest.importorskip("gradio_client")
    folder = tmp_path / "served"
    folder.mkdir()
    secret = tmp_path / "secret.txt"
    secret.write_text("not for you")
    page = build(pipe, max_side=64, folder=folder)
    port = free_port()
    page.launch(server_port=port, prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
    try:
        address = f"http://127.0.0.1:{port}"
        client = client_module.Client(address, verbose=False, download_files=str(tmp_path / "downloads"))
        given = [client_module.handle_file(files[0])]
        gallery, seed, notes = client.predict(given, False, 1, 3, False, 16, 16, 2, 2.0, 1.0, "plain", api_name="/vary")
        assert seed == 3
        assert notes == "Done."
        assert load_image(gallery[0]["image"]).shape == (3, 16, 16)
        for path in (secret, "/etc/passwd", "../../../../etc/passwd"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=20)
            assert refused.value.code in (403, 404)
            refused.value.close()
    finally:
        page.close()
