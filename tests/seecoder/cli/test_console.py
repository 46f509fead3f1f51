"""Files that are kept."""

import pytest

from seecoder.cli.console import check_new, check_replaceable, check_space


def test_existing_files_are_kept(tmp_path):
    (tmp_path / "a").write_text("x")
    check_new([tmp_path / "b"], overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_new([tmp_path / "a"], overwrite=False)
    check_new([tmp_path / "a"], overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_new([tmp_path / "a" / "b"], overwrite=True)


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_new([tmp_path / "folder"], overwrite=True)
    with pytest.raises(FileExistsError, match="written 2 times"):
        check_new([tmp_path / "a", tmp_path / "a"], overwrite=True)
    with pytest.raises(OSError, match="too long for the name"):
        check_new([tmp_path / ("x" * 256)], overwrite=True)
    with pytest.raises(FileExistsError, match="is an input"):
        check_new([tmp_path / "folder" / ".." / "a"], overwrite=True, inputs=[tmp_path / "a"])

    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("seecoder.cli.console.TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"out` cannot be written to \(Read-only file system\)"):
        check_new([tmp_path / "out" / "a"], overwrite=True)


def test_a_full_disk_is_told(tmp_path):
    check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(OSError, match="GiB free, and the results may take"):
        check_space(tmp_path / "not" / "there", 2**80)


def test_a_result_that_is_there_is_kept(tmp_path):
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", overwrite=False)
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(FileExistsError, match="exists; use --overwrite"):
            check_replaceable(path, overwrite=False)
        check_replaceable(path, overwrite=True)
