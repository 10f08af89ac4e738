"""`rnnzoo bench`: speed and memory, side by side with the alternatives."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from rnnzoo import bench, bench_report, registry
from rnnzoo.files import make_folder, refuse_missing_parent
from rnnzoo.plain import printable


def measure_cells(options: argparse.Namespace) -> None:
    import matplotlib.figure  # noqa: F401  if it is missing, that is to show before anything is measured

    rivals = tuple(dict.fromkeys(options.against.split(",")))
    setting = bench.Setting(rivals, options.engine, options.threads, options.dtype, options.device, options.rounds)
    sizes = [bench.parse_size(text) for text in (options.sizes or map(str, bench.SIZES))]
    names = options.names or registry.list_cells()
    for name in names:
        registry.get(name)
    refuse_missing_parent("--out", options.out)
    make_folder("--out", options.out)
    machine = bench.machine(setting)
    path = options.out / "bench.csv"
    done = bench_report.read_csv(path) if options.resume and path.is_file() else {}
    cases = bench_report.write_csv(bench.run(names, sizes, setting, done), path, machine, options.resume)
    (options.out / "bench.md").write_text(bench_report.markdown(path, rivals), encoding="utf-8")
    if not cases:
        print(printable(f"all of it had been measured; written: {options.out}/bench.md"))
        return
    bench_report.plot(cases, rivals, machine, options.out / "bench.png")
    console = Console()
    console.width = max(console.width, 200)  # in a narrow terminal or a pipe, rich would cut the numbers
    for table in bench_report.tables(cases, rivals):
        console.print(table)
    console.print(
        machine, f"written: {options.out}/bench.csv, bench.md, bench.png", sep="\n", markup=False, highlight=False
    )


def measure_training(names: list[str], rounds: int) -> None:
    table = Table("task", "rnnzoo train, ms a step", "bare loop, ms a step", "ratio")
    from rnnzoo.hydra.throughput import measure  # needs the extra "train"

    for name in names or ["sine", "char_lm"]:
        found = measure(name, rounds)
        table.add_row(name, f"{found.trained:.2f}", f"{found.bare:.2f}", f"{found.ratio:.2f}")
    Console().print(table)
