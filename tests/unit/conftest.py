"""What several unit tests share because it takes seconds to make. Nobody changes it."""

import pickle

import pytest

from tests.made_once import made_once


@pytest.fixture(scope="session")
def report_study(tmp_path_factory):
    """Return a small study with its figures, pictures and tables."""
    from report_page import make_study

    def make(folder):
        (folder / "study.pickle").write_bytes(pickle.dumps(make_study(folder / "study")))

    made = made_once(tmp_path_factory.getbasetemp(), "report_study", make)
    return pickle.loads((made / "study.pickle").read_bytes())


@pytest.fixture(scope="session")
def report_page_html(report_study, tmp_path_factory):
    """Return the report of that study."""
    from report_page import write_page

    base = tmp_path_factory.getbasetemp()
    made = made_once(base, "report_page", lambda folder: write_page(report_study, folder))
    return (made / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def toy_study(tmp_path_factory):
    """Return (prepared, splits, roles) of a small dataset."""
    from tests.training_fixture import make_study

    return make_study(tmp_path_factory.mktemp("toy_study"))


@pytest.fixture(scope="module")
def toy_model(toy_study, one_thread, tmp_path_factory):
    """Return the folder of a tiny model that was trained on it, by one thread."""
    from tests.training_fixture import tiny_config, train

    return train(tiny_config(), toy_study, tmp_path_factory.mktemp("toy_model"))
