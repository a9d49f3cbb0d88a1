"""The watch itself (promise A2): it sees a pickle that names a class, and passes over one that holds plain values."""

import pickle
from collections import OrderedDict

import pytest

from tests.conftest import PICKLE_FREE
from tests.pickle_watch import PickleWatch
from tests.rules.checkout import REPO


def test_it_sees_each_class_that_a_pickle_names(pickle_watch: PickleWatch) -> None:
    pickle_watch.is_on = True
    pickle.loads(pickle.dumps({"a": [1, "b", None]}))
    assert pickle_watch.take_found() == []
    pickle.loads(pickle.dumps(OrderedDict(a=1)))
    assert pickle_watch.take_found() == ["collections.OrderedDict"]


@pytest.mark.parametrize("folder", ["unit/serve", "unit/retrieval", "integration"])
def test_it_is_on_for_the_gateway_and_for_ingestion(folder: str) -> None:
    watched = [path for path in (REPO / "tests" / folder).rglob("test_*.py") if PICKLE_FREE.search(path.as_posix())]
    assert len(watched) > 4
