"""One small Ray cluster for all tests of this folder: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from draftrec.jobs.ray import ClusterSpec, Share, connected

ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="session")
def share() -> Iterator[Share]:
    """What a worker of the tests' cluster gets."""
    with connected(ClusterSpec(workers=4, cpus_per_worker=1)) as found:
        yield found
