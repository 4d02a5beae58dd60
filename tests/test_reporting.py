"""The report of a sweep: its numbers are the ledger's, and the page is one safe file that is readable at any size."""

import html
import itertools
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigError
from orchestrator.commands.printing.ledger import print_report
from orchestrator.commands.terminal import plain
from orchestrator.config import Experiment
from orchestrator.configfile import validate
from orchestrator.document import parse_document
from orchestrator.evidence.ledger import Goal, summarize
from orchestrator.evidence.record import Cell, busy_seconds
from orchestrator.reporting.charts import Offer, average, pareto_front
from orchestrator.reporting.page import commands, experiment_yaml, notebook_html, render_report, write_report
from orchestrator.reporting.scales import Scale, scale_of
from orchestrator.reporting.sentences import outcome_of
from orchestrator.reporting.tables import report_data, write_parquet
from orchestrator.reporting.words import number
from orchestrator.sweep import NotebookResult
from orchestrator.sweeping.budget import Prediction
from orchestrator.sweeping.record import Arm, SweepRecord, SweepResult

TECHNIQUES: dict[str, list[Any]] = {
    "techniques.activation": ["tanh", "relu"],
    "techniques.initialization": ["constant", "normalized"],
    "techniques.regularization": ["penalty", "layers"],
    "techniques.gradient": ["batch", "stochastic"],
}
EFFECTS = {"relu": 0.06, "normalized": 0.02, "stochastic": 0.11}
VOID = {"meta", "link", "br"}
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }} \u202e漢字"


def sweep_result(
    factors: dict[str, list[Any]] = TECHNIQUES,
    *,
    seeds: int = 5,
    failing: tuple[tuple[int, int], ...] = (),
    why: bool = True,
    epochs: int = 6,
    error: str = "Traceback\nOutOfMemoryError: no memory left",
    target: float | None = None,
    **options: Any,
) -> SweepResult:
    """A sweep with known effects: `EFFECTS`, relu's doubled by normalized, and seeds that differ."""
    experiment = Experiment.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"type": "mlp", "hidden": [64, 64]},
            "train": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.05},
            "sweep": {"vary": {"techniques.activation": ["tanh", "relu"]}, "seeds": seeds},
        }
    )
    combinations = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    arms = [Arm(name=f"arm-{i:02d}", settings=s, experiment=experiment) for i, s in enumerate(combinations)]
    cells = [
        _cell(i, arm, seed, failed=(i, seed) in failing, why=why, epochs=epochs, error=error)
        for seed in range(seeds)
        for i, arm in enumerate(arms)
    ]
    record = SweepRecord(
        sweep="digits-mlp-20261122-101500-a1b2-sweep",
        state="finished",
        created="2026-11-22T10:15:00Z",
        experiment=experiment,
        arms=arms,
        seeds=list(range(seeds)),
        metric="accuracy",
        higher_is_better=True,
    )
    chosen = {arm.name: arm.settings for arm in arms}
    ledger = summarize(cells, arms=chosen, goal=Goal("accuracy", higher_is_better=True, target=target), **options)
    return SweepResult(record.sweep, ledger, cells, record, 81.5)


def _cell(index: int, arm: Arm, seed: int, *, failed: bool, why: bool, epochs: int, error: str) -> Cell:
    noise = random.Random(f"{index} {seed}")
    levels = {str(level) for level in arm.settings.values()}
    accuracy = 0.7 + sum(EFFECTS.get(level, 0.0) for level in levels) + noise.gauss(0, 0.008) + 0.004 * seed
    accuracy += 0.04 * ({"relu", "normalized"} <= levels)
    seconds = 2.0 + ("layers" in levels) + 1.5 * ("stochastic" in levels) + noise.random() / 5
    run = f"digits-mlp-sweep.{arm.name}.s{seed}"
    if failed:
        return Cell(arm=arm.name, seed=seed, run=run, state="failed", seconds=seconds / 3, error=error)
    history: list[dict[str, Any]] = []
    for epoch in range(epochs):
        reached = accuracy - 0.5 * math.exp(-1.1 * epoch) + noise.gauss(0, 0.01)
        history.append({"epoch": epoch + 1, "accuracy": reached, "seconds": seconds / epochs})
        if why:
            history[-1]["why"] = [_why(layer, epoch, levels, noise) for layer in range(3)]
    # without validation: the shape of an entry is the ledger's affair
    cell = Cell(arm=arm.name, seed=seed, run=run, state="finished", metrics={"accuracy": accuracy}, seconds=seconds)
    return cell.model_copy(update={"history": history})


