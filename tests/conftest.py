import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _times_of_tests_stay_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's own measured times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before() -> None:
    """Tests draw from torch's generator as it stands, and which tests a process runs before is chance."""
    torch.manual_seed(0)
