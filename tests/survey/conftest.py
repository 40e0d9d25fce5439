"""Tests of `survey/`, which are left out where it is not installed."""

from tests.extensions import HAS_SURVEY

collect_ignore_glob = [] if HAS_SURVEY else ["*"]
if HAS_SURVEY:
    from tests.cli.conftest import models as models
