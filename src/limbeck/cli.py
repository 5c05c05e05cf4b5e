"""The command line: ``limbeck <method> [flags]``, ``limbeck methods``, ``limbeck <group> <command> [flags]``."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

from limbeck.commands import Command, find_commands, match
from limbeck.core.check import LimbeckError

USAGE = """limbeck distils what a large model knows into something small.

usage: limbeck <command> [flags]
       limbeck <command> --help              flags, their defaults, and where each default comes from
       limbeck <command> --config run.json   repeat a run; flags on the line win
       limbeck methods                       the methods in one table
       limbeck --version
"""


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Command] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and return the exit code.

    0 all went well; 2 a mistake in the input, told in one sentence; 130 stopped by the user; else it raises.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = dict(find_commands() if commands is None else commands)
    try:
        return _run(words, known)
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = " ".join(["limbeck", *words])
        said = "stopped; a run goes on from its last checkpoint with the same command"
        print(f"\nlimbeck: {said}: {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str], commands: dict[str, Command]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(commands))
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"limbeck {metadata.version('limbeck')}")
        return 0
    if words[0] == "methods":
        print(methods_table(commands))
        return 0
    if len(words) == 1 or words[1] in ("-h", "--help"):
        group = {name: command for name, command in commands.items() if name.startswith(f"{words[0]} ")}
        if group:
            print(_listing(group.values()))
            return 0
    return _call(*match(words, commands))


def _call(command: Command, words: list[str]) -> int:
    from limbeck.arguments import config_class, parse

    function = command.function()
    try:
        cfg = parse(config_class(function), words, f"limbeck {command.words}", _description(command))
    except SystemExit:  # help was asked for and given
        return 0
    _quieten()
    function(cfg)
    return 0


def _quieten() -> None:
    """Keep transformers' notes and its bars over loading a file from hiding our own progress; downloads still show."""
    if "torch" in sys.modules and "TRANSFORMERS_VERBOSITY" not in os.environ:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()


def methods_table(commands: Mapping[str, Command]) -> str:
    """The table of methods: name, what it distils, paper, command. Nothing is imported to make it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it distils", "paper", "command", box=None, pad_edge=False, header_style="bold")
    for command in commands.values():
        if card := command.card:
            says = card.fields.get("Says") or card.title
            table.add_row(card.name, says, card.fields.get("Paper", ""), f"limbeck {command.words}")
    width = None if sys.stdout.isatty() else 140
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as drawn:
        console.print(table)
    return drawn.get().rstrip()


def _overview(commands: Mapping[str, Command]) -> str:
    methods = [command for command in commands.values() if command.card]
    others = [command for command in commands.values() if not command.card]
    parts = [USAGE, "methods:", _listing(methods)]
    return "\n".join([*parts, "\nother commands:", _listing(others)] if others else parts)


def _listing(commands: Iterable[Command]) -> str:
    rows = [(command.words, command.title) for command in commands]
    width = max((len(words) for words, _ in rows), default=0)
    lines = (f"  {words:<{width}}  {textwrap.shorten(title, 100 - width, placeholder=' ...')}" for words, title in rows)
    return "\n".join(line.rstrip() for line in lines)


def _description(command: Command) -> str:
    if command.card is None:
        return command.title
    fields = command.card.fields
    said = [f"{name}: {fields[name]}" for name in ("Paper", "Says", "Needs") if name in fields]
    return "\n\n".join([command.card.title, *said])
