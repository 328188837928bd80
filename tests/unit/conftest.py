"""What several unit tests share because it takes seconds to make. Nobody changes it."""

import pytest


@pytest.fixture(scope="session")
def report_study(tmp_path_factory):
    """Return a small study with its figures, pictures and tables."""
    from report_page import make_study

    return make_study(tmp_path_factory.mktemp("report_study"))


@pytest.fixture(scope="session")
def report_page_html(report_study, tmp_path_factory):
    """Return the report of that study."""
    from report_page import write_page

    return write_page(report_study, tmp_path_factory.mktemp("page"))


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
