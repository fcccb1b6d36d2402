"""The page: for each comparison a sentence, the table, the plots, the notes, and the provenance of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from parallel.results.comparison import Comparison, Result, describe
from parallel.results.notes import notes
from parallel.results.records import Record
from parallel.results.report import charts, curves
from parallel.results.report.style import STYLE
from parallel.results.table import NUMBERS, RESULTS, TIMES, WHO, cells, seconds, size


@dataclass(frozen=True)
class Section:
    """A further part of the page, after the comparisons: what else stands beside the measurements."""

    title: str
    body: str
    """HTML."""


def write_report(path: Path, comparisons: Sequence[Comparison], sections: Sequence[Section] = ()) -> None:
    """Write the report to one file that makes no request to anything."""
    path.write_text(page(comparisons, sections), encoding="utf-8")


def page(comparisons: Sequence[Comparison], sections: Sequence[Section] = ()) -> str:
    """The report as HTML."""
    records = [record for c in comparisons for result in c.results for record in result.records]
    dates = sorted({record.finished[:10] for record in records if record.finished})
    hosts = sorted({str(record.environment["host"]) for record in records if record.environment.get("host")})
    about = ", ".join([*([_count(len(records), "run")] if records else []), *dates[-1:], *hosts])
    parts = [_comparison(c, alone=len(comparisons) == 1) for c in comparisons]
    parts += [f"<section><h2>{escape(s.title)}</h2>{s.body}</section>" for s in sections]
    foot = ("Speedup is the ratio of median epoch times; its 95&nbsp;% interval comes from a bootstrap over epochs. "
            "Efficiency is speedup per worker.")
    return document("Training strategies compared", about, "".join(parts), foot)


def document(title: str, about: str, body: str, foot: str) -> str:
    """A page that needs nothing else; `body` and `foot` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<p class="eyebrow">{escape(about)}</p><h1>{escape(title)}</h1>'
        f"{body}<footer>{foot}</footer></main></body></html>\n"
    )


def _comparison(comparison: Comparison, alone: bool) -> str:
    results = comparison.results
    figures = []
    if any(result.speedup for result in results):
        figures.append(_figure("Speedup", "Bar: ratio of median epoch times to the baseline; whiskers: 95 % interval; "
                               "dashed: linear in the workers.", _drawn(charts.speedup_bars(results))))
    scaling = curves.by_workers(results)
    if scaling:
        figures.append(_figure("Scaling", "Speedup over the baseline by number of workers.",
                               f'<div class="figure curves"><div>{scaling}</div></div>'))
    figures.append(_figure("Epoch times", "Box: quartiles; thick line: median; diamond: mean; whiskers: minimum and "
                           "maximum; every dot an epoch. The axis need not start at zero.",
                           _drawn(charts.box_plot(results))))
    if any(result.time_split() for result in results):
        figures.append(_figure("Where an epoch goes", "Mean over epochs and workers.",
                               _legend(results) + _drawn(charts.split_bars(results))))
    figures.append(_curves(results))
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(comparison))
    runs = "".join(_provenance(result, record) for result in results for record in result.records)
    title = "" if alone else f"<h2>{escape(describe(comparison.workload))}</h2>"
    return (
        f'<section>{title}<p class="where">{f"<b>{escape(describe(comparison.workload))}</b><br>" if alone else ""}'
        f'{escape(comparison.hardware)}</p><p class="lead">{headline(results)}</p>{_table(results)}'
        f'<ul class="notes">{listed}</ul>{"".join(figures)}<h3>Provenance</h3>{runs}</section>'
    )


def headline(results: Sequence[Result]) -> str:
    """The result in a sentence, as HTML."""
    rivals = [result for result in results if result.role == "" and result.speedup is not None]
    if not rivals:
        best = min(results, key=lambda result: result.epoch_s.median)
        return f"{_name(best)}: a median epoch of {seconds(best.epoch_s.median)} s."
    best = max(rivals, key=lambda result: result.speedup.ratio if result.speedup else 0)
    ratio = best.speedup
    if ratio is None:
        raise ValueError(f"{best.label} has no speedup")
    known = ratio.low is not None and ratio.high is not None
    interval = f", 95&nbsp;% interval {ratio.low:.2f}–{ratio.high:.2f}" if known else ""
    if ratio.ratio <= 1:
        return (f"No strategy is faster than the baseline. The closest is {_name(best)}, at "
                f"{ratio.ratio:.2f}× its speed{interval}.")
    unsure = "" if ratio.low is None or ratio.low > 1 else " The interval holds 1: this may be chance."
    return (f"{_name(best)} is fastest: <b>{ratio.ratio:.2f}×</b> the baseline{interval}; a median epoch of "
            f"{seconds(best.epoch_s.median)}&nbsp;s.{unsure}")


def _name(result: Result) -> str:
    return f'<b style="color:{charts.colour(result)}">{escape(result.label)}</b> on {escape(charts.where(result))}'


