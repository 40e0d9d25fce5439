"""The shells of `tests/doors`."""

from tests.doors.conftest import installed as installed, open_shell as open_shell, shell as shell
