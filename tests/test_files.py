"""What a file's name may stand for when it is written: a link, a folder, a pipe, another's file beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rnnzoo import UserError, cli
from rnnzoo.files import refuse_as_file, writing


def write(path: Path, text: str) -> None:
    with writing(path) as partial:
        partial.write_text(text)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(path: Path | str, said: str) -> None:
    """Both before the work and when it is written."""
    with pytest.raises(UserError, match=rf"^--out .*: is {said}; name another file$"):
        refuse_as_file("--out", Path(path))
    with pytest.raises(UserError, match=f"is {said}"):
        write(Path(path), "text")


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    there, folder = tmp_path / "there.txt", tmp_path / "folder"
    folder.mkdir()
    there.write_text("old")
    link, first, dangling = tmp_path / "link.txt", folder / "first.txt", folder / "dangling.txt"
    link.symlink_to(there)
    first.symlink_to("../link.txt")
    dangling.symlink_to("new.txt")
    for name, target in ((link, there), (first, there), (dangling, folder / "new.txt")):
        refuse_as_file("--out", name)
        write(name, name.name)
        assert name.is_symlink() and not target.is_symlink() and target.read_text() == name.name
    assert names_in(folder) == ["dangling.txt", "first.txt", "new.txt"]


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_left_alone(linked: bool, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    refused(link if linked else pipe, "no regular file")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and link.is_symlink() and names_in(tmp_path) == ["link", "pipe"]


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    refused(link, "no regular file")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "folder", "folder/"])
def test_a_folder_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(name, "a folder")


def test_a_link_in_the_way_leads_nothing_elsewhere(tmp_path: Path) -> None:
    """In the place beside the file where it is written until it is whole."""
    (tmp_path / "precious").write_text("old")
    (tmp_path / "file.partial").symlink_to("precious")
    write(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "old" and (tmp_path / "file").read_text() == "new"
    assert names_in(tmp_path) == ["file", "precious"]


def test_a_link_into_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere/file")
    with pytest.raises(UserError, match=rf"--out .*: there is no folder {tmp_path / 'nowhere'}"):
        refuse_as_file("--out", tmp_path / "link")


@pytest.mark.parametrize(
    "command",
    ["show gru --png PIPE", "check gru --out PIPE", "export nowhere --pt2 --out PIPE", "play gru --save PIPE"],
)
def test_commands_refuse_it_at_once(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert cli.main(command.replace("PIPE", str(pipe)).split()) == 1
    said = capsys.readouterr()
    option = command.split()[-2]
    assert f"{option} {pipe}: is no regular file; name another file" in said.err.replace("\n", " ") and not said.out
    assert names_in(tmp_path) == ["pipe"]