def _table(results: Sequence[Result]) -> str:
    names, lines = cells(results, WHO + TIMES + RESULTS)
    faster = [result for result in results if result.role == "" and result.speedup and result.speedup.ratio > 1]
    fastest = max(faster, default=None, key=lambda result: result.speedup.ratio if result.speedup else 0)
    before, after = names.index(NUMBERS[0]), len(names) - names.index(NUMBERS[-1]) - 1
    groups = [(before, ""), (len(NUMBERS), "epoch time, s"), (after, "")]
    group = "".join(f'<th class="{"group" if name else "none"}" colspan="{width}">{name}</th>'
                    for width, name in groups if width)
    head = "".join(f'<th class="{_kind(name)}">{escape(name)}</th>' for name in names)
    body = []
    for result, line in zip(results, lines, strict=True):
        chip = f'<span class="chip" style="background:{charts.colour(result)}"></span>'
        role = f'<span class="role">{charts.ROLES[result.role]}</span>' if result.role else ""
        line = ["" if cell == "-" else escape(cell) for cell in line]
        line[0] = chip + line[0]
        line[names.index("scheme") if "scheme" in names else 0] += role
        tds = "".join(f'<td class="{_kind(name)}">{cell}</td>' for name, cell in zip(names, line, strict=True))
        body.append(f'<tr class="{"best" if result is fastest else result.role}">{tds}</tr>')
    return (f'<div class="table"><table><thead><tr>{group}</tr><tr>{head}</tr></thead>'
            f'<tbody>{"".join(body)}</tbody></table></div>')


def _kind(column: str) -> str:
    """The CSS classes of a column: words stand left, the numbers to look at first are heavier."""
    return {"strategy": "word key", "scheme": "word", "median": "key", "speedup": "key"}.get(column, "")


def _curves(results: Sequence[Result]) -> str:
    fields = (("train_loss", "Training loss", 1.0, ""), ("val_loss", "Validation loss", 1.0, ""),
              ("val_top1", "Top-1 accuracy", 100.0, " %"), ("val_top5", "Top-5 accuracy", 100.0, " %"))
    known = [field for field in fields if any(result.curve(field[0]) for result in results)]
    if not known:
        return ""
    told = ""
    if sum(bool(result.curve("train_loss")) for result in results) > 1:
        largest = curves.largest_difference(results, "train_loss")
        told = (f"The training losses of all results differ by at most {largest:.2g} after the same epoch. "
                "Curves on top of one another are drawn as bands.")
    drawn = "".join(f"<div>{curves.by_epoch(results, *field)}</div>" for field in known)
    return _figure("Loss and accuracy", told, f'<div class="figure curves">{drawn}</div>')


def _figure(title: str, caption: str, body: str) -> str:
    return f'<h3>{escape(title)}</h3><p class="caption">{escape(caption)}</p>{body}'


def _drawn(svg: str) -> str:
    return f'<div class="figure">{svg}</div>'


def _legend(results: Sequence[Result]) -> str:
    splits = [parts for result in results if (parts := result.time_split())]
    names = "".join(f'<span style="--c:var({css})">{name}</span>' for key, name, css in charts.PARTS
                    if any(parts[key] > 0.001 * sum(parts.values()) for parts in splits))
    return f'<div class="legend">{names}</div>'


def _provenance(result: Result, record: Record) -> str:
    env = dict(record.environment)
    dirty = {True: " with uncommitted changes", False: "", None: ""}[env.pop("git_dirty", None)]
    commit = env.pop("git_commit", None)
    shown: dict[str, Any] = {
        "run": record.name, "sweep": record.sweep, "record": record.directory, "command": record.command,
        "started": record.started, "finished": record.finished, "commit": commit and f"{commit}{dirty}",
        "device": record.device, "backend": record.backend, "workers": record.workers,
        "threads per worker": record.threads, "untimed warm-up steps": record.warmup_steps,
        "parameters": record.parameters and f"{record.parameters:,} ({size(record.parameter_bytes)})",
        "forward FLOPs an image": record.forward_flops and f"{record.forward_flops:,}",
        "largest memory of a worker": result.peak_memory_bytes and size(result.peak_memory_bytes),
        **{k.replace("_", " "): v for k, v in env.items() if k != "variables"},
        "environment variables": ", ".join(f"{k}={v}" for k, v in (env.get("variables") or {}).items()),
    }
    if shown.get("memory bytes"):
        shown["memory"] = size(shown.pop("memory bytes"))
    lines = "".join(f"<tr><td>{escape(k)}</td><td>{escape(_plain(v))}</td></tr>" for k, v in shown.items()
                    if v not in (None, "", []))
    config = "".join(f"{group}.{name}={_plain(value)}\n" for group, values in record.config.items()
                     if isinstance(values, dict) for name, value in values.items() if value is not None)
    texts = "".join(f"<p>{title}</p><pre>{escape(text)}</pre>" for title, text in
                    (("Plan", record.plan), ("Configuration", config)) if text)
    about = f"{charts.where(result)}, {_count(len(record.epochs), 'epoch')}"
    return (f"<details><summary><b>{escape(result.label)}</b> <span>{escape(about)}</span></summary>"
            f"<table>{lines}</table>{texts}</details>")


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
