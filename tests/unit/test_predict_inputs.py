"""Guards that every image a user names is found once, read right, and has a name of its own."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ultrarefiner.datasets.phantoms.manifest import write_dicom
from ultrarefiner.deploy.inputs import find_images, read_pixels
from ultrarefiner.errors import DatasetError

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def names(*given, **options):
    """Return the name of each image by its path."""
    return {item.file: item.name for item in find_images(given, **options).items}


def test_a_folder_is_searched_through_and_what_is_no_image_is_told(tmp_path):
    touch(tmp_path, "b.PNG", "a.jpeg", "s/t/c.tiff", "s/d.bmp", "notes.txt", "s/table.csv")
    touch(tmp_path, ".hidden.png", ".git/x.png", "Thumbs.db", "__MACOSX/y.png")
    write_dicom(tmp_path / "s" / "1.2.840", GRAY, None)
    found = find_images([tmp_path])
    assert {
        Path(item.file).relative_to(tmp_path).as_posix(): item.name for item in found.items
    } == {
        "a.jpeg": "a",
        "b.PNG": "b",
        "s/1.2.840": "s_1.2.840",
        "s/d.bmp": "s_d",
        "s/t/c.tiff": "s_t_c",
    }
    assert [path.name for path in found.others] == ["notes.txt", "table.csv"]
    assert [item.file for item in found.items] == sorted(item.file for item in found.items)


def test_names_are_longer_only_where_images_would_be_called_alike(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    touch(one, "a.png", "a.jpg", "b.png", "sub/a.png", "sub_a.png", "C.png", "c.bmp", "d.png")
    touch(two, "d.png")
    found = {Path(key).relative_to(tmp_path).as_posix(): v for key, v in names(one, two).items()}
    assert found["one/a.png"] == "a_png" and found["one/a.jpg"] == "a_jpg"
    assert found["one/b.png"] == "b"
    assert found["one/C.png"] == "C_png" and found["one/c.bmp"] == "c_bmp"
    assert found["one/d.png"] == "one_d_png" and found["two/d.png"] == "two_d_png"
    # Of these path, suffix and folder are the same once separators are gone.
    alike = found["one/sub/a.png"], found["one/sub_a.png"]
    assert alike[0] != alike[1] and all(name.startswith("one_sub_a_png_") for name in alike)


@given(data=st.data())
def test_names_differ_and_depend_on_no_order(data):
    part = st.text("aAbß._\\ é", min_size=1, max_size=3).filter(lambda text: text.strip(". "))
    suffix = st.sampled_from([".png", ".PNG", ".jpg", ".tif"])
    path = st.tuples(st.lists(part, max_size=2), part, suffix)
    paths = data.draw(st.lists(path, min_size=1, max_size=12))
    folder = Path(tempfile.mkdtemp())
    try:
        for parents, stem, end in paths:
            inside = folder.joinpath(*parents)
            if not any(one.is_file() for one in (inside, *inside.parents)):
                inside.mkdir(parents=True, exist_ok=True)
                target = inside / f"x{stem}{end}"
                if not target.is_dir():
                    target.write_bytes(b"x")
        files = [one for one in folder.rglob("x*") if one.is_file()]
        shown = [
            one
            for one in files
            if not any(p.startswith(".") for p in one.relative_to(folder).parts)
        ]
        if not shown:
            return
        found = names(folder)
        assert set(found) == set(map(str, shown))
        assert len({name.casefold() for name in found.values()}) == len(found)
        for name in found.values():
            assert not name.startswith(".") and "/" not in name and "\\" not in name
            assert len(f"{name}.png".encode()) <= 255
        given = [folder, *shown, *shown[:2]]
        random.Random(1).shuffle(given)
        assert names(*given) == found
        plain = names(*shown)
        assert names(*reversed(shown)) == plain
        assert len({name.casefold() for name in plain.values()}) == len(plain)
    finally:
        shutil.rmtree(folder)


def test_a_file_that_is_given_twice_is_one_image(tmp_path, monkeypatch):
    touch(tmp_path, "s/a.png", "s/b.png", "c.png")
    assert sorted(names(tmp_path, tmp_path / "s", tmp_path / "s" / "a.png").values()) == [
        "c",
        "s_a",
        "s_b",
    ]
    monkeypatch.chdir(tmp_path)
    assert list(names("s/a.png", tmp_path / "s" / ".." / "s" / "a.png").values()) == ["a"]


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path):
    touch(tmp_path, "scan.dat", "more.txt")
    found = find_images([tmp_path / "scan.dat"])
    assert [item.name for item in found.items] == ["scan.dat"]
    with pytest.raises(DatasetError, match="cannot be decoded"):
        read_pixels(found.items[0])


def test_results_below_the_images_are_no_images(tmp_path):
    touch(tmp_path, "a.png", "out/masks/a.png")
    assert list(names(tmp_path, without=tmp_path / "out").values()) == ["a"]
    assert len(names(tmp_path)) == 2


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    touch(tmp_path, "s/a.png")
    (tmp_path / "s" / "up").symlink_to(tmp_path)
    assert list(names(tmp_path).values()) == ["s_a"]


def test_what_is_not_there_is_named_and_so_is_what_holds_no_image(tmp_path):
    touch(tmp_path, "a.png", "empty/notes.txt")
    with pytest.raises(DatasetError, match=r"x\.png, .*y: no such file"):
        find_images([tmp_path / "a.png", tmp_path / "x.png", tmp_path / "y"])
    with pytest.raises(DatasetError, match=r"no image .*empty.*notes\.txt"):
        find_images([tmp_path / "empty"])


def test_long_names_are_cut_and_stay_apart(tmp_path):
    # 200 letters are 400 bytes: more than a file system takes, less than a path.
    deep = tmp_path / ("é" * 100) / ("é" * 100)
    touch(deep, "a.png", "b.png")
    found = set(names(tmp_path).values())
    assert len(found) == 2
    assert all(len(f".partial-{'x' * 40}{name}.png".encode()) <= 255 for name in found)


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_names_that_are_no_text_are_found_and_can_be_written(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"a\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such names")
    (item,) = find_images([tmp_path]).items
    for text in (item.name, item.file, item.place):
        text.encode()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_images_of_8_bits_are_read_as_they_are(tmp_path, mode):
    colour = np.stack([GRAY, GRAY // 2, 255 - GRAY], axis=2)
    image = Image.fromarray(colour) if mode in ("RGB", "RGBA", "P") else Image.fromarray(GRAY)
    image.convert(mode).save(tmp_path / "a.png")
    pixels = read_pixels(find_images([tmp_path]).items[0])
    wanted = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert np.array_equal(pixels.image, wanted)
    assert (pixels.spacing, pixels.note) == (None, "")


def test_images_of_16_bits_are_reduced_and_say_so(tmp_path):
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / "a.tif")
    pixels = read_pixels(find_images([tmp_path]).items[0])
    assert np.array_equal(pixels.image, np.repeat(GRAY[..., None], 3, axis=2))
    assert pixels.note == "16-bit image reduced to 8 bits"


def test_every_frame_of_a_dicom_file_is_an_image(tmp_path):
    frames = np.stack([np.roll(GRAY, shift) for shift in range(11)])
    write_dicom(tmp_path / "clip.dcm", frames, 0.1)
    write_dicom(tmp_path / "one.dcm", GRAY, 0.08)
    items = find_images([tmp_path]).items
    assert [item.name for item in items] == [*(f"clip_frame{n:02d}" for n in range(11)), "one"]
    assert [item.frame for item in items] == [*range(11), None]
    for item, frame in zip(items, [*frames, GRAY], strict=True):
        pixels = read_pixels(item)
        assert np.array_equal(pixels.image[..., 1], frame)
        assert pixels.spacing == pytest.approx((0.1, 0.1) if "clip" in item.name else (0.08, 0.08))


def test_dicom_files_of_other_makers_are_read(tmp_path):
    for name in ("examples_palette.dcm", "examples_ybr_color.dcm"):
        shutil.copy(SAMPLES / name, tmp_path / Path(name).stem)
    items = find_images([tmp_path]).items
    assert [item.name for item in items][-1] == "examples_ybr_color_frame29" and len(items) == 31
    for item in items:
        image = read_pixels(item).image
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_a_damaged_dicom_file_is_an_item_with_its_reason(tmp_path):
    write_dicom(tmp_path / "a.dcm", GRAY, None)
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:200])
    touch(tmp_path, "b.dcm")
    for item in find_images([tmp_path]).items:
        with pytest.raises(DatasetError, match=rf"{item.name}\.dcm: .*(cannot be read|no image)"):
            read_pixels(item)
