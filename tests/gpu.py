"""Everything that only a GPU can show, within minutes: `make gpu`, or python tests/gpu.py --out FOLDER --minutes 8.

- proof.txt: tests/test_gpu.py, every engine on every cell;
- training.txt: an epoch of imdb and char_lm from end to end, on made-up texts, and of all GPUs if there are several;
- bench.csv: the table of times, of cases that processes prepare side by side and then time one after another;
- summary.txt: machine and versions, what was proven, the table.

Each part has its share of the minutes, and what it has found by then stays. Needed beside torch, Lightning and their
own needs: what pyproject.toml lists under `dependencies` and, for training, `train` without its launchers, optuna,
pyarrow and wandb; pytest and pytest-xdist. FlashRNN and torchrecurrent are measured where they are installed.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SHARES = {"proof": 0.46, "prepare": 0.30, "time": 0.24}
"""Of all minutes; training runs while cases are prepared."""

SIZES = ((25, 128, 1, 64), (128, 64, 128, 128), (256, 64, 256, 256), (1024, 64, 256, 512))
CELLS = ("lstm", "gru", "mgu", "lem", "gla")
LONG = (16384, 16, 64, 128)
ROUNDS = 5

CASES = [
    *((cell, size, dtype) for size in SIZES for dtype in ("float32", "bfloat16") for cell in CELLS),
    *((cell, LONG, "float32") for cell in ("min_gru", "lru")),
]
TOO_LARGE = {("gla", SIZES[3])}
"""All states of a matrix memory of 512 × 512, 69 GB each time they are kept."""

RUNS = {
    "imdb, gru (native)": ("task=imdb", "task.data={reviews}", "trainer.max_epochs=1"),
    "char_lm, lstm (native)": ("task=char_lm", "task.text={text}", "model=lstm", "trainer.max_epochs=1"),
    "char_lm, mgu (auto)": ("task=char_lm", "task.text={text}", "model=mgu", "trainer.max_epochs=1"),
    "char_lm, min_gru (auto)": ("task=char_lm", "task.text={text}", "model=min_gru", "trainer.max_epochs=1"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of what it finds; default: gpu")
    parser.add_argument("--minutes", type=float, default=8, help="at most; default: 8")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a processor")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(f"make gpu: torch {torch.__version__} finds no CUDA device here, so there is nothing to measure")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    out, seconds, start = options.out.absolute(), 60 * options.minutes, time.monotonic()
    # a compiler a process; what the driver and torch's compilers keep is shared by all
    os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    say(out, *versions())
    prove(out, options.processes, seconds * SHARES["proof"])
    ends = [start + seconds * (SHARES["proof"] + SHARES["prepare"]), start + seconds]
    measure(out, options.processes, *ends)
    say(
        out, *table(out), f"{time.monotonic() - start:.0f} s; in {out}: proof.txt, training.txt, bench.csv, summary.txt"
    )
    return 0


def say(out: Path, *lines: str) -> None:
    """To the summary and to whoever waits."""
    with (out / "summary.txt").open("a", encoding="utf-8") as file:
        for line in lines:
            print(line, flush=True)
            print(line, file=file)


def versions() -> list[str]:
    import torch

    names = ("torch", "triton", "pytorch-lightning", "torchrecurrent", "flashrnn")
    found = [f"{name} {importlib.metadata.version(name)}" for name in names if importlib.util.find_spec(module(name))]
    cudnn = torch.backends.cudnn.version()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm", "--format=csv,noheader"]
    with suppress(OSError):
        found.append(subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip())
    return [f"Python {sys.version.split()[0]}, CUDA {torch.version.cuda}, cuDNN {cudnn}", *found]


def module(name: str) -> str:
    return name.replace("-", "_")


def run(command: list[str], seconds: float, log: Path) -> tuple[int, float]:
    """Run a command for so long at most; a second before the end it is asked to finish. Returns code and seconds."""
    start = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        for ending, patience in ((None, seconds), (signal.SIGINT, 8), (signal.SIGKILL, None)):
            if ending is not None:
                os.killpg(process.pid, ending)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
    return process.returncode, time.monotonic() - start


def prove(out: Path, processes: int, seconds: float) -> None:
    log = out / "proof.txt"
    command = [
        sys.executable, "-m", "pytest", "tests/test_gpu.py", "-v", "-n", str(processes), "-p", "no:cacheprovider",
        "--tb=short", "--durations=20", "-rsfE", "--color=no", "-o", "console_output_style=classic",
    ]  # fmt: skip
    os.environ["RNNZOO_GPU_UNTIL"] = str(time.time() + seconds - 20)  # so that what failed can be told
    code, taken = run(command, seconds - 10, log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    counts = {word: sum(f" {word} " in f"{line} " and "::" in line for line in lines if line.startswith("[gw"))
              for word in ("PASSED", "FAILED", "SKIPPED", "ERROR")}  # fmt: skip
    say(out, f"proof: {counts}, pytest's code {code}, {taken:.0f} s")
    say(out, *dict.fromkeys(line[:300] for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))))


def train(out: Path, seconds: float) -> list[subprocess.Popen[bytes]]:
    """Begin all training runs at once, in processes of their own."""
    folder = out.parent / f"{out.name}_made_up"
    text, reviews = made_up(folder)
    import torch

    runs = dict(RUNS)
    if torch.cuda.device_count() > 1:
        runs["char_lm, lstm, all GPUs"] = (*RUNS["char_lm, lstm (native)"], "hardware=multi_gpu")
    processes = []
    for number, (name, arguments) in enumerate(runs.items()):
        given = [a.format(text=text, reviews=reviews) for a in arguments]
        if not any(a.startswith("hardware=") for a in given):
            given.append("hardware=gpu")
        command = ["timeout", "--signal=INT", "--kill-after=5", str(seconds), sys.executable, "train.py", *given]
        command.append(f"hydra.run.dir={folder / f'run{number}'}")
        log = (folder / f"run{number}.log").open("wb")
        log.write(f"== {name}: {' '.join(given)}\n".encode())
        log.flush()
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))
    return processes


def trained(out: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the training runs, and keep what they left."""
    folder = out.parent / f"{out.name}_made_up"
    with (out / "training.txt").open("w", encoding="utf-8") as file:
        for number, process in enumerate(processes):
            code = process.wait()
            log = (folder / f"run{number}.log").read_text(encoding="utf-8", errors="replace")
            summary = folder / f"run{number}" / "summary.json"
            found = json.loads(summary.read_text()) if summary.exists() else {}
            print(log, f"code {code}", json.dumps(found, indent=1), sep="\n", file=file)
            keys = ("seconds_training", "steps_per_second", "peak_gpu_memory_mib")
            some = ", ".join(f"{key} {found[key]}" for key in keys if key in found)
            say(out, f"{log.partition(chr(10))[0]} -> code {code}; {some}; {found.get('metrics', {})}"[:600])


