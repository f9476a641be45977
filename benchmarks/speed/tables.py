"""The records of `benchmarks.speed.strategies` as Markdown: time by pool, and peers beside ours.

python -m benchmarks.speed.tables benchmarks/results/speed-strategies.json
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.peers import COMPARISONS
from svp.strategies.catalog import STRATEGIES

Record = Mapping[str, Any]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Records of strategies' speed as Markdown.")
    parser.add_argument("records", nargs="+", type=Path, help="JSON files, whose cases are joined")
    cases = [
        case
        for path in parser.parse_args().records
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]
    ]
    print("\n".join(times(cases)))
    print()
    print("\n".join(peers(cases)))


def times(cases: Sequence[Record]) -> Iterator[str]:
    """Yield a table of seconds, a column per pool, and what the largest pool that ran held."""
    names = [case["case"]["name"] for case in cases]
    yield f"| strategy | {' | '.join(names)} | memory | of the product rate |"
    yield "|---|" + "---|" * (len(names) + 2)
    for strategy in (listed.name for listed in STRATEGIES):
        rows = [_row(case, strategy) for case in cases]
        timed = [row for row in rows if row is not None and "seconds" in row]
        if not timed:
            yield f"| {strategy} |" + " – |" * (len(names) + 2)
            continue
        last = timed[-1]
        cells = " | ".join(_seconds(row) for row in rows)
        memory = f"{last['peak_bytes'] / 2**20:,.0f} MiB"
        yield f"| {strategy} | {cells} | {memory} | {last['share_of_product_rate']:.0%} |"


def peers(cases: Sequence[Record]) -> Iterator[str]:
    """Yield a table of what peers took for the same call, and how many picks are the same."""
    yield "| pool | strategy | ours | peer | theirs | ratio | same picks |"
    yield "|---|---|---|---|---|---|---|"
    for case in cases:
        for row in case["rows"]:
            for peer in row.get("peers", ()):
                yield _peer(case["case"]["name"], row, peer)


def number(x: float) -> str:
    """Return two digits of a small number and all of a large one."""
    return f"{x:,.0f}" if x >= 99.5 else f"{x:.2g}"


def _row(case: Record, strategy: str) -> Record | None:
    """Return the row of the default form, else of a cheaper one, else None."""
    forms = [row for row in case["rows"] if row["strategy"].split(":")[0] == strategy]
    done = [row for row in forms if "seconds" in row]
    plain = [row for row in done if row["strategy"] == strategy]
    return next(iter([*plain, *done, *forms]), None)


def _seconds(row: Record | None) -> str:
    if row is None or "seconds" not in row:
        return "–"
    form = row["strategy"].partition(":")[2]
    return number(row["seconds"]) + (f" ({form})" if form else "")


def _peer(pool: str, row: Record, peer: Record) -> str:
    start = f"| {pool} | {row['strategy']} | {number(row['seconds'])} s | {peer['peer']}"
    if "seconds" not in peer:
        return f"{start} | {_why(peer)} | – | – |"
    seconds = peer["seconds"] + peer["forward_s"]
    projected = ", projected" if "projected_from" in peer else ""
    ratio = number(peer["times_faster"])
    return f"{start} | {number(seconds)} s{projected} | {ratio} | {_same(row['strategy'], peer)} |"


def _why(peer: Record) -> str:
    if "more_than_bytes" in peer:
        return f"over {peer['more_than_bytes'] / 1e9:.0f} GB"
    if "more_than_s" in peer:
        return f"over {peer['more_than_s']:.0f} s"
    return str(peer.get("failed", "failed"))


def _same(strategy: str, peer: Record) -> str:
    names = (peer["peer"], peer["method"])
    kind = next(
        one.same
        for one in COMPARISONS
        if one.strategy == strategy and (one.peer, one.method) == names
    )
    agreement = peer.get("agreement")
    if not kind or agreement is None:
        return "both draw at random"
    if f"peer_{kind}" in agreement:
        ours, theirs = agreement[kind], agreement[f"peer_{kind}"]
        return (
            f"{agreement['equal']} of {agreement['picks']}; {kind} {ours:.4g}, theirs {theirs:.4g}"
        )
    return f"{agreement['equal']} of {agreement['picks']}"


if __name__ == "__main__":
    main()
