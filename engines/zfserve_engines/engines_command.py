"""Runs the command `zfserve engines`, which lists, verifies and removes compiled engines."""

import argparse
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from zfserve_runtime.bundle import DEFAULT_MODEL, BundleError, load_bundle

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_engines.store.identity import Host
from zfserve_engines.store.pruning import PruneRule, Versions, is_older, newest_versions, reason_to_remove
from zfserve_engines.store.record import EngineDamaged, StoreEntry
from zfserve_engines.store.store import EngineStore
from zfserve_engines.tensorrt.library import load_library
from zfserve_engines.tensorrt.settings import TensorRTLibrary

SHOWN_DIGITS = 12
"""The number of digits of a key that are shown; they are enough to tell engines apart."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command to `parser`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|verify|prune")
    _add_action(actions, "list", "list all engines, and whether this machine can use each")
    _add_action(actions, "verify", "check every engine against its digest; exit with status 1 if one is damaged")
    prune = _add_action(
        actions, "prune", "remove damaged engines, and engines that an option selects; keep engines that are in use"
    )
    prune.add_argument(
        "--unusable",
        action="store_true",
        help="remove engines that this machine cannot use, even if another machine can",
    )
    prune.add_argument("--older-than", type=_days, metavar="DAYS", help="remove engines that are older than DAYS")
    prune.add_argument(
        "--old-versions", action="store_true", help="keep only engines of the newest version of each library"
    )
    prune.add_argument("--dry-run", action="store_true", help="show what would be removed, and remove nothing")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    try:
        view = open_view(arguments.bundle or DEFAULT_MODEL, arguments.engine_cache)
        if arguments.action == "list":
            return print_engines(console, view)
        if arguments.action == "verify":
            return verify_engines(console, view)
        rule = PruneRule(arguments.unusable, arguments.older_than, arguments.old_versions)
        return prune_engines(console, view, rule, dry_run=arguments.dry_run)
    except BundleError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename} cannot be changed: {error.strerror}"
    Console(stderr=True).print("[red]error:[/]", escape(sentence), highlight=False, soft_wrap=True)
    return 2


@dataclass(frozen=True)
class StoreView:
    """Holds a store, and the facts about this machine that decide which of its engines can be used.

    Attributes:
        store: the store.
        entries: the entries of the store.
        host: this machine.
        installed: the installed version of each library that built an engine. A missing library has no entry.
        graphs: the digests of the bundle's files; None for a folder that belongs to no bundle.
    """

    store: EngineStore
    entries: list[StoreEntry]
    host: Host
    installed: Versions
    graphs: frozenset[str] | None

    def faults(self, entry: StoreEntry) -> list[str]:
        """Returns the reasons why this machine cannot use an undamaged engine, the most important first.

        Each reason is a sentence without a full stop. An empty list means that the engine can be used.
        """
        if entry.record is None:
            return []
        identity = entry.record.identity
        foreign = self.graphs is not None and identity.graph_sha256 not in self.graphs
        return [
            *(["it was built for other weights than the bundle's"] if foreign else []),
            *identity.faults_on(self.host, self.installed.get(identity.settings.library)),
        ]


def open_view(bundle: Path, engine_cache: Path | None) -> StoreView:
    """Opens the store in the folder `engine_cache`; if that is None, the store inside the bundle.

    Raises:
        BundleError: the bundle cannot be loaded, or the folder does not exist.
    """
    graphs = None
    if engine_cache is None:
        loaded = load_bundle(bundle)
        store, graphs = EngineStore.of(loaded), frozenset(loaded.manifest.files.values())
    elif engine_cache.is_dir():
        store = EngineStore(engine_cache)
    else:
        raise BundleError(f"there is no folder {engine_cache}")
    entries = store.entries()
    libraries = {entry.record.identity.settings.library for entry in entries if entry.record}
    return StoreView(store, entries, Host.here(detect_gpu()), _installed(libraries), graphs)


def print_engines(console: Console, view: StoreView) -> int:
    """Prints a table of all engines, with the reasons why this machine cannot use some. Returns the exit status."""
    if not view.entries:
        _print_line(console, "there are no engines", f"in {view.store.folder}")
        return 0
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("engine", no_wrap=True)
    table.add_column("model")
    table.add_column("built by", no_wrap=True)
    table.add_column("for")
    table.add_column("batches")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("here")
    notes = []
    for entry in view.entries:
        verdict, note = _usability(entry, view)
        table.add_row(entry.key[:SHOWN_DIGITS], *_cells(entry), verdict)
        if note:
            notes.append((f"{entry.key[:SHOWN_DIGITS]}:", note))
    console.print(table, highlight=False)
    for key, note in notes:
        _print_line(console, key, note)
    return 0


def verify_engines(console: Console, view: StoreView) -> int:
    """Checks every engine against its digest. Returns the exit status, which is 1 where an engine is damaged.

    An engine that is being built counts neither as sound nor as damaged.
    """
    damaged = 0
    for entry in view.entries:
        try:
            entry.load()
            verdict, note = "[green]sound[/]", ""
        except EngineDamaged as damage:
            if view.store.is_building(entry):
                verdict, note = "being built", ""
            else:
                damaged += 1
                verdict, note = "[bold red]damaged[/]", f": {damage}"
        console.print(verdict, escape(_name(entry) + note), highlight=False, soft_wrap=True)
    _print_line(console, f"{damaged} of {len(view.entries)} engines damaged in {view.store.folder}")
    return 1 if damaged else 0


def prune_engines(console: Console, view: StoreView, rule: PruneRule, *, dry_run: bool) -> int:
    """Removes engines and returns the exit status. Raises OSError where the folder cannot be written."""
    store, now = view.store, datetime.now(UTC)
    newest = newest_versions(view.entries, view.installed)
    removed = "would remove" if dry_run else "removed"
    for entry in view.entries:
        reason = reason_to_remove(entry, rule, view.faults(entry), newest, now)
        if reason is None:
            continue
        gone = not store.is_in_use(entry) if dry_run else store.remove(entry)
        _print_line(console, removed if gone else "kept", f"{_name(entry)}: {reason if gone else 'it is in use'}")
    caches = store.timing_caches() if rule.old_versions else {}
    old = [file for file, version in caches.items() if is_older(version, newest.get("tensorrt", ""))]
    for file in [*store.partial_files(), *old]:
        if not dry_run:
            file.unlink(missing_ok=True)
        _print_line(console, removed, file.name)
    return 0


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "bundle", type=Path, nargs="?", help=f"folder of the bundle that holds the engines (default: {DEFAULT_MODEL})"
    )
    where.add_argument("--engine-cache", type=Path, metavar="DIR", help="folder of engines outside of any bundle")
    return parser


def _installed(libraries: set[TensorRTLibrary]) -> dict[TensorRTLibrary, str]:
    """Returns the version of each of `libraries` that is installed."""
    versions: dict[TensorRTLibrary, str] = {}
    for library in libraries:
        try:
            versions[library] = load_library(library).version
        except EngineUnavailable:
            continue
    return versions


def _usability(entry: StoreEntry, view: StoreView) -> tuple[str, str | None]:
    """Returns a word that says whether this machine can use an engine, and the reason if it cannot, or None."""
    if entry.damage:
        if view.store.is_building(entry):
            return "being built", None
        return "[bold red]damaged[/]", entry.damage
    faults = view.faults(entry)
    return ("[yellow]no[/]", faults[0]) if faults else ("[green]yes[/]", None)


def _cells(entry: StoreEntry) -> tuple[str, ...]:
    """Returns the cells of an engine's row between its key and its usability."""
    if entry.record is None:
        return ("?",) * 5
    record, identity, settings = entry.record, entry.record.identity, entry.record.identity.settings
    return (  # two lines for each engine, so that the table fits 80 columns
        f"{escape(record.model)} {escape(record.version)}\n{settings.precision}",
        f"{settings.library}\n{identity.library_version}",
        escape(str(identity.card)) if identity.card else ", ".join(settings.compute_capabilities),
        ", ".join(map(str, settings.batches)),
        f"{record.size_bytes / 1e6:.1f} MB\n{_age(datetime.now(UTC) - record.created_at)}",
    )


def _name(entry: StoreEntry) -> str:
    """Returns the name that messages give to an engine."""
    key = entry.key[:SHOWN_DIGITS]
    if entry.record is None:
        return key
    record, settings = entry.record, entry.record.identity.settings
    library = f"{settings.library} {record.identity.library_version}"
    return f"{key} ({record.model} {record.version}, {settings.precision}, {library})"


def _age(age: timedelta) -> str:
    for unit, length in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1))):
        if age >= length:
            return f"{age // length} {unit} old"
    return "just now"


def _days(text: str) -> timedelta:
    try:
        days = float(text)
    except ValueError:
        days = -1
    if not 0 <= days < 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return timedelta(days=days)


def _print_line(console: Console, *words: str) -> None:
    console.print(*map(escape, words), highlight=False, soft_wrap=True)
