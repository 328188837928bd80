"""Guards that the phantoms of each public archive carry the oddities that readers have to stand."""

import re
from itertools import product

import numpy as np
import pytest
from PIL import Image

from ultrarefiner.datasets.duplicates import cluster_duplicates, perceptual_hash, pixel_sha256
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantom import MARKER, write_phantom
from ultrarefiner.datasets.reading import read_rgb
from ultrarefiner.datasets.volumes import read_volume

CASES = 12


def write(root, layout, odd_cases=True, **other):
    arguments = {"cases": CASES, "size": 72, "seed": 5, **other}
    write_phantom(layout, root / layout, odd_cases=odd_cases, **arguments)
    return root / layout


def colours(path):
    """Return the colours of a mask file that fill more than a few pixels of soft edge."""
    values, counts = np.unique(read_rgb(path).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(value) for value in values[counts > 12].tolist()}


@pytest.mark.parametrize("odd_cases", [False, True])
def test_bus_and_udiat_share_two_images_where_odd_files_are_wanted(tmp_path, odd_cases):
    hashes = {}
    for layout in ("bus", "udiat"):
        home = write(tmp_path, layout, odd_cases) / layout.upper()
        names = [path.name for path in sorted((home / "original").iterdir())]
        assert names == [path.name for path in sorted((home / "GT").iterdir())]
        assert all(re.fullmatch(r"\d{6}\.(png|PNG)", name) for name in names)
        hashes[layout] = [pixel_sha256(read_rgb(home / "original" / name)) for name in names]
        assert len(set(hashes[layout])) == CASES
    equal = [one == other for one, other in product(hashes["bus"], hashes["udiat"])]
    assert sum(equal) == (2 if odd_cases else 0)
    if odd_cases:
        assert hashes["bus"][:2] == hashes["udiat"][:2]


def test_masks_of_bus_have_the_noise_of_compression(tmp_path):
    masks = sorted((write(tmp_path, "bus") / "BUS" / "GT").iterdir())
    modes, levels = set(), set()
    for path in masks:
        with Image.open(path) as file:
            modes.add(file.mode)
        levels |= set(np.unique(read_rgb(path)).tolist())
    assert modes == {"L", "RGB"} and len(levels) > 50


def test_bus_uc_repeats_all_its_files_and_has_a_half_and_a_blank_mask(tmp_path):
    home = write(tmp_path, "bus_uc") / "BUS_UC"
    names = sorted(path.name for path in (home / "All" / "images").iterdir())
    assert len(names) == CASES + 1
    halves, blanks = [], []
    for name in names:
        copies = [p for part in ("Benign", "Malignant") for p in home.glob(f"{part}/*/{name}")]
        assert len(copies) == 2 and len({path.parts[-3] for path in copies}) == 1
        for path in copies:
            assert path.read_bytes() == (home / "All" / path.parts[-2] / name).read_bytes()
        image, mask = (read_rgb(home / "All" / kind / name) for kind in ("images", "masks"))
        if mask.shape != image.shape:
            assert np.array_equal(np.multiply(mask.shape[:2], 2), image.shape[:2])
            halves.append(name)
        if not mask.any():
            blanks.append(name)
    assert halves == ["005.png"] and blanks == ["000.png"]
    assert len(list((home / "Malignant" / "images").iterdir())) == CASES // 3


@pytest.mark.parametrize("size", range(48, 64))
def test_the_half_mask_has_the_shape_of_its_image_whatever_the_size(tmp_path, size):
    home = write(tmp_path, "bus_uc", cases=5, size=size) / "BUS_UC" / "All"
    image, mask = (read_rgb(home / kind / "005.png") for kind in ("images", "masks"))
    assert np.array_equal(np.multiply(mask.shape[:2], 2), image.shape[:2])


def test_bus_uclm_is_green_red_black_and_both(tmp_path):
    home = write(tmp_path, "bus_uclm") / "BUS-UCLM"
    names = sorted(path.stem for path in (home / "images").iterdir())
    assert names == sorted(path.stem for path in (home / "masks").iterdir())
    assert all(re.fullmatch(r"[A-Z]{4}_\d{3}", name) for name in names)
    kinds, modes = {}, set()
    for path in (home / "masks").iterdir():
        with Image.open(path) as file:
            modes.add(file.mode)
        red, green, _ = np.moveaxis(read_rgb(path).astype(int), 2, 0)
        kind = ("red" if (red > 200).any() else "") + ("green" if (green > 200).any() else "")
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds == {"red": 3, "green": 8, "redgreen": 1, "": 2}
    assert modes == {"RGB", "RGBA", "P"}


