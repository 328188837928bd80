"""Guards: bands have their shares, hard lesions get more and stronger errors, seeds alone decide."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ultrarefiner.config import SimulationConfig
from ultrarefiner.training.corrupt import (
    BANDS,
    CORRUPTIONS,
    PRESETS,
    corrupt_mask,
    kind_weights,
    measure_shape,
    simulate_failure,
)


def blob(radius, waves=0.0, count=7, side=256):
    """Return a disc whose outline has so many waves."""
    y, x = np.mgrid[:side, :side] - side // 2
    return np.hypot(y, x) <= radius * (1 + waves * np.cos(count * np.arctan2(y, x)))


LARGE, TINY, STAR = blob(50), blob(5), blob(50, waves=0.5)
LESIONS = [LARGE, TINY, STAR, blob(12), blob(25, waves=0.2, count=4), blob(35)]


def mixture(config, copies=50, lesions=LESIONS):
    return [
        simulate_failure(mask, config, 1, f"case{index}", copy)
        for index, mask in enumerate(lesions)
        for copy in range(copies)
    ]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_bands_of_a_preset_have_their_shares(preset):
    made = mixture(SimulationConfig(preset=preset))
    assert sum(PRESETS[preset].bands.values()) == pytest.approx(1)
    for band, share in PRESETS[preset].bands.items():
        assert np.mean([mask.band == band for mask in made]) == pytest.approx(share, abs=0.08)
    assert np.mean([mask.reached for mask in made]) > 0.98


def test_bands_of_the_study_go_before_those_of_the_preset():
    bands = {"perfect": 0.0, "mild": 0.3, "heavy": 0.7}
    made = mixture(SimulationConfig(preset="mild", bands=bands))
    for band, share in bands.items():
        assert np.mean([mask.band == band for mask in made]) == pytest.approx(share, abs=0.08)


def test_a_mask_drawn_without_a_band_has_those_of_the_preset():
    made = [
        corrupt_mask(LESIONS[seed % len(LESIONS)], np.random.default_rng(seed))
        for seed in range(300)
    ]
    for band, share in PRESETS["default"].bands.items():
        assert np.mean([mask.band == band for mask in made]) == pytest.approx(share, abs=0.08)


def test_presets_mix_the_kinds():
    shape = measure_shape(LARGE)
    shares = {preset: kind_weights(preset, shape) for preset in PRESETS}
    for weights in shares.values():
        assert set(weights) == set(CORRUPTIONS)
        assert sum(weights.values()) == pytest.approx(1)
    jitter, holes = "boundary_jitter", "internal_holes"
    assert shares["boundary_focus"][jitter] > 2 * shares["default"][jitter]
    assert shares["structural"][holes] > 2 * shares["default"][holes]
    for kind in ("giant_over_segmentation", "empty_prediction"):
        assert shares["mild"][kind] < shares["default"][kind] < shares["severe"][kind]


def test_kinds_of_a_band_are_those_that_can_be_of_it():
    shape = measure_shape(LARGE)
    perfect, mild, heavy = (kind_weights("default", shape, band) for band in BANDS)
    assert perfect["identity"] == 1
    assert not mild["empty_prediction"] and heavy["empty_prediction"]
    assert mild["missing_chunk"] and not heavy["missing_chunk"]
    assert not mild["identity"] and not heavy["identity"]
    # A kind of one band only is as frequent over all bands as its probability says.
    shares = PRESETS["default"].bands
    over_all = (
        shares["mild"] * mild["noise_only_scatter"] + shares["heavy"] * heavy["noise_only_scatter"]
    )
    assert over_all == pytest.approx(kind_weights("default", shape)["noise_only_scatter"], rel=0.25)


def test_small_and_irregular_lesions_get_other_kinds():
    large, tiny, star = (kind_weights("default", measure_shape(m)) for m in (LARGE, TINY, STAR))
    for kind in ("empty_prediction", "noise_only_scatter", "under_segmentation"):
        assert tiny[kind] > 1.3 * large[kind]
    assert tiny["internal_holes"] < 0.5 * large["internal_holes"]
    for kind in ("fragmentation", "boundary_jitter", "missing_chunk"):
        assert star[kind] > 1.2 * large[kind]


@pytest.mark.parametrize("kind", ["over_segmentation", "under_segmentation", "missing_chunk"])
@pytest.mark.parametrize("hard", [TINY, STAR], ids=["tiny", "star"])
def test_small_and_irregular_lesions_get_stronger_and_more_errors(kind, hard):
    made = {
        name: [corrupt_mask(mask, np.random.default_rng(seed), kind, soft=0) for seed in range(150)]
        for name, mask in (("hard", hard), ("easy", LARGE))
    }
    severity = {name: np.mean([m.severity for m in masks]) for name, masks in made.items()}
    jittered = {name: np.mean([m.jittered for m in masks]) for name, masks in made.items()}
    assert severity["hard"] > severity["easy"] + 0.05
    if hard is STAR:
        # On a lesion of few pixels a jitter often moves none.
        assert jittered["hard"] > jittered["easy"] + 0.1


def test_within_a_band_they_are_worse_too():
    def mean_dice(mask):
        made = [
            corrupt_mask(mask, np.random.default_rng(seed), severity="mild") for seed in range(150)
        ]
        return np.mean([m.dice for m in made])

    easy = mean_dice(LARGE)
    assert mean_dice(TINY) < easy - 0.01 and mean_dice(STAR) < easy - 0.01


def test_seed_case_and_copy_decide_and_nothing_else():
    config = SimulationConfig()
    first = simulate_failure(LARGE, config, 3, "busi__a", 0)
    np.random.seed(0)
    again = simulate_failure(LARGE, config, 3, "busi__a", 0)
    assert np.array_equal(first.soft, again.soft) and repr(first) == repr(again)
    others = [
        simulate_failure(LARGE, config, seed, case, copy).soft
        for seed, case, copy in ((4, "busi__a", 0), (3, "busi__b", 0), (3, "busi__a", 1))
    ]
    assert not any(np.array_equal(first.soft, other) for other in others)
    many = [simulate_failure(LARGE, config, 3, f"c{i}", 0) for i in range(64)]
    drawn = {mask.soft.tobytes() for mask in many if mask.dice not in (0.0, 1.0)}
    assert len(drawn) == sum(mask.dice not in (0.0, 1.0) for mask in many)


def test_every_kind_is_deterministic():
    for kind in CORRUPTIONS:
        results = [corrupt_mask(LARGE, np.random.default_rng(9), kind, soft=1.0) for _ in range(2)]
        assert results[0].soft.tobytes() == results[1].soft.tobytes()


CODE = """
import hashlib, numpy as np
from ultrarefiner.config import SimulationConfig
from ultrarefiner.training.corrupt import simulate_failure
import sys
from pathlib import Path
assert "torch" not in sys.modules
y, x = np.mgrid[:256, :256] - 128
digest = hashlib.sha256()
for copy in range(12):
    mask = np.hypot(y, x) <= 50
    digest.update(simulate_failure(mask, SimulationConfig(), 7, "case", copy).soft.tobytes())
