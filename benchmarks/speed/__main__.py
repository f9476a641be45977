"""Every speed benchmark at a size that takes minutes; results go to `benchmarks/results`.

    python -m benchmarks.speed            # about ten minutes on 2 CPU cores
    python -m benchmarks.speed --full     # the sizes of the stated targets

Each runs in a process of its own, so that one's memory and threads do not colour the next.
"""

import argparse
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the sizes of the stated targets")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = 1_000_000 if options.full else 200_000
    cases = ["--cases", "S", "M", "L"] if options.full else ["--cases", "quick", "--limit-s", "60"]
    store = _run("store", ["--rows", str(rows), "--json"], capture=True)
    (options.output / "speed-store.json").write_text(store)
    print(store)
    pools = [] if options.full else ["--small", "2000", "--large", "96", "--memory", "2000"]
    tuned = [] if options.full else ["--batch", "16", "--images", "512", "--repeats", "5"]
    for name, arguments in (
        ("strategies", cases),
        ("proxies", []),
        ("embed", pools),
        ("finetune", tuned),
    ):
        _run(name, [*arguments, "--json", str(options.output / f"speed-{name}.json")])


def _run(name: str, arguments: list[str], *, capture: bool = False) -> str:
    print(f"== {name}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.speed.{name}", *arguments],
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout or ""


if __name__ == "__main__":
    main()
