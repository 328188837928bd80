"""Guards that phantoms are usable stand-ins: real layouts, honest masks, same seed same pixels."""

import csv
import hashlib
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from ultrarefiner.datasets.duplicates import cluster_duplicates, perceptual_hash, pixel_sha256
from ultrarefiner.datasets.phantom import LAYOUTS, MARKER, draw_phantom, draw_scene, write_phantom
from ultrarefiner.errors import ConfigError, OutputError


def _contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


def _pixels(path):
    """Return what PIL decodes as 8-bit gray."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            return (np.asarray(image) // 257).astype(np.uint8)
        return np.asarray(image.convert("L"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    for layout in LAYOUTS:
        write_phantom(layout, root / layout, cases=30, size=96, seed=0, odd_cases=True)
    return root


@pytest.mark.parametrize("malignant", [False, True])
def test_drawing_is_a_pure_function_of_its_arguments(malignant):
    image, mask = draw_phantom(5, 120, malignant)
    again, mask_again = draw_phantom(5, 120, malignant)
    assert np.array_equal(image, again) and np.array_equal(mask, mask_again)
    assert image.dtype == np.uint8 and mask.dtype == bool and image.shape == mask.shape
    assert 0.9 * 120 <= image.shape[0] <= 1.1 * 120
    assert 1.05 < image.shape[1] / image.shape[0] < 1.45
    assert not np.array_equal(image, draw_phantom(6, 120, malignant)[0][: image.shape[0]])


def test_lesions_are_dark_and_of_many_sizes():
    shares, contrasts = [], []
    for seed in range(40):
        image, mask = draw_phantom(seed, 128, seed % 2 == 1)
        ring = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13), np.uint8)).astype(bool) & ~mask
        shares.append(mask.mean())
        contrasts.append(image[ring].mean() - image[mask].mean())
    assert min(shares) < 0.02 and max(shares) > 0.15
    assert np.mean(contrasts) > 25 and np.mean(np.array(contrasts) > 8) > 0.95


def test_malignant_lesions_are_taller_and_rougher():
    aspect, solidity = {False: [], True: []}, {False: [], True: []}
    for seed in range(30):
        for malignant in (False, True):
            mask = draw_phantom(seed, 160, malignant)[1].astype(np.uint8)
            contour = max(cv2.findContours(mask, 0, 2)[0], key=cv2.contourArea)
            _, _, width, height = cv2.boundingRect(contour)
            aspect[malignant].append(height / width)
            hull = cv2.contourArea(cv2.convexHull(contour))
            solidity[malignant].append(cv2.contourArea(contour) / hull)
    assert np.median(aspect[True]) > 1.2 * np.median(aspect[False])
    assert np.median(solidity[True]) < np.median(solidity[False]) - 0.05


def test_grabcut_sharpens_a_coarse_mask():
    """The demo shows refinement, so the edges have to be in the image and not only in the mask."""
    gains = []
    for seed in range(12):
        image, mask = draw_phantom(100 + seed, 160, seed % 3 == 2)
        height, width = mask.shape
        small = cv2.resize(mask.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), 1.5)
        coarse = cv2.resize(small, (width, height)) > 0.5
        if coarse.sum() < 60:
            continue
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
        sure = cv2.erode(coarse.astype(np.uint8), kernel)
        near = cv2.dilate(coarse.astype(np.uint8), kernel)
        labels = np.where(sure, cv2.GC_FGD, np.where(coarse, cv2.GC_PR_FGD, cv2.GC_PR_BGD))
        wide = cv2.dilate(near, kernel, iterations=3)
        labels = np.where(wide > 0, labels, cv2.GC_BGD).astype(np.uint8)
        rgb = cv2.cvtColor(cv2.medianBlur(image, 5), cv2.COLOR_GRAY2RGB)
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(rgb, labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)
        refined = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        dice = [2 * (m & mask).sum() / (m.sum() + mask.sum()) for m in (coarse, refined)]
        gains.append(dice[1] - dice[0])
    assert len(gains) >= 8 and np.mean(gains) > 0.02


def test_several_lesions_do_not_touch_and_one_can_leave_the_image():
    scene = draw_scene(1, 160, False, lesions=3, normal_size=True)
    assert len(scene.lesions) == 3
    assert cv2.connectedComponents(scene.mask.astype(np.uint8))[0] - 1 == 3
    assert draw_scene(1, 160, False, lesions=0).mask.sum() == 0
    mask = draw_phantom(2, 160, True, at_border=True)[1]
    assert mask[:, [0, -1]].any()


def test_phantoms_differ_from_each_other():
    hashes = [perceptual_hash(draw_phantom(seed, 96, False)[0]) for seed in range(60)]
    names = [str(seed) for seed in range(60)]
    assert len(set(cluster_duplicates(names, names, hashes).values())) == 60


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_same_arguments_same_files_and_more_cases_change_no_image(tmp_path, layout):
    for name, cases in {"a": 8, "b": 8, "more": 11}.items():
        write_phantom(layout, tmp_path / name, cases=cases, size=64, seed=3, odd_cases=True)
    write_phantom(layout, tmp_path / "other", cases=8, size=64, seed=4, odd_cases=True)
    first, more = _contents(tmp_path / "a"), _contents(tmp_path / "more")
    assert _contents(tmp_path / "b") == first
    pictures = {name for name in first if not name.endswith((".csv", ".json"))}
    # The blank benign image comes last, so its number moves; all others stay.
    moved = {name for name in pictures if first[name] != more.get(name)}
    assert len(moved) <= 2 and all("benign" in name for name in moved)
    other = _contents(tmp_path / "other")
    assert not [n for n in pictures if "mask" not in n.lower() and other.get(n) == first[n]]


def test_busi_files(folders):
    root = folders / "busi"
    assert {path.name for path in root.iterdir()} == {"benign", "malignant", "normal", MARKER}
    images = [p for p in root.rglob("*.[pP][nN][gG]") if "_mask" not in p.stem]
    shown = {}
    for image in images:
        assert re.fullmatch(rf"{image.parent.name} \(\d+\)", image.stem)
        masks = sorted(image.parent.glob(f"{glob_escape(image.stem)}_mask*"))
        assert masks[0].stem == f"{image.stem}_mask"
        for mask in masks:
            assert set(np.unique(_pixels(mask))) <= set(range(256))
            assert _pixels(mask).shape == _pixels(image).shape
        shown[f"{image.parent.name}/{image.stem}"] = [_pixels(m) > 127 for m in masks]
    blank = {name for name, masks in shown.items() if not np.any(masks)}
    assert len(shown) - len(blank) == 30
    assert {name.split("/")[0] for name in blank} == {"benign", "normal"}
    assert sum(name.startswith("benign") for name in blank) == 1
    assert sum(name.startswith("malignant") for name in shown) == 10
    assert {"benign/benign (1)", "benign/benign (10)"} <= set(shown)
    assert sum(len(masks) == 3 for masks in shown.values()) == 1
    assert sum(np.sum(masks) == 1 for masks in shown.values()) == 1
    assert any(m[:, 0].any() or m[:, -1].any() for masks in shown.values() for m in masks)


def glob_escape(text):
    return re.sub(r"([*?[])", r"[\1]", text)


def test_busi_oddities_of_files(folders):
    modes = {"image": set(), "mask": set()}
    levels = set()
    for path in (folders / "busi").rglob("*.[pP][nN][gG]"):
        kind = "mask" if "_mask" in path.stem else "image"
        with Image.open(path) as image:
            modes[kind].add(image.mode)
            if kind == "mask" and image.mode == "P":
                assert set(np.unique(np.asarray(image))) == {0, 1}
                assert set(np.unique(_pixels(path))) == {0, 255}
        if kind == "mask":
            levels |= set(np.unique(_pixels(path)))
    assert modes["image"] == {"RGB", "LA", "I;16"}
    assert modes["mask"] == {"L", "RGB", "RGBA", "1", "P"}
    assert len(levels) > 20
    assert len(list((folders / "busi").rglob("*.PNG"))) == 2


def test_busi_duplicates_are_one_group_and_others_are_not(folders):
    root = folders / "busi"
    images = [p for p in root.rglob("*.[pP][nN][gG]") if "_mask" not in p.stem]
    names = [f"{p.parent.name}/{p.stem}" for p in images]
    decoded = [np.repeat(_pixels(p)[..., None], 3, axis=2) for p in images]
    pixels, looks = map(pixel_sha256, decoded), map(perceptual_hash, decoded)
    clusters = cluster_duplicates(names, list(pixels), list(looks))
    members = {}
    for name, cluster in clusters.items():
        members.setdefault(cluster, set()).add(name)
    groups = sorted(sorted(group) for group in members.values() if len(group) > 1)
    assert len(groups) == 2 and all(len(group) == 2 for group in groups)
    across = next(group for group in groups if group[1].startswith("malignant"))
    assert across[0].startswith("benign")
    same = [pixel_sha256(decoded[names.index(name)]) for name in across]
    assert same[0] == same[1]
    near = next(group for group in groups if group != across)
    assert len({pixel_sha256(decoded[names.index(name)]) for name in near}) == 2


def _table(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_busbra_files_and_tables(folders):
    root = folders / "busbra"
    images = {path.stem for path in (root / "Images").iterdir()}
    masks = {path.stem.replace("mask_", "bus_") for path in (root / "Masks").iterdir()}
    assert images == masks and len(images) == 30
    assert all(re.fullmatch(r"bus_\d{4}-[lrs]", name) for name in images)
    rows = _table(root / "bus_data.csv")
    assert list(rows[0]) == [
        *("ID", "Case", "Histology", "Pathology", "BIRADS"),
        *("Device", "Width", "Height", "Side", "BBOX"),
    ]
    assert {row["ID"] for row in rows} == images
    views = {}
    for row in rows:
        assert int(row["Case"]) == int(row["ID"][4:8])
        views.setdefault(row["Case"], set()).add(row["ID"][-1])
        mask = _pixels(root / "Masks" / f"{row['ID'].replace('bus', 'mask')}.png") > 127
        x, y, width, height = map(int, row["BBOX"].strip("[]").split(","))
        assert mask.shape == (int(row["Height"]), int(row["Width"]))
        assert mask[y : y + height, x : x + width].sum() == mask.sum() > 0
    sizes = sorted(map(len, views.values()))
    assert sizes[-1] == 3 and sizes[-2] == 2 and sizes[0] == 1
    patient = {row["ID"]: row["Case"] for row in rows}
    for count in (5, 10):
        folds = _table(root / f"{count}-fold-cv.csv")
        assert list(folds[0]) == ["ID", "Pathology", "kFold"]
        assert {row["ID"] for row in folds} == images
        assert {int(row["kFold"]) for row in folds} == set(range(1, count + 1))
        of_patient = {}
        for row in folds:
            of_patient.setdefault(patient[row["ID"]], set()).add(row["kFold"])
        assert all(len(found) == 1 for found in of_patient.values())


def test_busbra_has_no_folds_for_too_few_patients(tmp_path):
    write_phantom("busbra", tmp_path / "x", cases=9, size=48, seed=0, odd_cases=False)
    tables = {path.name for path in (tmp_path / "x").glob("*.csv")}
    assert tables == {"bus_data.csv", "5-fold-cv.csv"}


def test_stu_files(folders):
    home = folders / "stu" / "Hospital"
    sides, levels = set(), set()
    for number in range(1, 31):
        with Image.open(home / f"Test_Image_{number}.png") as image:
            assert image.size == (128, 128) and image.mode == "L"
        with Image.open(home / f"mask_{number}.png") as mask:
            assert mask.mode == "L"
            sides.add(mask.size)
            levels |= set(np.unique(np.asarray(mask)))
    assert sides == {(420, 420), (128, 128), (512, 512)}
    assert len(levels) > 50
    assert len(list(home.iterdir())) == 60


def test_without_odd_cases_all_files_are_plain(tmp_path):
    write_phantom("busi", tmp_path / "busi", cases=12, size=64, seed=0, odd_cases=False)
    for path in (tmp_path / "busi").rglob("*.png"):
        with Image.open(path) as image:
            assert image.mode == ("L" if "_mask" in path.stem else "RGB")
    assert not list((tmp_path / "busi").rglob("*_mask_1.png"))


def test_what_is_no_phantom_is_never_written_over(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "scan.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match="holds no phantoms"):
        write_phantom("busi", real, cases=4, size=64, seed=0, odd_cases=False)
    assert [path.name for path in real.iterdir()] == ["scan.png"]
    made = tmp_path / "made"
    made.mkdir()
    write_phantom("stu", made, cases=5, size=128, seed=0, odd_cases=False)
    write_phantom("stu", made, cases=4, size=128, seed=0, odd_cases=False)
    assert len(list((made / "Hospital").iterdir())) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"real", "made"}


def test_bad_arguments_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'busbra'"):
        write_phantom("busbrra", tmp_path / "x", cases=4, size=64, seed=0, odd_cases=False)
    with pytest.raises(ConfigError, match="cases 0"):
        write_phantom("busi", tmp_path / "x", cases=0, size=64, seed=0, odd_cases=False)
    assert not list(tmp_path.iterdir())
