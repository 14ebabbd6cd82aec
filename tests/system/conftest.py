"""One server for all system tests that run experiments: importing everything takes seconds."""

import pytest

from tests.system.kill_driver import driver


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    with driver(tmp_path_factory.mktemp("driver")) as started:
        yield started
