"""What every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.made_once import made_once

# Set before torch and OpenCV are imported: two processes of `make test` share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("MPLBACKEND", "Agg")

# A machine that is busy is no defect of what is tested. Where a change is judged, the same examples
# are tried every time; at a desk new ones are, and what they find becomes an `@example`.
settings.register_profile("any machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest tests first, so that two processes end at the same time."""
    rooms = ("slurm", "workflow")
    items.sort(key=lambda item: [room not in item.path.parts for room in rooms])


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout in which the demo has run without a scheduler; nobody changes it."""
    from tests.checkout import DEMO, Checkout, copy_checkout

    def run(folder: Path) -> None:
        Checkout(copy_checkout(folder / "checkout")).run("--cores", "2", *DEMO)

    return made_once(tmp_path_factory.getbasetemp(), "demo", run) / "checkout"


@pytest.fixture(scope="session")
def stu_root() -> Path:
    """Return the folder of the real STU-Hospital images; they may not be redistributed."""
    folder = Path(os.environ.get("ULTRAREFINER_STU", ROOT.parent / "shared" / "data" / "stu"))
    if not (folder / "Hospital").is_dir():
        pytest.skip(f"the STU-Hospital images are not in {folder}; set ULTRAREFINER_STU")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread: small models are no faster on two, and sums stay in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a set by its sorted members: its own order differs from process to process."""
    return "+".join(sorted(map(str, val))) if isinstance(val, set | frozenset) else None
