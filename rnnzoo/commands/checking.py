"""`rnnzoo check`: the conformance suite, on a cell of one's own or of the zoo."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo import check, registry
from rnnzoo.errors import UserError
from rnnzoo.plain import printable
from rnnzoo.progress import steps

WORDS = {True: "yes", False: "NO", None: "skipped"}


def check_cells(targets: list[str], every: bool) -> int:
    if every == bool(targets):
        raise UserError("name the cells to check, or give --all")
    kinds = {target: registry.find(target) for target in targets or registry.list_cells()}
    console = Console()
    failed = {}
    for target, kind in steps(kinds.items(), "checking", lambda item: item[0]):
        table = Table("check", "passed", "found", title=escape(printable(target)), title_justify="left")
        findings = list(check.conformance(kind))
        for finding in findings:
            advice = f"\n→ {finding.advice}" if finding.advice else ""
            table.add_row(finding.check, WORDS[finding.passed], escape(printable(finding.detail + advice)))
        failed[target] = sum(finding.passed is False for finding in findings)
        if len(kinds) == 1 or failed[target]:
            console.print(table)
        else:
            console.print(f"{printable(target)}: all checks passed", highlight=False, markup=False)
    bad = [f"{printable(target)} ({count})" for target, count in failed.items() if count]
    console.print(f"failed: {', '.join(bad)}" if bad else "all checks passed", highlight=False, markup=False)
    return int(bool(bad))
