"""What tests of several rooms share."""

import os

# The models are tiny, and where another program holds a core, two threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from cygnet.model.transformer import Transformer
from tests.models import random_model

# How long an example takes says more about the machine than about the code.
settings.register_profile("cygnet", deadline=None)
settings.load_profile("cygnet")


@pytest.fixture
def model() -> Transformer:
    return random_model()
