"""Options of the commands that every one of them needs."""

import dataclasses
import inspect

import pytest

from hf_any3d import conversions
from hf_any3d.cli import app
from hf_any3d.conversions.act.convert import Choices
from hf_any3d.conversions.programs import CONVERTERS
from tests.cli.conftest import run


def commands(group, name=""):
    for one in group.registered_commands:
        yield f"{name} {one.name or one.callback.__name__.replace('_', '-')}".strip(), one.callback
    for one in group.registered_groups:
        yield from commands(one.typer_instance, f"{name} {one.name}".strip())


COMMANDS = dict(commands(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_opens_a_name_accepts_licenses(name):
    words = {"model", "encoder", "names", "runs"} & set(inspect.signature(COMMANDS[name]).parameters)
    assert ("--accept-license" in run(*name.split(), "--help").out) is bool(words)


@pytest.mark.parametrize("name", CONVERTERS)
def test_records_say_which_options_of_convert_a_conversion_takes(name):
    parameters = set(inspect.signature(getattr(conversions, name)).parameters)
    if "choices" in parameters:  # keyword arguments that become this dataclass
        parameters |= {field.name for field in dataclasses.fields(Choices)}
    options = set(inspect.signature(COMMANDS["convert"]).parameters) - {"files", "output"}
    # What the owner of the files states is known to all conversions.
    assert set(CONVERTERS[name].takes) - {"classes", "license"} == parameters & options


def test_every_option_of_convert_is_one_of_a_conversion():
    taken = {name for converter in CONVERTERS.values() for name in converter.takes}
    assert set(inspect.signature(COMMANDS["convert"]).parameters) - taken == {"files", "output", "size"}
