"""What the slices add up to: summaries per server, and tables of them in Markdown.

Owns: the arithmetic. Pure: measurements in, figures out.
Leaves: where they are kept to ``results``.

Three ratios are given between two servers, because they fail differently. *Best* compares the
cheapest slices, which other work on the machine disturbed least; *median* compares the usual
ones; *paired* is the median of the ratios within each round, which follows a machine that grows
slower or faster during the run.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from .load import Slice
from .scenarios import Goal

Summary = dict[str, Any]


def summarise(
    slices: Mapping[str, Sequence[Slice]], references: Sequence[str]
) -> dict[str, Summary]:
    """One summary per server that answered, with its ratios to each of ``references``."""
    usable = {name: [s for s in of if s.messages] for name, of in slices.items()}
    usable = {name: of for name, of in usable.items() if of}
    summaries = {name: _alone(of) for name, of in usable.items()}
    for name, of in usable.items():
        summaries[name]["ratios"] = {
            reference: _ratios(of, usable[reference])
            for reference in references
            if reference in usable
        }
    return summaries


def _alone(slices: Sequence[Slice]) -> Summary:
    best = min(slices, key=lambda s: s.cost)
    user = sum(s.user for s in slices) / sum(s.cpu for s in slices)
    usual = median(s.cost for s in slices)
    seconds = sum(s.seconds for s in slices)
    return {
        "rounds": len(slices),
        "best_us": round(best.cost, 4),
        "best_user_us": round(best.user / best.messages, 4),
        "best_system_us": round(best.system / best.messages, 4),
        "median_us": round(usual, 4),
        # The kernel samples the split: all rounds together say more than one.
        "median_user_us": round(usual * user, 4),
        "median_system_us": round(usual * (1 - user), 4),
        "messages_per_second": round(median(s.rate for s in slices)),
        "best_messages_per_second": round(max(s.rate for s in slices)),
        "p50_us": round(median(s.p50 for s in slices), 2),
        "p99_us": round(median(s.p99 for s in slices), 2),
        "max_us": max(s.longest for s in slices),
        "busy": round(sum(s.cpu for s in slices) / seconds / 1e6, 4),
        "waited": round(sum(s.waited for s in slices) / seconds / 1e6, 4),
        "errors": sum(s.errors for s in slices),
        "sent": sum(s.sent for s in slices),
        "skipped": sum(s.skipped for s in slices),
        "lost": sum(s.lost for s in slices),
        "dropped": sum(s.dropped for s in slices),
        "lost_ppm": _per_million(sum(s.lost for s in slices), sum(s.sent for s in slices)),
        "best_lost_ppm": min(_per_million(s.lost, s.sent) for s in slices),
        "median_lost_ppm": median(_per_million(s.lost, s.sent) for s in slices),
    }


def _per_million(part: int, whole: int) -> float:
    return round(1e6 * part / whole, 1) if whole else 0.0


def _ratios(slices: Sequence[Slice], reference: Sequence[Slice]) -> Summary:
    other = {s.round: s.cost for s in reference}
    paired = sorted(s.cost / other[s.round] for s in slices if s.round in other)
    return {
        "best": round(min(s.cost for s in slices) / min(other.values()), 4),
        "median": round(median(s.cost for s in slices) / median(other.values()), 4),
        "paired": round(median(paired), 4) if paired else None,
        "paired_lowest": round(paired[0], 4) if paired else None,
        "paired_highest": round(paired[-1], 4) if paired else None,
    }


Column = tuple[str, Callable[[Summary], str]]


def table(summaries: Mapping[str, Summary], references: Sequence[str]) -> str:
    """CPU per message, ratios, rates and latencies: one row per server."""
    columns: list[Column] = [
        ("best us", lambda s: f"{s['best_us']:.2f}"),
        ("median us", lambda s: f"{s['median_us']:.2f}"),
        ("user + system", lambda s: f"{s['median_user_us']:.2f} + {s['median_system_us']:.2f}"),
    ]
    columns += [(f"/ {name}: best, median, paired", _ratio_cell(name)) for name in references]
    columns += [
        ("messages/s", lambda s: f"{s['messages_per_second']:,}"),
        ("p50 us", lambda s: f"{s['p50_us']:.0f}"),
        ("p99 us", lambda s: f"{s['p99_us']:.0f}"),
        ("busy", lambda s: f"{s['busy']:.0%}"),
        ("waited", lambda s: f"{s['waited']:.1%}"),
        ("errors", lambda s: str(s["errors"])),
    ]
    if any(s["sent"] for s in summaries.values()):
        columns += _LOSSES
    return _markdown(summaries, columns)


_LOSSES: list[Column] = [
    ("sent", lambda s: f"{s['sent']:,}"),
    ("lost", lambda s: f"{s['lost']:,}"),
    ("lost ppm: best, median", lambda s: f"{s['best_lost_ppm']:.0f}, {s['median_lost_ppm']:.0f}"),
    ("dropped by its socket", lambda s: f"{s['dropped']:,}"),
]


def _ratio_cell(reference: str) -> Callable[[Summary], str]:
    def cell(summary: Summary) -> str:
        ratios = summary["ratios"].get(reference)
        if not ratios or ratios["paired"] is None:
            return ""
        return ", ".join(f"{ratios[key]:.2f}" for key in ("best", "median", "paired"))

    return cell


def goals(slices: Mapping[str, Sequence[Slice]], wanted: Sequence[Goal]) -> list[Summary]:
    """What became of each goal whose servers were measured."""
    costs = {name: {s.round: s.cost for s in of if s.messages} for name, of in slices.items()}
    return _goals(costs, wanted)


def memory_goals(
    samples: Mapping[str, Sequence[Mapping[str, float]]], wanted: Sequence[Goal]
) -> list[Summary]:
    """The same, in KiB per idle connection."""
    sizes = {name: dict(enumerate(s["pss_kib"] for s in of)) for name, of in samples.items()}
    return _goals(sizes, wanted)


def _goals(costs: Mapping[str, Mapping[int, float]], wanted: Sequence[Goal]) -> list[Summary]:
    found = []
    for goal in wanted:
        others = [name for name in goal.against if costs.get(name)]
        if not costs.get(goal.server) or not others:
            continue
        own = costs[goal.server]
        against = min(others, key=lambda name: median(costs[name].values()))
        other = costs[against]

        def compare(mine: float, theirs: float, added: bool = goal.added) -> float:
            return mine - theirs if added else mine / theirs

        paired = [compare(own[number], other[number]) for number in own if number in other]
        if paired:
            found.append(
                {
                    "server": goal.server,
                    "against": against,
                    "at_most": goal.at_most,
                    "unit": "us more" if goal.added else "ratio",
                    "best": round(compare(min(own.values()), min(other.values())), 4),
                    "median": round(compare(median(own.values()), median(other.values())), 4),
                    "paired": round(median(paired), 4),
                }
            )
    return found


def goals_table(found: Sequence[Summary]) -> str:
    """How little a server should cost, and what it did cost: one row per goal."""
    rows = {}
    for goal in found:
        sign = "-" if goal["unit"] == "us more" else "/"
        rows[f"{goal['server']} {sign} {goal['against']}"] = goal
    columns: list[Column] = [
        ("goal, at most", lambda g: f"{g['at_most']:.2f}{' us' * (g['unit'] == 'us more')}"),
        ("best", lambda g: f"{g['best']:.2f}"),
        ("median", lambda g: f"{g['median']:.2f}"),
        ("paired", lambda g: f"{g['paired']:.2f}"),
        ("met", lambda g: "yes" if g["median"] <= g["at_most"] else "no"),
    ]
    return _markdown(rows, columns)


def summarise_memory(
    samples: Mapping[str, Sequence[Mapping[str, float]]], baseline: str
) -> dict[str, Summary]:
    """KiB per idle connection of each server, and what that is above ``baseline``'s."""
    summaries: dict[str, Summary] = {}
    for name, of in samples.items():
        if of:
            summaries[name] = {
                "rounds": len(of),
                "errors": sum(int(s["errors"]) for s in of),
                **{key: round(median(s[key] for s in of), 4) for key in _MEMORY},
                "best_pss_kib": round(min(s["pss_kib"] for s in of), 4),
            }
    for summary in summaries.values():
        if baseline in summaries:
            above = summary["pss_kib"] - summaries[baseline]["pss_kib"]
            summary["above_baseline_kib"] = round(above, 4)
    return summaries


_MEMORY = ("pss_kib", "rss_kib", "empty_pss_kib")


def memory_table(summaries: Mapping[str, Summary], baseline: str) -> str:
    """KiB per idle connection: one row per server."""
    columns: list[Column] = [
        ("KiB per connection (PSS)", lambda s: f"{s['pss_kib']:.2f}"),
        ("best", lambda s: f"{s['best_pss_kib']:.2f}"),
        ("RSS", lambda s: f"{s['rss_kib']:.2f}"),
        (f"above {baseline}", lambda s: f"{s.get('above_baseline_kib', float('nan')):+.2f}"),
        ("server without connections, MiB", lambda s: f"{s['empty_pss_kib'] / 1024:.1f}"),
        ("errors", lambda s: str(s["errors"])),
    ]
    return _markdown(summaries, columns)


def _markdown(summaries: Mapping[str, Summary], columns: Sequence[Column]) -> str:
    rows = [["server", *(title for title, _ in columns)]]
    rows += [[name, *(cell(of) for _, cell in columns)] for name, of in summaries.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(_pad(row, widths)) + " |" for row in rows]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first = row[0].ljust(widths[0])
    return [first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
