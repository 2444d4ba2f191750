"""Python runs this first in each worker under test, whose `PYTHONPATH` names this folder."""

import os

from tests.chaos.site.patches import install

install(os.environ)
