import pytest

from everycause.data.split import Split
from everycause.models import Classifier
from tests.explanation.searching import undecided


@pytest.fixture
def classifier(train: Split) -> Classifier:
    """Untrained, and undecided between its classes: its predictions vary and flip."""
    return undecided(train)
