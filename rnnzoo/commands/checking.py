"""`rnnzoo check`: the conformance suite, on a cell of one's own or of the zoo."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo import check, registry
from rnnzoo.errors import UserError
from rnnzoo.progress import steps


def check_cells(targets: list[str], every: bool) -> int:
    if every == bool(targets):
        raise UserError("name the cells to check, or give --all")
    kinds = {target: registry.find(target) for target in targets or registry.list_cells()}
    console = Console()
    failed = {}
    for target, kind in steps(kinds.items(), "checking", lambda item: item[0]):
        table = Table("check", "passed", "found", title=target, title_justify="left")
        findings = list(check.conformance(kind))
        for finding in findings:
            advice = "" if finding.passed else f"\n→ {finding.advice}"
            table.add_row(finding.check, "yes" if finding.passed else "NO", escape(finding.detail + advice))
        if len(kinds) == 1 or not all(finding.passed for finding in findings):
            console.print(table)
        else:
            console.print(f"{target}: all {len(findings)} checks passed", highlight=False, markup=False)
        failed[target] = sum(not finding.passed for finding in findings)
    bad = [f"{target} ({count})" for target, count in failed.items() if count]
    console.print(f"failed: {', '.join(bad)}" if bad else "all checks passed", highlight=False, markup=False)
    return int(bool(bad))
