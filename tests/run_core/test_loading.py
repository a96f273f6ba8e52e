"""The search for garbage: off while a command loads, and never again among what was loaded."""

import gc

import pytest

from run_core.loading import loading


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_loaded_is_not_searched_again():
    before = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
        loaded = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(loaded)


def test_a_failure_while_loading_leaves_the_collector_on_and_nothing_frozen():
    before = gc.get_freeze_count()
    with pytest.raises(KeyboardInterrupt), loading():
        raise KeyboardInterrupt
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()
