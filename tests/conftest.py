import pytest


@pytest.fixture(autouse=True, scope="session")
def _times_of_tests_stay_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's own measured times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
