"""What tests of several rooms share."""

import pytest

from cygnet.model.transformer import Transformer
from tests.models import random_model


@pytest.fixture
def model() -> Transformer:
    return random_model()
