"""What archives hold beside plain files, and what is refused of them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.storage.local import LocalStorage
from tests.unit.sources.archives_made import tar_bytes, tar_of

FILES = {
    f"{split}/{label}/{i}.JPEG": f"{split}{label}{i}".encode()
    for split in ("train", "val")
    for label in "ab"
    for i in "01"
}


def contents(path):
    """Return what an archive's images hold, by key."""
    catalogue = read_catalogue(LocalStorage(path.parent), path.name)
    return {e.key: data for e, data in zip(catalogue.entries, catalogue.read(catalogue.entries), strict=True)}


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE, target
    return info


@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz")])
def test_a_hard_link_is_the_file_that_it_links_to(tmp_path, name, mode):
    links = [link("val/a/link.JPEG", "train/a/1.JPEG"), link("val/a/again.JPEG", "val/a/link.JPEG")]
    found = contents(tar_of(tmp_path / name, FILES, mode, extra=links))
    assert found == FILES | {"val/a/link.JPEG": b"traina1", "val/a/again.JPEG": b"traina1"}


def test_a_hard_link_to_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"x.JPEG is a link to /etc/passwd, which does not stand before it"):
        contents(tar_of(tmp_path / "x.tar", FILES, extra=[link("val/a/x.JPEG", "/etc/passwd")]))


@pytest.mark.parametrize("form", [("gnu",), ("posix", "1.0"), ("posix", "0.1"), ("posix", "0.0")], ids="-".join)
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_sparse_member_is_read_with_its_holes(tmp_path, make_folder, form, name):
    folder = make_folder(FILES)
    with (folder / "train/a/2.JPEG").open("wb") as file:
        for place in (0, 200_000):
            file.seek(place)
            file.write(b"x" * 5_000)
        file.truncate(300_000)
    if not shutil.which("tar") or (folder / "train/a/2.JPEG").stat().st_blocks > 100:
        pytest.skip("no tar, or a file system without sparse files")
    version = [f"--sparse-version={form[1]}"] if len(form) > 1 else []
    subprocess.run(
        ["tar", "-S", f"--format={form[0]}", *version, "-caf", tmp_path / name, "-C", folder, "train", "val"],
        check=True,
    )
    assert (tmp_path / name).stat().st_size < 100_000
    assert contents(tmp_path / name) == FILES | {"train/a/2.JPEG": (folder / "train/a/2.JPEG").read_bytes()}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_second_archive_after_the_first_is_refused(tmp_path, suffix):
    parts = []
    for number, files in enumerate((FILES, {"train/a/9.JPEG": b"lost"})):
        part = tar_of(tmp_path / f"{number}.{suffix}", files, "w:gz" if suffix == "tar.gz" else "w")
        parts.append(part.read_bytes())
    (tmp_path / f"x.{suffix}").write_bytes(b"".join(parts))
    with pytest.raises(RefusedError, match="it goes on after its end"):
        contents(tmp_path / f"x.{suffix}")


def test_an_archive_may_end_with_any_number_of_empty_blocks(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes(FILES) + bytes(3 * 2**20))
    assert contents(tmp_path / "x.tar") == FILES


def zip_of(files, system=0, separator="\\"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name.replace("/", separator), system
            archive.writestr(info, data)
    return buffer.getvalue()


@pytest.mark.parametrize("system", [0, 3])
def test_backslashes_of_windows_zips_stand_between_folders(tmp_path, system):
    (tmp_path / "x.zip").write_bytes(zip_of(FILES | {"train/": b""}, system))
    assert contents(tmp_path / "x.zip") == FILES


def test_a_backslash_in_a_name_that_unix_wrote_is_a_letter(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of(FILES | {"train/a/x\\y.JPEG": b"z"}, 3, "/"))
    assert contents(tmp_path / "x.zip") == FILES | {"train/a/x\\y.JPEG": b"z"}


def test_a_second_zip_after_the_first_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of({"train/a/lost.JPEG": b"x"}) + zip_of(FILES))
    with pytest.raises(RefusedError, match="another zip file stands before"):
        contents(tmp_path / "x.zip")
