"""A script's constants as options of its command line, or from a JSON file."""

import argparse
import ast
import io
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.settings.backbones import BACKBONES
from pipeline.settings.rules import RULES, TYPE_NAMES, check_together, checked, rule_of

STARTED_WITH = "started with"  # key in a run's constants.json: what else the run depends on
RENAMED = {"START_AFRESH": "OVERWRITE", "begun with": STARTED_WITH}  # names in the files of earlier versions


def override(script: str, constants: dict[str, Any], arguments: list[str] | None = None) -> dict[str, Any]:
    """Overrides the constants of a script by its command line, and checks every constant.

    An option `--name` wins over the file of `--constants FILE`, and that over the script.

    Args:
        script: path of the script. Each `NAME = value  # comment` at its top level, a str, int, float or bool value,
            becomes an option with the comment as its help. Comments on lines of their own are headings.
        constants: the constants' values in the script, such as `globals()`.
        arguments: the command line; `sys.argv[1:]` if not given.

    Returns:
        dict of every constant's value.

    Raises:
        InputError: if a value, an option or an entry of the file is wrong, or two values contradict each other.
    """
    described = list(_described_constants(script, constants))
    names = [name for name, _, _ in described]
    for name in dict.fromkeys([*RULES, *names]):
        if names.count(name) != 1:
            raise InputError(f"`{name}` must be set once, at the top of `{Path(script).name}`, to a plain value.")

    given = vars(_parser(script, constants, described).parse_args(arguments))
    file = given.pop("constants file", None)
    values = {name: constants[name] for name in names}
    values |= read_constants(file, names) if file is not None else {}
    values |= given
    values = {name: checked(name, values[name], constants[name]) for name in names}
    check_together(values)
    return values


def read_constants(path: str, names: list[str]) -> dict[str, Any]:
    """Reads a JSON file of constants, such as the `constants.json` of a run.

    `OVERWRITE` is ignored in the file of a run: to repeat a run must not delete one.

    Args:
        path: path of the file.
        names: the constants that there are.

    Returns:
        dict of the constants in the file.

    Raises:
        InputError: if the file cannot be read, or has an entry that is not a constant.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"`--constants` must be a readable JSON file. Received: {path!r} ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"`--constants` must be a JSON file of one object of constants. Received: {path!r}")
    of_a_run = not {STARTED_WITH, *RENAMED}.isdisjoint(values)  # users write today's names
    values = with_new_names(values)
    values.pop(STARTED_WITH, None)
    unknown = sorted(set(values) - set(names))
    if unknown:
        named = ", ".join(map(repr, unknown))
        raise InputError(f"`--constants` must be a file of constants that --help lists. Received: {named} in {path!r}")
    if of_a_run:
        values.pop("OVERWRITE", None)
    return values


def with_new_names(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a constants.json, with today's names where it was written by an earlier version."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def _parser(script, constants, described):
    parser = Parser(
        prog=Path(script).name,
        usage="%(prog)s [--constants FILE] [options]",
        description="Each constant at the top of the script is an option.",
        epilog=f"backbones: {', '.join(BACKBONES)}",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--constants",
        dest="constants file",
        metavar="FILE",
        help="JSON file of constants, such as the constants.json of a run; other options win over it",
    )
    groups = {}
    for name, heading, comment in described:
        group = groups.get(heading) or groups.setdefault(heading, parser.add_argument_group(heading))
        option, rule = "--" + name.lower().replace("_", "-"), rule_of(name, constants[name])
        text = f"{comment} (default: {constants[name]})".replace("%", "%%").strip()
        if rule.kind is bool:
            group.add_argument(option, dest=name, action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(option, dest=name, metavar=rule.metavar, help=text)
    return parser


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError where the command line is wrong."""

    def error(self, message):
        raise InputError(f"{message}; --help lists the options.")


def _described_constants(script: str, constants: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields (name, heading, comment) of each UPPER_CASE str, int, float or bool at the top level of a script."""
    source = Path(script).read_text(encoding="utf-8")
    lines = source.splitlines()
    trailing, headings = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").rstrip()
            if not lines[token.start[0] - 1].lstrip().startswith("#"):
                trailing[token.start[0]] = text
            elif text.strip("-="):
                headings[token.start[0]] = text
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        if name in RULES or (name.isupper() and type(constants.get(name)) in TYPE_NAMES):
            above = [line for line in headings if line < node.lineno]
            yield name, headings[max(above)] if above else "Constants", trailing.get(node.end_lineno, "")