def made_up(folder: Path) -> tuple[Path, Path]:
    """A text of 300,000 characters and 2,000 reviews, drawn by chance: what is learned from them says nothing."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text(" ".join(draw.choices(words, k=50_000))[:300_000])
    reviews = folder / "aclImdb"
    for split in ("train", "test"):
        for label, good in (("pos", "fine"), ("neg", "dull")):
            (reviews / split / label).mkdir(parents=True, exist_ok=True)
            for number in range(500):
                some = draw.choices([*words, *[good] * 300], k=draw.randint(20, 500))
                (reviews / split / label / f"{number}.txt").write_text(" ".join(some))
    return text, reviews


def measure(out: Path, processes: int, prepared_by: float, done_by: float) -> None:
    context = multiprocessing.get_context("spawn")
    lock, cases = context.Lock(), [case for case in CASES if case[:2] not in TOO_LARGE]
    ready = context.Barrier(processes + 1)
    with (out / "bench.csv").open("w", newline="", encoding="utf-8") as file:
        from rnnzoo.bench_report import COLUMNS

        csv.DictWriter(file, COLUMNS).writeheader()
    training = train(out, max(prepared_by - time.monotonic() - 8, 10))
    workers = [
        context.Process(target=work, args=(out, cases[k::processes], ready, lock, prepared_by, done_by))
        for k in range(processes)
    ]
    for worker in workers:
        worker.start()
    trained(out, training)
    meet(ready, prepared_by)
    say(out, "all is prepared, and timed one after another from now on")
    for worker in workers:
        worker.join(max(done_by - time.monotonic(), 0))
    late = [worker for worker in workers if worker.is_alive()]
    for worker in late:
        worker.kill()
    say(out, f"{len(late)} of {processes} processes did not end in time" if late else "all processes have ended")


def meet(ready: Any, until: float) -> None:
    """Wait for all others, but not for longer."""
    from threading import BrokenBarrierError

    with suppress(BrokenBarrierError):
        ready.wait(max(until - time.monotonic(), 0.1))


def work(out: Path, cases: list[Any], ready: Any, lock: Any, prepared_by: float, done_by: float) -> None:
    """Prepare cases beside other processes, then time them while no other does."""
    import torch

    from rnnzoo import bench, bench_report
    from rnnzoo.engine import serial

    installed = [package for package in bench.PACKAGES if importlib.util.find_spec(package)]
    rivals = ("loop", "native", "scan", "operations", *serial.loops("cuda"), "torch", *installed)
    prepared = []
    for cell, size, dtype in cases:
        if time.monotonic() > prepared_by - 10:
            break
        case = bench.Case(cell, bench.Size(*size))
        setting = bench.Setting(rivals, dtype=dtype, device="cuda", rounds=ROUNDS if size[0] < 1000 else 1)
        start = time.monotonic()
        try:
            prepared.append((case, setting, bench.prepare(case, setting)))
            with lock:
                say(out, f"prepared {cell} {size} {dtype} in {time.monotonic() - start:.0f} s")
        except Exception as error:  # one case that fails leaves the others
            with lock:
                say(out, f"{cell} {size} {dtype}: {type(error).__name__}: {str(error)[:500]}")
        torch.cuda.empty_cache()
    meet(ready, prepared_by)
    for case, setting, contenders in prepared:
        with lock:
            if time.monotonic() > done_by - 5:
                return
            try:
                bench.contend(case, contenders, setting.rounds)
            except Exception as error:
                say(out, f"{case.cell} {case.size} {setting.dtype}: {type(error).__name__}: {str(error)[:500]}")
            torch.cuda.empty_cache()
            with (out / "bench.csv").open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, bench_report.COLUMNS)
                writer.writerows({**row, "machine": bench.machine(setting)} for row in bench_report._rows(case))


def table(out: Path) -> list[str]:
    """Times of forward and backward by contender, ms; sorted by cell."""
    with (out / "bench.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["cell"], ",".join(row[k] for k in "TBIH"), row["machine"].rpartition(", ")[2])
        shown = f"{float(row['fwdbwd_ms']):.4g}" if row["fwdbwd_ms"] else "refused"
        cases.setdefault(key, {})[row["contender"]] = shown + (
            f" ({row['engine']})" if row["contender"] == "rnnzoo" else ""
        )
    lines = ["forward and backward, ms", " | ".join(["cell", "T,B,I,H", "dtype", *names])]
    return lines + [
        " | ".join([*key, *(found.get(name, "") for name in names)]) for key, found in sorted(cases.items())
    ]


if __name__ == "__main__":
    sys.exit(main())
