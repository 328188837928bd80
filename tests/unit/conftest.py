"""What several unit tests share because it takes seconds to make. Nobody changes it."""

import pytest


@pytest.fixture(scope="session")
def report_study(tmp_path_factory):
    """Return a small study with its figures, pictures and tables."""
    from report_page import make_study

    return make_study(tmp_path_factory.mktemp("report_study"))
