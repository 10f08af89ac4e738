"""`rnnzoo check`: the conformance suite, on a cell of one's own or of the zoo."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo import check, registry
from rnnzoo.errors import UserError
from rnnzoo.files import refuse_as_file, writing
from rnnzoo.plain import printable
from rnnzoo.progress import steps

WORDS = {True: "yes", False: "NO", None: "skipped"}


def check_cells(targets: list[str], every: bool, out: Path | None = None) -> int:
    if every == bool(targets):
        raise UserError("name the cells to check, or give --all")
    if out is not None:
        refuse_as_file("--out", out)
    kinds = {target: registry.find(target) for target in targets or registry.list_cells()}
    console = Console()
    failed, found = {}, dict[str, list[check.Finding]]()
    for target, kind in steps(kinds.items(), "checking", lambda item: item[0]):
        table = Table("check", "passed", "found", title=escape(printable(target)), title_justify="left")
        findings = found[target] = list(check.conformance(kind))
        for finding in findings:
            advice = f"\n→ {finding.advice}" if finding.advice else ""
            table.add_row(finding.check, WORDS[finding.passed], escape(printable(finding.detail + advice)))
        failed[target] = sum(finding.passed is False for finding in findings)
        if len(kinds) == 1 or failed[target]:
            console.print(table)
        else:
            console.print(f"{printable(target)}: all checks passed", highlight=False, markup=False)
    if out is not None:
        with writing(out) as partial:
            partial.write_text(markdown(found), encoding="utf-8")
        console.print(f"written: {printable(str(out))}", highlight=False, markup=False)
    bad = [f"{printable(target)} ({count})" for target, count in failed.items() if count]
    console.print(f"failed: {', '.join(bad)}" if bad else "all checks passed", highlight=False, markup=False)
    return int(bool(bad))


def markdown(found: dict[str, list[check.Finding]]) -> str:
    """A table with a row for each cell and a column for each check."""
    columns = list(dict.fromkeys(finding.check for findings in found.values() for finding in findings))
    lines = [f"| cell | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    for target, findings in found.items():
        passed = {finding.check: WORDS[finding.passed] for finding in findings}
        lines.append(f"| {printable(target)} | {' | '.join(passed.get(column, '') for column in columns)} |")
    return "\n".join([*lines, ""])
