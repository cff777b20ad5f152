"""What several test files share: the real default bundle, ObsPy's packaged records, and the optional data folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agent.cli import BLAS_THREADS

for name in BLAS_THREADS:  # before numpy is imported, as the program does
    os.environ.setdefault(name, "1")

import pytest
from hypothesis import HealthCheck, settings
from postgres_support import Cluster, cluster

from agent.inference import Classifier, load
from agent.inference.bundle import DEFAULT_BUNDLE

ROOT = Path(__file__).parents[1]

# A run of the suite judges the code and nothing else: the same examples each time, however slow the machine. New ones:
# pytest --hypothesis-profile explore.
_ANY_MACHINE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("explore", deadline=None, suppress_health_check=_ANY_MACHINE)
settings.register_profile("suite", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    """The network that ships with the agent, on the backend that ships with it."""
    return load(DEFAULT_BUNDLE, ["onnxruntime"])[0]


@pytest.fixture(scope="session")
def obspy_data() -> Path:
    """The installed ObsPy package; its test records are real seismograms."""
    import obspy

    return Path(obspy.__file__).parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Labelled records and streams that are not part of the project."""
    folder = Path(os.environ.get("TALUS_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "metadata.csv").is_file():
        pytest.skip(f"no data in {folder} (set TALUS_DATA)")
    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A PostgreSQL server of the tests' own."""
    with cluster() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new, empty database of each kind that the desk knows."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/desk.db"
    server: Cluster = request.getfixturevalue("postgresql")
    return server.database()