print(digest.hexdigest())
"""


def test_processes_agree_whatever_their_hash_seed_and_torch_is_not_needed():
    here = hashlib.sha256()
    for copy in range(12):
        here.update(simulate_failure(LARGE, SimulationConfig(), 7, "case", copy).soft.tobytes())
    for seed in ("0", "123"):
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here.hexdigest()


def test_the_page_has_the_tables_of_the_code():
    page = (Path(__file__).parents[2] / "docs/reference/corruptions.md").read_text()
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in page.splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert list(rows) == [*CORRUPTIONS, *PRESETS]
    for kind, row in CORRUPTIONS.items():
        ranges = [f"{low:g} to {high:g}" for low, high in (row.area_ratio, row.dice)]
        assert rows[kind][0] == row.description
        assert rows[kind][2:4] == ["0" if told == "0 to 0" else told for told in ranges]
        assert rows[kind][4] == (row.topology or "—")
        assert float(rows[kind][5]) == row.probability
        factors = {"tiny": row.with_smallness, "irregular": row.with_irregularity}
        told = [f"{name} × {1 + more:g}" for name, more in factors.items() if more]
        assert rows[kind][6] == (", ".join(told) or "—")
    for preset, row in PRESETS.items():
        assert rows[preset][:3] == [f"{share:.0%}" for share in row.bands.values()]
        for kind, factor in row.factors.items():
            assert f"× {factor:g}: " in rows[preset][3] and f"`{kind}`" in rows[preset][3]
