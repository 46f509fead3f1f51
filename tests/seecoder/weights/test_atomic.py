import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seecoder.weights import atomic as _atomic
from seecoder.weights.atomic import atomic_directory, atomic_path, remove_left_behind, write_text

ROOT = Path(__file__).resolve().parents[3]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def interrupt_after_writing(path: Path) -> None:
    path.write_bytes(b"half")
    raise KeyboardInterrupt


def test_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_path(path) as partial:
        partial.write_bytes(b"new")
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.suffix == ".partial"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_text_is_utf_8_and_replaces_a_file_whole(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("old", "Größe 寸法\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert path.read_bytes() == text.encode("utf-8")
    assert names(tmp_path) == ["a.txt"]


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as partial:
        interrupt_after_writing(partial)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]
    with atomic_path(path) as partial:
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@posix
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "a") as partial:
            partial.write_bytes(b"x")
        with atomic_directory(tmp_path / "b") as folder:
            (folder / "c").write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "b" / "c").stat().st_mode) == 0o666 & ~mask


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_returning(tmp_path, monkeypatch):
    events = []
    replace, sync, sync_folder = os.replace, _atomic._sync, _atomic._sync_folder
    monkeypatch.setattr(_atomic, "_sync", lambda path: (events.append("file"), sync(path)))
    monkeypatch.setattr(_atomic, "_sync_folder", lambda path: (events.append("folder"), sync_folder(path)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    with atomic_path(tmp_path / "a") as partial:
        partial.write_bytes(b"x")
    assert events == ["file", "rename", "folder"]
    events.clear()
    with atomic_directory(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"x")
    assert events == ["file", "folder", "rename", "folder"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, function):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"), atomic_path(tmp_path / "a") as partial:
        partial.write_bytes(b"new")
    with pytest.raises(OSError, match="No space"), atomic_directory(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_wrong_targets_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_bytes(b"")
    with pytest.raises(IsADirectoryError, match="is a folder"), atomic_path(tmp_path / "folder"):
        pytest.fail("not reached")
    with pytest.raises(FileNotFoundError, match="does not exist"), atomic_path(tmp_path / "absent" / "a"):
        pytest.fail("not reached")
    with pytest.raises(FileExistsError, match="is a file"), atomic_directory(tmp_path / "file"):
        pytest.fail("not reached")
    with pytest.raises(FileExistsError, match="not empty"), atomic_directory(tmp_path / "folder"):
        pytest.fail("not reached")
    with pytest.raises(FileNotFoundError, match="does not exist"), atomic_directory(tmp_path / "absent" / "a"):
        pytest.fail("not reached")
    assert names(tmp_path) == ["file", "folder"]


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_longest_legal_name(tmp_path):
    for name in ("a" * 255, "日" * 85):
        with atomic_path(tmp_path / name) as partial:
            partial.write_bytes(b"x")
    assert len(names(tmp_path)) == 2


def test_folder_replaces_an_empty_one_and_another_only_when_told(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    for content in ("one", "two"):
        with atomic_directory(path, overwrite=content == "two") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / content).write_text(content)
            assert content not in names(path)
    assert names(path / "deep") == ["two"]
    assert names(tmp_path) == ["model"]


def test_failing_folder_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with atomic_directory(path) as folder:
        (folder / "old").write_text("x")
    with pytest.raises(KeyboardInterrupt), atomic_directory(path, overwrite=True) as folder:
        interrupt_after_writing(folder / "new")
    replace = os.replace

    def fail_on_the_second(source, target):
        if str(source).endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_on_the_second)
    with pytest.raises(OSError, match="No space"), atomic_directory(path, overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from seecoder.weights.atomic import atomic_directory, atomic_path
target = Path({target!r})
with (atomic_directory(target, overwrite=True) if {folder} else atomic_path(target)) as partial:
    with open(partial / "weights" if {folder} else partial, "wb") as file:
        file.write(bytes(1_000_000))
        file.flush()
        print("half", flush=True)
        time.sleep(60)
"""


@pytest.mark.heavy
@posix
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_killed_writer_leaves_nothing_that_looks_complete(tmp_path, folder, existing):
    target = tmp_path / "weights.safetensors"
    if existing:
        with atomic_directory(target) if folder else atomic_path(target) as partial:
            (partial / "old" if folder else partial).write_bytes(b"old")
    program = KILLED.format(root=str(ROOT), target=str(target), folder=folder)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    left = [name for name in names(tmp_path) if name != target.name]
    assert len(left) == 1
    assert left[0].endswith(".partial")
    assert target.exists() == existing
    if existing:
        assert (target / "old" if folder else target).read_bytes() == b"old"


def test_what_a_killed_writer_left_is_removed_and_an_old_folder_takes_its_place_again(tmp_path):
    for name in (
        "kept.txt",
        ".hidden",
        ".kept.txt.partial",
        ".kept.txt.0123456z.partial",
        ".kept.txt.01234567.partial",
    ):
        (tmp_path / name).write_text(name)
    for name in (".new.89abcdef.partial", ".old.89abcdef.previous", "done", ".done.89abcdef.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text(name)
    long = f".{'n' * 50}.89abcdef.previous"
    (tmp_path / long).mkdir()
    remove_left_behind(tmp_path)
    expected = ["kept.txt", ".hidden", ".kept.txt.partial", ".kept.txt.0123456z.partial", "old", "done", long]
    assert names(tmp_path) == sorted(expected)
    assert (tmp_path / "old" / "inside").read_text() == ".old.89abcdef.previous"
    assert (tmp_path / "done" / "inside").read_text() == "done"


def test_storage_that_cannot_sync_folders_is_no_error_and_one_that_fails_is(tmp_path, monkeypatch):
    sync = os.fsync
    answers = [errno.EINVAL, errno.ENOTSUP, errno.EIO]

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(answers.pop(0), "no sync here")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    for _ in range(2):
        with atomic_path(tmp_path / "a") as partial:
            partial.write_text("a")
    with pytest.raises(OSError, match="no sync here"), atomic_path(tmp_path / "a") as partial:
        partial.write_text("b")


@pytest.mark.parametrize("is_done", [True, False])
def test_a_rename_whose_answer_was_lost_is_done(tmp_path, monkeypatch, is_done):
    """An NFS client asks again where no answer came, and is told that the old name does not exist."""
    replace = os.replace

    def lose_the_answer(source, target):
        if is_done:
            replace(source, target)
        else:
            os.unlink(source)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))

    (tmp_path / "old").write_text("old")
    (tmp_path / ".lost.89abcdef.previous").mkdir()
    monkeypatch.setattr(os, "replace", lose_the_answer)
    if not is_done:
        with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "old") as partial:
            partial.write_text("new")
        assert (tmp_path / "old").read_text() == "old"
        return
    with atomic_path(tmp_path / "old") as partial:
        partial.write_text("new")
    assert (tmp_path / "old").read_text() == "new"
    for content in ("one", "two"):
        with atomic_directory(tmp_path / "folder", overwrite=True) as folder:
            (folder / content).write_text(content)
        assert names(tmp_path / "folder") == [content]
    remove_left_behind(tmp_path)
    assert names(tmp_path) == ["folder", "lost", "old"]