def _why(layer: int, epoch: int, levels: set[str], noise: random.Random) -> dict[str, Any]:
    relu, depth = "relu" in levels, 1.0 if "normalized" in levels else 0.25 ** (layer + 1)
    return {
        "layer": f"hidden.{layer}",
        "samples": 64,
        "dead": 0.02 * (layer + epoch) + noise.random() / 50 if relu else 0.0,
        "saturated": None if relu else 0.1 + 0.05 * epoch + noise.random() / 20,
        "variance": depth * (1 + noise.random() / 5),
        "gradient_norm": depth * math.exp(-0.2 * epoch) * (1 + noise.random() / 5),
        "update_ratio": 1e-3 * (1 + noise.random()) / (1 + layer),
    }


class Parsed(HTMLParser):
    """Text, addresses and exact numbers of a page whose tags are all closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.numbers: list[tuple[float, str]] = []
        self.words: list[str] = []
        self._value: str | None = None
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self._value = dict(attrs).get("value") if tag == "data" else None
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._value is not None and self.open[-1] == "data":
            if self._value != "None":
                self.numbers.append((float(self._value), data))
            self._value = None

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page_of(result: SweepResult) -> Parsed:
    """The page, after checks that hold for every one."""
    page = render_report(result)
    parsed = Parsed(page)
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    addresses = [
        value for name, value in parsed.attributes if name in ("src", "href", "srcset", "xlink:href", "action")
    ]
    assert addresses == ["data:,"]
    styles = "".join(re.findall(r"<style>.*?</style>", page, flags=re.S))
    assert not re.search(r"https?:|//|@import|url\(", styles)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "@media print" in styles
    assert "prefers-color-scheme: dark" in styles
    assert not re.search(
        r"\bnan\b|\binf\b", " ".join(v for n, v in parsed.attributes if n in ("d", "x", "width", "style"))
    )
    return parsed


def row_of(page: str, first: str) -> list[float]:
    """Exact numbers of the table row whose first cell has this text."""
    row = re.search(rf"<tr[^>]*><td[^>]*>{re.escape(html.escape(first))}(?: ★ winner)?</td>.*?</tr>", page, flags=re.S)
    assert row, first
    return [float(v) for v in re.findall(r'<data value="([^"]+)">', row[0]) if v != "None"]


def part(page: str, section: str) -> str:
    """From one anchor to the next."""
    found = re.search(rf' id="{section}">.*?(?= id="|</main>)', page, flags=re.S)
    assert found, section
    return found[0]


FAILING = ((3, 1), (7, 0), (7, 4))


@pytest.fixture(scope="module")
def result() -> SweepResult:
    price = {f"arm-{i:02d}": 3.6 for i in range(16)}
    return sweep_result(failing=FAILING, target=0.75, dollars_per_hour=price)


@pytest.fixture(scope="module")
def page(result: SweepResult) -> str:
    return render_report(result)


def test_the_page_is_one_safe_well_formed_file(result: SweepResult, tmp_path: Path) -> None:
    parsed = page_of(result)
    wanted = {"verdict", "arms", "presets", "effects-accuracy", "why", "curves", "cost", "time", "notes", "repeat"}
    assert wanted <= set(parsed.ids)
    written = write_report(result, tmp_path / "report.html")
    assert written.read_text("utf-8") == render_report(result)
    assert written.stat().st_size < 1_000_000


def test_every_exact_number_is_shown_as_the_terminal_shows_it(page: str) -> None:
    shown = Parsed(page).numbers
    assert len(shown) > 500
    for value, text in shown:
        assert text in (number(value), f"{100 * value:.1f} %", f"{value:.0f}")


def test_the_verdict_and_what_is_clear_are_said_in_sentences(result: SweepResult) -> None:
    text = Parsed(render_report(result)).text
    row = next(row for row in result.ledger.arms if row.arm == result.ledger.arms[0].arm)
    assert result.ledger.reason in text
    assert number(row.mean) in text
    assert "Deep is better than traditional in accuracy" in text
    assert "techniques.gradient: stochastic is better than batch in accuracy" in text


def test_the_scoreboard_holds_every_arm_as_in_the_ledger(result: SweepResult, page: str) -> None:
    board = part(page, "arms")
    for row in result.ledger.arms:
        found = row_of(board, row.arm)
        costs = [row.responses[name].mean for name in ("seconds", "dollars")]
        assert found == [row.mean, row.low, row.high, row.reached, *costs]
        everything = [v for m in row.responses.values() for v in (m.mean, m.low, m.high)]
        assert row_of(board.split("Every response")[1], row.arm) == everything
    order = re.findall(r'<td class="arm">(arm-\d\d)', board.split("Every response")[0])
    assert order == [row.arm for row in result.ledger.arms]
    assert "4 (1 failed)" in board
    assert "3 (2 failed)" in board


def test_every_effect_and_its_intervals_are_the_ledgers(result: SweepResult, page: str) -> None:
    for response in result.ledger.responses:
        section = part(page, f"effects-{response.name}")
        for e in response.effects:
            numbers = [e.estimate, e.low, e.high, e.simultaneous_low, e.simultaneous_high, e.p, e.adjusted_p]
            assert row_of(section, f"{' × '.join(e.factors)}: {e.name}") == numbers


def test_the_shares_of_variance_and_the_means_are_the_ledgers(result: SweepResult, page: str) -> None:
    response = result.ledger.responses[0]
    section = part(page, "effects-accuracy")
    for v in response.variance:
        name = " × ".join(f.removeprefix("techniques.") for f in v.factors) or v.source
        numbers = [v.eta_squared, v.partial_eta_squared, v.sum_of_squares, v.f, v.p]
        assert row_of(section, name) == [n for n in numbers if n is not None]
    for m in response.means:
        name = ", ".join(f"{f.removeprefix('techniques.')} = {v}" for f, v in zip(m.factors, m.levels, strict=True))
        assert row_of(section, name)[-3:] == [m.mean, m.low, m.high]


def test_the_forest_plot_is_drawn_to_scale(result: SweepResult, page: str) -> None:
    forest = part(page, "effects-accuracy").split('class="effect foot"')[0]
    effects = result.ledger.responses[0].effects
    places = [
        [float(x) for x in found]
        for found in re.findall(
            r'class="zero" d="M([\d.]+) .*?class="outer" d="M([\d.]+) 5H([\d.]+)".*?class="dot" d="M([\d.]+) ',
            forest,
            flags=re.S,
        )
    ]
    assert len(places) == len(effects)
    per_percent = (effects[0].simultaneous_high - effects[0].simultaneous_low) / (places[0][2] - places[0][1])  # type: ignore[operator]
    for effect, (zero, low, high, at) in zip(effects, places, strict=True):
        assert (at - zero) * per_percent == pytest.approx(effect.estimate, abs=2 * per_percent / 100 + 1e-4)
        assert (high - low) * per_percent == pytest.approx(effect.simultaneous_high - effect.simultaneous_low, rel=0.01)  # type: ignore[operator]
    assert "← traditional is better" in forest
    assert "deep is better →" in forest


def test_sides_follow_the_direction_of_the_response(page: str) -> None:
    seconds = part(page, "effects-seconds")
    assert seconds.index("← deep is better") < seconds.index("traditional is better →")


def test_the_pareto_front_is_what_no_arm_beats_at_its_price(result: SweepResult, page: str) -> None:
    arms = [row for row in result.ledger.arms if row.mean is not None]
    price = {row.arm: row.responses["seconds"].mean for row in arms}
    best = {
        row.arm
        for row in arms
        if not any(price[o.arm] <= price[row.arm] and o.mean > row.mean for o in arms)  # type: ignore[operator]
    }
    table = part(page, "cost").split("the Pareto front")[1]
    assert set(re.findall(r'<tr><td class="arm">(arm-\d\d)', table)) == best


def test_of_arms_at_one_price_or_quality_the_front_keeps_one() -> None:
    offers = [Offer("a", 1, 0.5), Offer("b", 1, 0.6), Offer("c", 2, 0.6), Offer("d", 3, 0.4), Offer("e", 4, 0.9)]
    assert [o.arm for o in pareto_front(offers, higher_is_better=True)] == ["b", "e"]
    assert [o.arm for o in pareto_front(offers, higher_is_better=False)] == ["a", "d"]


def test_failed_trainings_are_named_with_their_errors(page: str) -> None:
    notes = part(page, "notes")
    assert len(re.findall(r"OutOfMemoryError: no memory left</span><details>", notes)) == len(FAILING)
    assert page.count('<rect class="bad"') == len(FAILING)


def test_the_why_panel_stands_beside_the_effect_that_it_explains(result: SweepResult, page: str) -> None:
    why = part(page, "why")
    relu = [
        c
        for c in result.cells
        if c.state == "finished" and result.record.arms[int(c.arm[-2:])].settings["techniques.activation"] == "relu"
    ]
    by_arm: dict[str, list[float]] = {}
    for cell in relu:
        rows: Any = cell.history[-1]["why"]
        by_arm.setdefault(cell.arm, []).append(rows[2]["dead"])
    expected = math.fsum(math.fsum(v) / len(v) for v in by_arm.values()) / len(by_arm)
    row = re.search(
        r'<td>hidden\.2</td><td class="text"><span [^>]*>relu</span></td><td><data value="([^"]+)"',
        why,
    )
    assert row
    assert float(row[1]) == pytest.approx(expected, rel=1e-9)
    activation = re.search(r"<h3>activation</h3>.*?<h4>", why, flags=re.S)
    assert activation
    assert "relu − tanh" in activation[0]
    assert "0 for every sample that was looked at (64 in an epoch)" in why
    legend = activation[0].split('class="legend"')[1]
    assert [level in legend for level in ("tanh", "relu")] == [True, True]


def test_trainings_lie_by_the_clock_where_it_is_known(result: SweepResult) -> None:
    two = result.cells[:3]
    known = [(1000.0, 0), (1001.0, 1), (1000.0 + 7200.0, 0)]
    cells = [
        c.model_copy(update={"started": s, "lane": lane, "seconds": 4.0})
        for c, (s, lane) in zip(two, known, strict=True)
    ]
    time = part(render_report(result._replace(cells=cells)), "time")
    rows = re.findall(r'aria-label="(lane \d): \d trainings">(.*?)</svg>', time, flags=re.S)
    places = {name: [float(x) for x in re.findall(r'<rect class="s0" x="([\d.]+)"', bars)] for name, bars in rows}
    assert places == {
        "lane 0": [0.0, pytest.approx(100 * 5 / 9, abs=0.01)],
        "lane 1": [pytest.approx(100 / 9, abs=0.01)],
    }
    assert "119.9 min in which the sweep was stopped are cut out" in time


def predicted(result: SweepResult, **changes: Any) -> SweepResult:
    """With a prediction of 2 s for each training, 4 of them at a time."""
    seconds = {arm.name: 2.0 for arm in result.record.arms}
    prices = dict.fromkeys(seconds, 3.6)
    prediction = Prediction(
        seconds=seconds, dollars_per_hour=prices, lanes=4, trials=0, start_seconds=5.0, probe_seconds=9.0
    )
    record = result.record.model_copy(update={"prediction": prediction, "dollars_per_hour": prices} | changes)
    return result._replace(record=record)


def test_what_was_predicted_stands_beside_what_it_took(result: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    known = predicted(result)
    spent = math.fsum(c.seconds for c in known.cells) / 1000
    sentence = f"Predicted: 0.75 min and $0.16; taken: 1.36 min and ${spent:.3g}."
    print_report(known)
    for text in (page_of(known).text, capsys.readouterr().out):
        assert sentence in text
        assert re.search(r"A training took 1\.\d\d to 2\.\d\d times what was predicted of its arm", text)
    section = part(render_report(known), "predicted")
    for row in known.ledger.arms:
        took = row.responses["seconds"]
        assert row_of(section, row.arm) == [2.0, took.mean, took.low, took.high, took.mean / 2.0]
    data = json.loads(json.dumps(plain(report_data(known)), allow_nan=False))["outcome"]
    assert data["predicted_minutes"] == pytest.approx(45 / 60)
    assert data["took_dollars"] == pytest.approx(spent)
    assert data["arms"][0]["predicted_s"] == 2.0


def test_without_a_prediction_nothing_is_said_of_one(result: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(result)
    assert "redicted" not in capsys.readouterr().out
    assert "predicted" not in page_of(result).ids
    assert report_data(result)["outcome"] is None


def test_a_sweep_read_from_the_store_counts_the_time_in_which_trainings_ran(result: SweepResult) -> None:
    spans = [(1000.0, 4.0), (1002.0, 4.0), (9000.0, 1.0)]
    cells = [
        c.model_copy(update={"started": s, "seconds": t}) for c, (s, t) in zip(result.cells[:3], spans, strict=True)
    ]
    assert busy_seconds(cells) == pytest.approx(7.0)
    assert busy_seconds(result.cells) is None
    outcome = outcome_of(predicted(result)._replace(seconds=math.nan, cells=cells))
    assert outcome is not None
    assert (outcome.by_clock, outcome.is_complete) == (True, False)
    assert outcome.took_minutes == pytest.approx(7 / 60)
    text = page_of(predicted(result)._replace(seconds=math.nan, cells=cells)).text
    assert "taken so far: 0.117 min and $0.009, minutes counted while trainings ran." in text


SIZES = {"[64]": 5_000, "[512]": 40_000, "[4096]": 300_000, "[8192, 64]": 1_100_000}


def processor_sweep(hidden: list[Any], *, truth: float = 60_000, **options: Any) -> SweepResult:
    """CPU against GPU at some sizes: a training on the GPU takes √(truth / parameters) times as long, times noise."""
    result = sweep_result({"techniques.processor": ["cpu", "gpu"], "model.hidden": hidden}, seeds=3)
    parameters = {arm.name: SIZES[str(arm.settings["model.hidden"])] for arm in result.record.arms}
    noise = random.Random(0)
    cells = []
    for cell, arm in zip(result.cells, result.record.arms * 3, strict=True):
        size = parameters[arm.name]
        on_gpu = math.sqrt(truth / size) if arm.settings["techniques.processor"] == "gpu" else 1.0
        cells.append(cell.model_copy(update={"seconds": size / 1e4 * on_gpu * math.exp(noise.gauss(0, 0.03))}))
    arms = {arm.name: arm.settings for arm in result.record.arms}
    ledger = summarize(cells, arms=arms, goal=Goal("accuracy", higher_is_better=True), parameters=parameters, **options)
    return result._replace(cells=cells, ledger=ledger)


def test_the_size_from_which_the_gpu_pays_is_told_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    result = processor_sweep([[64], [512], [4096], [8192, 64]])
    found = result.ledger.crossover
    assert found is not None
    assert "the GPU pays from about 6" in found.conclusion
    print_report(result)
    for text in (page_of(result).text, capsys.readouterr().out):
        assert f"Model size and processor, in seconds: {found.conclusion}." in text
    section = part(render_report(result), "crossover")
    for pair in found.ratios:
        assert row_of(section, pair.gpu) == [pair.parameters, pair.ratio, pair.low, pair.high]
    dots = [float(x) for x in re.findall(r'<path class="dot s0" d="M([\d.]+) ', section)]
    crossing = re.search(r'<path class="dot s1" d="M([\d.]+) ', section)
    assert crossing
    span = math.log(1_100_000 / 5_000)
    assert (float(crossing[1]) - dots[0]) / (dots[-1] - dots[0]) == pytest.approx(
        math.log((found.parameters or 0) / 5_000) / span, abs=1e-3
    )
    data = json.loads(json.dumps(plain(report_data(result)), allow_nan=False))
    assert data["ledger"]["crossover"]["parameters"] == found.parameters


def test_one_size_has_an_answer_and_no_chart() -> None:
    section = part(render_report(processor_sweep([[64]])), "crossover")
    assert "not to be told from one size" in section
    assert "<figure" not in section


def test_a_sweep_of_no_processors_says_nothing_of_them(result: SweepResult) -> None:
    assert "crossover" not in page_of(result).ids
    assert "GPU" not in page_of(result).text


@pytest.mark.parametrize(("price", "sentence"), [(1.0, "gpu is better than cpu"), (1.9, "no clear difference")])
def test_cpu_against_gpu_is_answered_in_dollars(price: float, sentence: str) -> None:
    prices = {"arm-00": 1.0, "arm-01": price}
    result = processor_sweep([[64]], truth=1_400, dollars_per_hour=prices)
    effect = next(r for r in result.ledger.responses if r.name == "dollars").effects[0]
    found = next(line for line in report_data(result)["findings"] if line.startswith("techniques.processor"))
    assert f"techniques.processor: {sentence} in dollars; gpu − cpu is {number(effect.estimate).lstrip()}" in (
        found.replace("is +", "is ")
    )


def test_a_fraction_says_what_it_cannot_tell_apart(result: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    alias = "a × b is aliased with c × d"
    plan = {"resolution": 4, "generators": ["d = a × b × c"], "aliases": [alias], "notes": ["8 of 16 combinations"]}
    fraction = result._replace(record=result.record.model_copy(update=plan))
    print_report(fraction)
    for text in (Parsed(render_report(fraction)).text, capsys.readouterr().out):
        assert "a fraction of resolution 4: d = a × b × c" in text
        assert alias in text
        assert "8 of 16 combinations" in text


def test_the_winner_is_marked() -> None:
    won = sweep_result({"techniques.gradient": ["batch", "stochastic"]})
    text = page_of(won).text
    assert f"arm-01 wins with accuracy {number(won.ledger.arms[0].mean)}" in text
    assert "arm-01 ★ winner" in text


def test_without_data_there_is_no_why_panel() -> None:
    assert "why" not in page_of(sweep_result(why=False)).ids


def test_a_deep_model_shows_some_layers_and_tables_all() -> None:
    one = sweep_result({"train.epochs": [1]}, seeds=2)
    rows = [{"layer": f"hidden.{i}", "dead": i / 30, "update_ratio": 1e-3} for i in range(30)]
    deep = [c.model_copy(update={"history": [{"accuracy": 0.5, "seconds": 1.0, "why": rows}]}) for c in one.cells]
    why = part(render_report(one._replace(cells=deep)), "why")
    assert why.count("<h4>") == 8
    assert "22 more layers" in why
    assert row_of(why, "hidden.29") == [29 / 30, 1e-3]


def test_hostile_names_are_shown_and_do_nothing() -> None:
    long = "x" * 3000
    factors = {f"model.{HOSTILE}": [HOSTILE, "plain", long], "model.b</style><style>": ["</title>", '" onload="x']}
    result = sweep_result(factors, failing=((0, 0),), error=f"Traceback\n{HOSTILE}\n{HOSTILE}")
    record = result.record.model_copy(update={"sweep": f"{HOSTILE}"})
    result = result._replace(sweep=HOSTILE, record=record)
    text = page_of(result).text
    assert HOSTILE in text
    assert long in text
    assert "<script" not in render_report(result)
    assert "<script" not in notebook_html(result).replace("&lt;script", "")


@pytest.mark.parametrize("seeds", [1, 5])
def test_one_arm_makes_a_page(seeds: int) -> None:
    parsed = page_of(sweep_result({"techniques.activation": ["relu"]}, seeds=seeds))
    assert "fewer than two arms have a result" in parsed.text
    assert "curves" in parsed.ids


def test_one_seed_makes_a_page_without_intervals() -> None:
    two = {"techniques.activation": ["tanh", "relu"]}
    parsed = page_of(sweep_result(two, seeds=1, epochs=1))
    assert "one seed tells nothing of chance" in parsed.text
    assert "effects-accuracy" in parsed.ids


def test_a_sweep_of_which_all_failed_makes_a_page() -> None:
    everything = tuple(itertools.product(range(16), range(5)))
    parsed = page_of(sweep_result(failing=everything))
    assert "0 of 80 trainings finished" in parsed.text
    assert parsed.text.count("OutOfMemoryError") >= 80
    assert not {"curves", "cost", "why"} & set(parsed.ids)


def test_64_arms_make_a_page_of_bounded_size() -> None:
    factors = TECHNIQUES | {"model.dropout": [0.0, 0.2], "train.weight_decay": [0.0, 1e-4]}
    result = sweep_result(factors, seeds=3, epochs=20)
    parsed = page_of(result)
    assert "52 more arms" in parsed.text
    assert len(render_report(result)) < 1_500_000


@pytest.mark.parametrize("value", [0.0, 1e300, -1e300, 5e-324, 1.7e308])
def test_extreme_values_stay_drawable(value: float) -> None:
    result = sweep_result({"techniques.activation": ["tanh", "relu"]}, seeds=2)
    cells = [
        c.model_copy(update={"metrics": {"accuracy": value * (1 - c.seed / 2)}, "history": [{"accuracy": value}]})
        for c in result.cells
    ]
    arms = {arm.name: arm.settings for arm in result.record.arms}
    if abs(value) > 1e150:
        cells = [c.model_copy(update={"metrics": {"accuracy": 0.5}}) for c in cells]  # squares overflow in any ledger
    ledger = summarize(cells, arms=arms, goal=Goal("accuracy", higher_is_better=False))
    page_of(result._replace(cells=cells, ledger=ledger))


def test_scales_hold_their_values_with_round_ticks() -> None:
    scale = scale_of([0.0, 0.97])
    assert scale.low == 0
    assert [tick.label for tick in scale.ticks()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert scale.at(0.5) == pytest.approx(100 * 0.5 / scale.high, abs=0.01)
    logarithmic = scale_of([1e-6, 1.0], can_be_log=True)
    assert logarithmic.at(1e-3) == pytest.approx(50)
    assert [tick.label for tick in logarithmic.ticks(4)] == ["1e-06", "0.0001", "0.01", "1"]
    assert scale_of([3.0, 3.0]).at(3.0) == pytest.approx(50)
    assert scale_of([]) == Scale(0.0, 1.05)


def test_averages_pass_over_what_is_missing() -> None:
    assert average([[1.0, None, 3.0], [3.0, math.nan]]) == [(1, 2.0, 1.0, 3.0), (3, 3.0, 3.0, 3.0)]


def test_the_settings_on_the_page_are_the_sweeps(result: SweepResult) -> None:
    assert validate(parse_document(experiment_yaml(result), source="page")) == result.record.experiment


def test_the_commands_name_the_best_training_and_what_is_missing(result: SweepResult) -> None:
    lines = [line for _, line in commands(result)]
    assert not any("--resume" in line for line in lines)
    assert any(f"orchestrator show {result.ledger.best_run}" == line for line in lines)
    alone = next(line for line in lines if line.startswith("orchestrator train"))
    assert "techniques.activation=relu" in alone
    assert f"train.seed={result.ledger.best_run.rpartition('s')[2]}" in alone  # type: ignore[union-attr]
    unfinished = result._replace(cells=result.cells[:-1])
    assert f"orchestrator sweep --resume {result.sweep}" in [line for _, line in commands(unfinished)]


def test_a_notebook_shows_the_page_in_a_frame(result: SweepResult, page: str) -> None:
    frame = notebook_html(result)
    source = re.search(r'srcdoc="([^"]*)"></iframe>$', frame)
    assert source
    assert html.unescape(source[1]) == page
    assert NotebookResult(*result)._repr_html_() == frame


def test_json_holds_the_ledger_and_the_cells() -> None:
    result = sweep_result(why=False)
    data = json.loads(json.dumps(plain(report_data(result)), allow_nan=False))
    assert data["ledger"]["responses"][0]["effects"][0]["estimate"] == result.ledger.responses[0].effects[0].estimate
    assert len(data["cells"]) == 80
    assert data["cells"][0]["metrics"]["accuracy"] == result.cells[0].metrics["accuracy"]


def test_parquet_has_a_row_for_each_training_and_one_for_each_effect(result: SweepResult, tmp_path: Path) -> None:
    cells_path, effects_path = write_parquet(result, tmp_path / "sweep.parquet")
    rows = pq.read_table(cells_path).to_pylist()
    assert len(rows) == 80
    for row, cell in zip(rows, result.cells, strict=True):
        assert (row["arm"], row["seed"], row["state"], row["seconds"]) == (
            cell.arm,
            cell.seed,
            cell.state,
            cell.seconds,
        )
        assert row["metrics.accuracy"] == cell.metrics.get("accuracy")
        assert row["techniques.gradient"] == result.record.arms[int(cell.arm[-2:])].settings["techniques.gradient"]
    effects = pq.read_table(effects_path).to_pylist()
    expected = [(r.name, e.name, e.estimate, e.adjusted_p) for r in result.ledger.responses for e in r.effects]
    assert [(e["response"], e["effect"], e["estimate"], e["adjusted_p"]) for e in effects] == expected


def test_parquet_keeps_the_types_of_settings(tmp_path: Path) -> None:
    factors: dict[str, list[Any]] = {
        "model.dropout": [0, 0.2],
        "train.batch_size": [32, 64],
        "model.hidden": [[8], [8, 8]],
    }
    result = sweep_result(factors, seeds=1)
    row = pq.read_table(write_parquet(result, tmp_path / "x.parquet")[0]).to_pylist()[-1]
    assert (row["model.dropout"], row["train.batch_size"], row["model.hidden"]) == (0.2, 64, "[8, 8]")


def test_the_terminal_shows_the_same_numbers(result: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(result)
    text = capsys.readouterr().out
    assert result.ledger.reason in text
    for row in result.ledger.arms:
        assert re.search(rf"{row.arm} .*{re.escape(number(row.mean))}", text)
    for response in result.ledger.responses:
        assert f"effects on {response.name.replace('_', ' ')}, {response.direction}" in text
        for effect in response.effects:
            assert effect.name in text
            assert number(effect.estimate) in text


def test_the_terminal_prints_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(sweep_result({"model.x": ["[red]", "[/]"]}, seeds=2))
    text = capsys.readouterr().out
    assert "[/] − [red]" in text


def test_a_file_that_cannot_be_written_is_named(result: SweepResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--html must be a file that can be written, got .*missing"):
        write_report(result, tmp_path / "missing" / "report.html")
    with pytest.raises(ConfigError, match=r"--parquet must be a file that can be written, got .*missing"):
        write_parquet(result, tmp_path / "missing" / "sweep.parquet")