def test_frames_of_one_scan_look_alike_and_those_of_others_do_not(tmp_path):
    cases = list_cases("bus_uclm", write(tmp_path, "bus_uclm")).cases
    images = {case.id: read_rgb(case.image) for case in cases}
    clusters = cluster_duplicates(
        list(images),
        [pixel_sha256(image) for image in images.values()],
        [perceptual_hash(image) for image in images.values()],
    )
    patient = {case.id: case.patient for case in cases}
    members = {}
    for case, cluster in clusters.items():
        members.setdefault(cluster, []).append(case)
    alike = [same for same in members.values() if len(same) > 1]
    assert len(alike) == CASES // 3
    assert all(len({patient[case] for case in same}) == 1 for same in alike)
    assert len({pixel_sha256(image) for image in images.values()}) == len(images)


def test_patients_of_bus_uclm_are_as_many_as_their_scans(tmp_path):
    cases = list_cases("bus_uclm", write(tmp_path, "bus_uclm", cases=90, size=48)).cases
    assert len({case.patient for case in cases}) == 30
    assert {case.label for case in cases} == {"benign", "malignant", "normal"}


def test_pairs_are_of_many_kinds_of_files(tmp_path):
    root = write(tmp_path, "pairs")
    suffixes = {path.suffix for path in (root / "images").rglob("*.*")}
    assert suffixes == {".png", ".PNG", ".tif", ".tiff", ".jpg"}
    assert {path.name for path in root.iterdir()} == {"images", "masks", MARKER}
    assert len(list((root / "images" / "clinic_b").iterdir())) == 2
    for path in (root / "images").rglob("*.tif*"):
        with Image.open(path) as file:
            assert file.format == "TIFF"


@pytest.mark.parametrize("odd_cases", [False, True])
def test_samed2d_has_two_parts_two_masks_and_masks_of_many_kinds(tmp_path, odd_cases):
    cases = list_cases("samed2d", write(tmp_path, "samed2d", odd_cases)).cases
    assert {case.split for case in cases} == {"train", "test"}
    assert {len(case.masks) for case in cases} == {1, 2}
    volumes = [case.patient for case in cases if case.patient != "phantom--p900"]
    assert len(volumes) == CASES and len(set(volumes)) == CASES // 2
    modes, values = set(), set()
    for path in [mask for case in cases for mask in case.masks]:
        with Image.open(path) as file:
            modes.add(file.mode)
            if file.mode == "L":
                values.add(tuple(np.unique(np.asarray(file)).tolist()))
    assert modes == ({"L", "1", "RGB", "P"} if odd_cases else {"L"})
    assert values == ({(0, 255), (0, 1), (0,)} if odd_cases else {(0, 255)})


def test_nifti_has_faint_slices_and_volumes_of_several_kinds(tmp_path):
    listing = list_cases("nifti", write(tmp_path, "nifti"))
    left, silent = listing.warnings[0], [case for case in listing.cases if case.spacing is None]
    assert "12 of 24 slices are left out: 11 show no lesion, and of 1 it covers less" in left
    assert {case.patient for case in silent} == {"P004"}
    volumes = [read_volume(path) for path in {case.image for case in listing.cases}]
    assert {str(volume.array.dtype) for volume in volumes} == {"int16", "float32"}
    assert all(volume.array.min() < 0 and volume.array.max() > 100 for volume in volumes)


@pytest.mark.parametrize("layout", ["bus", "udiat", "bus_uc", "bus_uclm", "pairs"])
def test_without_odd_cases_all_files_are_plain(tmp_path, layout):
    root = write(tmp_path, layout, odd_cases=False)
    allowed = {(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0)}
    for case in list_cases(layout, root).cases:
        assert {path.suffix for path in (case.image, *case.masks)} == {".png"}
        assert colours(case.masks[0]) <= allowed and read_rgb(case.masks[0]).any() == (
            case.label != "normal"
        )
        assert read_rgb(case.masks[0]).shape == read_rgb(case.image).shape
