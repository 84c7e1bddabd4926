"""The small world, once for all tests of click models."""

from __future__ import annotations

import pytest

from tests.ctr.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))
