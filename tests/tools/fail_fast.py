"""A pytest plugin for `make mutants`, where a run is over with its first failure and nobody reads why it failed.

It is imported before conftest.py, so that all settings of hypothesis there start from these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import Phase, is_hypothesis_test, settings

if TYPE_CHECKING:
    import pytest

settings.register_profile("fail_fast", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None)
settings.load_profile("fail_fast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests with random examples last: they are the slow ones."""
    items.sort(key=lambda item: is_hypothesis_test(getattr(item, "obj", None)))
