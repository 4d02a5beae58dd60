"""Tables as people have them: gaps, numbers for people, dates, large numbers; requests that are rows of the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_store import MemoryStore

from cluster.errors import ConfigError
from models.features import CategoricalFeature, NumberTarget, VectorFeature
from models.network import build
from models.preparing.rows import CategoryColumn, DateColumn, Notation, NumberColumn
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import parse_options
from orchestrator.data.sources.prepared import Prepared
from orchestrator.document import parse_words
from orchestrator.driving.plan import plan_run
from orchestrator.training.fit import fit
from orchestrator.training.trainer import World
from serving.client import parse_inputs
from serving.requests.inputs import parse_samples
from serving.requests.outputs import name_filled
from serving.requests.protocol import parse_request, request_of
from serving.requests.values import InputError


def written(path: Path, header: str, rows: Sequence[str]) -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def read(source: str, *words: str) -> Prepared:
    return prepare(source, options=parse_options(parse_words(list(words))))


def column(prepared: Prepared, name: str) -> np.ndarray:
    """All values of one number as they are stored, plus the offset, sorted."""
    feature = prepared.features["numbers"]
    assert isinstance(feature, VectorFeature)
    place = feature.names.index(name)
    parts = [np.asarray(part.columns["numbers"])[:, place] for part in prepared.splits.values()]
    return np.sort(np.concatenate(parts).astype(np.float64) + feature.offsets[place])


def rows_of(prepared: Prepared) -> int:
    return sum(part.rows for part in prepared.splits.values())


# ---- numbers that are written for people


@pytest.mark.parametrize(
    ("fields", "option", "expected", "notation"),
    [
        (("1,72", "3,5"), "decimal=,", (1.72, 3.5), Notation(decimal=",")),
        (("1,234", "56"), "thousands=,", (56, 1234), Notation(thousands=",")),
        (("1.234,5", "56"), "decimal=,", None, None),
        (("1 234", "5"), "thousands=space", (5, 1234), Notation(thousands=" ")),
        (("1'234.5", "5"), "thousands='", (5, 1234.5), Notation(thousands="'")),
        (("1\u00a0234,5", "-5"), "thousands=space", None, None),
        (("1\u202f234", "\u22125"), "thousands=space", (-5, 1234), Notation(thousands=" ")),
        (("1\u2019234.5", "5"), "thousands='", (5, 1234.5), Notation(thousands="'")),
        (("0,801", "1,5"), "decimal=,", (0.801, 1.5), Notation(decimal=",")),
        (("$120.00", "-$5"), "", (-5, 120), Notation(sign="$")),
        (("12 €", "3.5\u00a0€"), "", (3.5, 12), Notation(sign="€")),
        (("37%", "5 %"), "", (5, 37), Notation(sign="%")),
        (("€1,234.50", "€7"), "thousands=,", (7, 1234.5), Notation(thousands=",", sign="€")),
    ],
)
def test_numbers_are_read_as_the_option_says(tmp_path, fields, option, expected, notation):
    rows = [f"{fields[i % 2]};{i}.5;{'ab'[i % 3 > 0]}" for i in range(40)]
    source = written(tmp_path / "t.csv", "price;x;label", rows)
    if option:
        with pytest.raises(
            ConfigError, match=r"price in .*t\.csv must be numbers or few categories, got ['\"]"
        ) as refused:
            read(source)
        word = {"thousands=space": option, "thousands='": f'"{option}"'}.get(option, f"'{option}'")
        assert f"--option {word}" in str(refused.value)
        assert "--option 'categories=[price]'" in str(refused.value)
    if expected is None:
        thousands = "thousands=space" if option == "thousands=space" else "thousands=."
        pasted = thousands if option == "thousands=space" else f"'{thousands}'"
        assert f"--option 'decimal=,' --option {pasted}" in str(refused.value)
        low = {"thousands=space": -5}.get(option, 56)
        assert column(read(source, "decimal=,", thousands), "price")[[0, -1]].tolist() == [low, 1234.5]
        return
    if fields[0] == "0,801":
        assert "thousands" not in str(refused.value)
    prepared = read(source, *([option] if option else []))
    assert column(prepared, "price")[[0, -1]].tolist() == pytest.approx(expected)
    assert prepared.rows.columns["price"] == NumberColumn(notation=notation)
    assert len(prepared.notes) == 1
    assert prepared.notes[0].startswith("read the numbers of price, written like ")
    assert len(column(prepared, "x")) == 40


@pytest.mark.parametrize("unit", ["kg", "km/h", "°C", '"', "h", "k"])
def test_a_unit_behind_every_number_is_read_and_told(tmp_path, unit):
    gap = " " if unit == "kg" else ""
    rows = [f"{i % 30 - 3}.5{gap}{unit};{i % 9};{'ab'[i % 3 > 0]}" for i in range(60)]
    prepared = read(written(tmp_path / "t.csv", "size;x;label", rows), "quotes=letters")
    assert column(prepared, "size")[[0, -1]].tolist() == [-3.5, 26.5]
    assert prepared.rows.columns["size"] == NumberColumn(notation=Notation(sign=unit))
    assert prepared.notes == (f"read the numbers of size, written like 1234.5 {unit}",)
    signature = signature_of(prepared)
    for size in (f"7.5{unit}", f"7.5 {unit}", "7.5", 7.5):
        assert parse_samples({"size": size, "x": 1}, signature)["numbers"][0, 0].item() == 7.5
    with pytest.raises(InputError, match=rf"size must be a number, written like 1234\.5 {unit}, got other text"):
        parse_samples({"size": f"7.5 {unit}{unit}", "x": 1}, signature)


def test_few_values_with_a_unit_and_codes_are_no_numbers(tmp_path):
    rows = [f"{36 + 24 * (i % 2)} months,B{i % 30 + 1},{i % 9},{'ab'[i % 3 > 0]}" for i in range(90)]
    features = read(written(tmp_path / "t.csv", "term,cabin,x,label", rows)).features
    assert features["term"].vocabulary == ("36 months", "60 months")
    assert len(features["cabin"].vocabulary) == 30


def test_a_sign_may_be_left_out_of_a_request(tmp_path):
    rows = [f'"${i % 30 + 1},000.50",{i % 9},{"ab"[i % 3 > 0]}' for i in range(60)]
    signature = signature_of(read(written(tmp_path / "t.csv", "price,x,label", rows), "thousands=,"))
    for price in ("$2,000.50", "2,000.50", "2000.50", 2000.5):
        assert parse_samples({"price": price, "x": 1}, signature)["numbers"][0, 0].item() == 2000.5


def test_a_target_may_be_written_for_people_too(tmp_path):
    rows = [f'{i},"${i + 1},{i:03}"' for i in range(60)]
    source = written(tmp_path / "t.csv", "x,target", rows)
    with pytest.raises(
        ConfigError, match=r"target in .* numbers that are written in another way. Read them with .*thous"
    ):
        read(source)
    prepared = read(source, "thousands=,")
    assert prepared.notes == ("read the numbers of target, written like $1,234.5",)
    target = prepared.target
    assert isinstance(target, NumberTarget)
    assert target.minimum >= 1000
    assert target.maximum <= 60_059


def test_codes_of_numbers_can_be_categories(tmp_path):
    rows = [f"{i % 7},{i}.5,{'ab'[i % 3 > 0]}" for i in range(60)]
    prepared = read(written(tmp_path / "t.csv", "zone,x,label", rows), "categories=zone")
    assert prepared.features["zone"] == CategoricalFeature(vocabulary=tuple("0123456"))
    rows = [f"{i % 7:05},{i}.5,{'ab'[i % 3 > 0]}" for i in range(60)]
    source = written(tmp_path / "t.csv", "zip,x,label", rows)
    with pytest.raises(ConfigError, match=r"zip in .*, got '00000' and the like, codes that begin with 0"):
        read(source)
    assert column(read(source, "numbers=zip"), "zip")[-1] == 6
    assert read(source, "categories=zip").features["zip"].vocabulary[1] == "00001"


# ---- large numbers


def test_large_numbers_are_stored_around_their_mean(tmp_path):
    rows = [f"{1_700_000_000 + 60 * i},{9_007_199_254_740_000 + i},{i % 2}" for i in range(320)]
    prepared = read(written(tmp_path / "t.csv", "when,account,label", rows))
    assert column(prepared, "when").tolist() == [1_700_000_000 + 60 * i for i in range(320)]
    assert len(np.unique(column(prepared, "account"))) == 320
    feature = prepared.features["numbers"]
    assert isinstance(feature, VectorFeature)
    assert abs(feature.offset[0] - 1_700_009_600) < 500
    assert max(map(abs, feature.mean)) < 1
    batch = parse_samples({"when": 1_700_000_060, "account": "9007199254740001"}, signature_of(prepared))
    assert (batch["numbers"].double().numpy() + feature.offset).tolist() == [[1_700_000_060, 9_007_199_254_740_001]]
    request = request_of(batch, signature_of(prepared))
    assert parse_request(request, signature_of(prepared))["numbers"].tolist() == batch["numbers"].tolist()


def test_numbers_that_32_bits_cannot_tell_apart_are_refused(tmp_path):
    rows = [f"{(i % 2) * 10**12 + i},{i % 3}" for i in range(300)]
    expected = (
        r"account in .*t\.csv must be numbers that 32 bits can tell apart, less their mean, got .* and .*ignore=\[acc"
    )
    with pytest.raises(ConfigError, match=expected):
        read(written(tmp_path / "t.csv", "account,label", rows))
    rows = [f"{i},{1_700_000_000 + i}" for i in range(300)]
    with pytest.raises(
        ConfigError, match=r"target in .* must be numbers that 32 bits can tell apart, got 1700000000 and"
    ):
        read(written(tmp_path / "t.csv", "x,target", rows))


def test_numbers_that_64_bits_cannot_tell_apart_are_refused(tmp_path):
    rows = [f"{400_000_000_000_000_001 + i},{i % 3}" for i in range(90)]
    with pytest.raises(ConfigError, match=r"card in .* got '400000000000000001' and the like, of which 64 bits cannot"):
        read(written(tmp_path / "t.csv", "card,label", rows))
    rows = [f"{400_000_000_000_000_000 + 1024 * i},{i % 3}" for i in range(90)]
    prepared = read(written(tmp_path / "t.csv", "card,label", rows))
    assert column(prepared, "card").tolist() == [400_000_000_000_000_000 + 1024 * i for i in range(90)]


def test_fractions_are_stored_as_exactly_as_they_were_measured(tmp_path):
    draw = np.random.default_rng(0)
    rows = [f"{x!r},{i % 2}" for i, x in enumerate(draw.random(5000).tolist())]
    assert read(written(tmp_path / "t.csv", "x,label", rows)).features["numbers"].offset == ()
    rows = [f"{(0.1 + 0.2) * (i % 7) if i % 2 else 0.3 * (i % 7)!r},{i},{i % 2}" for i in range(60)]
    assert read(written(tmp_path / "t.csv", "x,y,label", rows)).features["numbers"].offset == ()
    rows = [f"{1_700_000_000.25 + i / 8},{i % 2}" for i in range(300)]
    prepared = read(written(tmp_path / "t.csv", "x,label", rows))
    assert column(prepared, "x").tolist() == [1_700_000_000.25 + i / 8 for i in range(300)]


def signature_of(prepared: Prepared) -> Any:
    store = MemoryStore()
    folder_rows = push_of(prepared, store)
    return open_dataset(store, folder_rows).signature()  # type: ignore[arg-type]


def push_of(prepared: Prepared, store: MemoryStore) -> str:
    from orchestrator.data.push import push_prepared

    return push_prepared(store, prepared, leakage="keep").manifest.name  # type: ignore[arg-type]


# ---- missing values

PEOPLE = [
    f"{'' if i % 9 == 0 else 20 + i % 50},{'NA' if i % 13 == 0 else ('cook', 'smith')[i % 2]},{i}.25,{'ny'[i % 3 > 0]}"
    for i in range(180)
]


@pytest.fixture
def people(tmp_path):
    return written(tmp_path / "people.csv", "age,job,size,label", PEOPLE)


def test_missing_values_are_refused_with_one_message_about_all_columns(people):
    with pytest.raises(ConfigError) as refused:
        read(people)
    assert str(refused.value).replace(people, "FILE") == (
        "every field of FILE must have a value, got none in 180 rows of these columns: age in 20, job in 14; the first "
        "is age in row 2. Fill them with --option missing=mean (or median, or category: a value of its own), "
        "leave their rows out with --option missing=drop, or say it of one column, as --option 'missing={age: median}'."
    )


@pytest.mark.parametrize(("policy", "middle"), [("mean", np.mean), ("median", np.median)])
def test_numbers_are_filled_with_what_training_says(people, policy, middle):
    prepared = read(people, f"missing={policy}")
    rule = prepared.rows.columns["age"]
    train = np.asarray(prepared.splits["train"].columns["numbers"])
    ages = train[:, 0].astype(np.float64)
    present = np.array([age for age in ages if age != np.float32(rule.fill)])
    # the fill is a statistic of the values that training has, so that what was filled leaves it where it is
    assert rule.fill == pytest.approx(middle(present), abs=1)
    assert (ages == np.float32(rule.fill)).sum() + (
        np.asarray(prepared.splits["test"].columns["numbers"])[:, 0] == np.float32(rule.fill)
    ).sum() >= 20
    assert prepared.features["job"] == CategoricalFeature(vocabulary=("(missing)", "cook", "smith"))
    assert prepared.features["numbers"].names == ("age", "size")
    assert any(
        note.startswith(f"filled 20 missing values of age with the {policy} of training, ") for note in prepared.notes
    )
    assert rows_of(prepared) == 180


def test_the_mean_that_fills_is_of_training_alone(tmp_path):
    header = "x,label"
    written(tmp_path / "train.csv", header, [f"{i},{i % 2}" for i in range(10)] + [",0"])
    written(tmp_path / "test.csv", header, ["100,0", ",1", "101,1"])
    prepared = read(str(tmp_path), "missing=mean")
    assert prepared.rows.columns["x"] == NumberColumn(fill=4.5)
    assert np.asarray(prepared.splits["test"].columns["numbers"]).ravel().tolist() == [100, 4.5, 101]
    assert prepared.features["numbers"].mean == (4.5,)


def test_missing_values_can_be_a_category_of_their_own(people):
    prepared = read(people, "missing=category")
    assert prepared.features["numbers"].names == ("age", "age is missing", "size")
    assert column(prepared, "age is missing").sum() == 20
    assert prepared.rows.columns["job"] == CategoryColumn(feature="job", missing="(missing)")
    indicators = read(people, "missing=median", "indicators=true")
    assert indicators.features["numbers"].names == ("age", "age is missing", "size")


def test_the_cure_of_one_column_fits_what_it_holds(tmp_path):
    rows = [f"{('NA', 'DE', 'FR')[i % 3]},{i},{i % 2}" for i in range(60)]
    source = written(tmp_path / "t.csv", "country,x,label", rows)
    expected = r"as --option 'missing=\{country: category\}', or keep .* --option 'missing=\{country: keep\}'"
    with pytest.raises(ConfigError, match=expected):
        read(source)
    assert read(source, "missing={country: keep}").features["country"].vocabulary == ("DE", "FR", "NA")
    assert read(source, "missing={country: category}").features["country"].vocabulary == ("(missing)", "DE", "FR")


def test_rows_with_missing_values_can_be_dropped(people):
    prepared = read(people, "missing=drop")
    assert rows_of(prepared) == 180 - sum(i % 9 == 0 or i % 13 == 0 for i in range(180))
    assert prepared.notes == ("left out 32 of 180 rows, with no value of age in 20, job in 14",)
    assert prepared.features["job"] == CategoricalFeature(vocabulary=("cook", "smith"))
    by_column = read(people, "missing={age: mean, job: drop}")
    assert rows_of(by_column) == 166
    others = read(people, 'missing={job: keep, "*": median}')
    assert others.features["job"] == CategoricalFeature(vocabulary=("NA", "cook", "smith"))


@pytest.mark.parametrize("word", ["", "NA", "?", "-", "null", "None", "NaN", "N/A", "gone"])
def test_the_words_for_missing_are_known(tmp_path, word):
    rows = [f"{word if i % 5 == 0 else i}.25,{i % 2}".replace(f"{word}.25", word) for i in range(60)]
    source = written(tmp_path / "t.csv", "x,label", rows)
    options = ["missing=mean", *(["missing_words=gone"] if word == "gone" else [])]
    if word == "gone":
        with pytest.raises(ConfigError, match=r"got 'gone' in row 2 of .*say --option 'missing_words=\[gone\]'"):
            read(source, "missing=mean")
    assert len(np.unique(column(read(source, *options), "x"))) == 49


def test_a_target_that_is_missing_is_never_filled(tmp_path):
    rows = [f"{i},{'?' if i % 10 == 0 else 'ab'[i % 3 > 0]}" for i in range(60)]
    source = written(tmp_path / "t.csv", "x,label", rows)
    expected = r"columns: label in 6; .* Leave their rows out with --option 'missing=\{label: drop\}'\.$"
    for words in ((), ("missing=mean",)):
        with pytest.raises(ConfigError, match=expected):
            read(source, *words)
    assert rows_of(read(source, "missing={label: drop}")) == 54


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing={shoe: mean}"], r"missing must name columns of .*, got 'shoe'; there are age, job, size, label"),
        (["categories=[shoe]"], r"categories must name columns of .*, got 'shoe'"),
        (
            ["missing={age: mean, job: mean}"],
            "missing of job must be drop or category, as it holds categories, got mean",
        ),
        (["missing=guess"], "option missing must fit"),
        (["side=3"], "option side must fit"),
        (["side=32"], r"side must be left out for table, .* Its options are categories, .*, thousands"),
    ],
)
def test_options_that_do_not_fit_are_refused(people, words, message):
    with pytest.raises(ConfigError, match=message):
        read(people, *words)


def test_no_test_row_is_a_training_row_once_it_is_filled(tmp_path):
    rows = [f"{('', 1, 2, 3)[i % 4]},{i % 7},{i % 2}" for i in range(280)]
    for policy in ("mean", "median", "category"):
        prepared = read(written(tmp_path / "t.csv", "x,y,label", rows), f"missing={policy}")
        train, test = (np.asarray(prepared.splits[s].columns["numbers"]) for s in ("train", "test"))
        assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}


@pytest.mark.parametrize("seed", range(8))
def test_many_equal_rows_leave_the_test_split_its_share(tmp_path, seed):
    jobs, random = ("cook", "smith", "clerk"), np.random.default_rng(seed)
    ages = [str(age) if age < 70 else "" for age in random.integers(20, 120, 200)]
    rows = [f"{age},{jobs[i % 3]},{random.random():.6f}" for i, age in enumerate(ages)]
    source = written(tmp_path / "t.csv", "age,job,target", rows)
    prepared = read(source, "missing=median", f"seed={seed}")
    assert 35 <= prepared.splits["test"].rows <= 40
    known = [
        {(row.tobytes(), job) for row, job in zip(part.columns["numbers"], part.columns["job"], strict=True)}
        for part in prepared.splits.values()
    ]
    assert not known[0] & known[1]


# ---- columns that cannot be read


def test_all_columns_that_cannot_be_read_are_named_at_once(tmp_path):
    rows = [f"{i},person {i},{'' if i % 5 else i}.5,2024-01-{i % 28 + 1:02},{i % 2}" for i in range(60)]
    rows = [row.replace(",.5,", ",,") for row in rows]
    source = written(tmp_path / "t.csv", "PassengerId,Full name,age,day,label", rows)
    with pytest.raises(ConfigError) as refused:
        read(source)
    message = str(refused.value).replace(source, "FILE")
    assert message.startswith(
        "3 columns of FILE must be numbers or few categories, got PassengerId: an identifier, which is different in "
        "every row; Full name: 60 different texts in 60 rows; day: dates. Leave them out with --option "
        "'ignore=[PassengerId, \"Full name\", day]'. "
    )
    assert "Also, every field of FILE must have a value, got none in 60 rows of these columns: age in 48;" in message
    cure = parse_words(['ignore=[PassengerId, "Full name", day]', "missing=mean"])
    assert rows_of(prepare(source, options=parse_options(cure))) == 60


def test_identifiers_that_repeat_are_no_numbers_unless_asked_for(tmp_path):
    rows = [f"{i % 12},{i}.5,{i % 2}" for i in range(120)]
    source = written(tmp_path / "t.csv", "shop_id,x,label", rows)
    with pytest.raises(
        ConfigError, match=r"shop_id in .* got an identifier of 12 different values. Say what it is with"
    ):
        read(source)
    assert read(source, "numbers=shop_id").features["numbers"].names == ("shop_id", "x")
    assert len(read(source, "categories=[shop_id]").features["shop_id"].vocabulary) == 12
    for name in ("COVID", "paid", "index", "Grid", "unnamed", "rows"):
        assert read(written(tmp_path / "t.csv", f"{name},x,label", rows)).features["numbers"].names == (name, "x")
    for name in ("shopId", "Shop ID", "id", "Unnamed: 0", "Unnamed: 0.1", "rownames", "row.names"):
        with pytest.raises(ConfigError, match=r"got an identifier of 12 different values"):
            read(written(tmp_path / "t.csv", f"{name},x,label", rows))


def test_columns_without_a_name_are_dropped_if_empty_and_ignored_by_place(tmp_path):
    rows = [f"{i},{i}.5,{'ab'[i % 2]}," for i in range(60)]
    source = written(tmp_path / "t.csv", ",x,label,", rows)
    expected = r"got no name for column 1, which holds '0', '1', … Leave it out with --option ignore=1, or name it"
    with pytest.raises(ConfigError, match=expected):
        read(source)
    prepared = read(source, "ignore=1")
    assert prepared.features["numbers"].names == ("x",)
    assert prepared.notes == ("left out column 4, which has neither a name nor a value", "left out column 1")
    named = read(written(tmp_path / "named.csv", "column 1,column x,label,", rows))
    assert named.features["numbers"].names == ("column 1", "column x")
    trailing = read(written(tmp_path / "t.csv", "n,x,label", list(rows)))
    assert trailing.features["numbers"].names == ("n", "x")
    assert trailing.notes == prepared.notes[:1]


# ---- dates


def test_dates_become_the_numbers_that_are_asked_for(tmp_path):
    rows = [f"2024-{i % 12 + 1:02}-05,{i}.5,{'ab'[i % 2]}" for i in range(60)]
    source = written(tmp_path / "t.csv", "day,x,label", rows)
    with pytest.raises(
        ConfigError, match=r"which fits series and table\. Name it with --format series or --format table\."
    ):
        read(source)
    with pytest.raises(ConfigError, match=r"day in .* got dates. Make numbers of dates with --option 'dates=\[year"):
        prepare(source, format="table")
    prepared = read(source, "dates=[year, month, weekday, seconds]")
    assert prepared.features["numbers"].names[:4] == ("day year", "day month", "day weekday", "day seconds")
    assert column(prepared, "day month").tolist() == sorted(i % 12 + 1 for i in range(60))
    assert column(prepared, "day seconds")[0] == 1_704_412_800
    assert prepared.rows.columns["day"] == DateColumn(parts=("year", "month", "weekday", "seconds"))
    batch = parse_samples({"day": "2024-03-05", "x": 1}, signature_of(prepared))
    offset = prepared.features["numbers"].offsets
    assert (batch["numbers"][0].double().numpy() + offset).tolist() == [2024, 3, 1, 1_709_596_800, 1]


def test_dates_that_can_be_read_in_two_ways_are_refused(tmp_path):
    rows = [f"{i % 12 + 1:02}/{i % 9 + 1:02}/2024,{i}.5,{'ab'[i % 2]}" for i in range(60)]
    source = written(tmp_path / "t.csv", "day,x,label", rows)
    expected = r"such as '01/01/2024' that fit 2 formats. Say which with --option date_format='%d/%m/%Y' or --option"
    with pytest.raises(ConfigError, match=expected):
        read(source, "dates=month")
    assert column(read(source, "dates=month", "date_format=%m/%d/%Y"), "day month").max() == 12
    assert column(read(source, "dates=month", "date_format=%d/%m/%Y"), "day month").max() == 9
    rows = [f"{i % 28 + 1:02}.{i % 9 + 1:02}.2024,{i}.5,{'ab'[i % 2]}" for i in range(60)]
    german = read(written(tmp_path / "t.csv", "day,x,label", rows), "dates=[day, month]")
    assert german.rows.columns["day"] == DateColumn(format="%d.%m.%Y", parts=("day", "month"))


@pytest.mark.parametrize(
    ("written_as", "format"),
    [
        ("{day:02}-{month:.3}-{year}", "%d-%b-%Y"),
        ("{day} {month:.3} {year} 13:45", "%d %b %Y %H:%M"),
        ("{day} {month} {year}", "%d %B %Y"),
        ('"{month} {day}, {year}"', "%B %d, %Y"),
        ('"{month:.3} {day:02}, {year}"', "%b %d, %Y"),
    ],
)
def test_dates_with_names_of_months_are_dates(tmp_path, written_as, format):
    months = ("January", "May", "September")
    shown = [written_as.format(day=i % 28 + 1, month=months[i % 3], year=2000 + i % 20) for i in range(60)]
    source = written(tmp_path / "t.csv", "when,x,label", [f"{d},{i}.5,{'ab'[i % 2]}" for i, d in enumerate(shown)])
    with pytest.raises(ConfigError, match=r"when in .* got dates\. Make numbers of dates with --option 'dates="):
        read(source, "target=label")
    prepared = read(source, "dates=[year, month, day]")
    assert prepared.rows.columns["when"] == DateColumn(format=format, parts=("year", "month", "day"))
    for part, expected in (("month", (1, 5, 9)), ("day", range(1, 29)), ("year", range(2000, 2020))):
        assert set(column(prepared, f"when {part}").tolist()) == set(expected)


def test_a_format_of_dates_is_for_those_that_have_it(tmp_path):
    rows = [f"2024-0{i % 9 + 1}-03,{i % 28 + 1}.{i % 9 + 1}.{i % 20 + 70},{'ab'[i % 2]}" for i in range(90)]
    source = written(tmp_path / "t.csv", "seen,born,label", rows)
    cure = r"born: dates such as '1\.1\.70' that fit 0 formats.*--option date_format=FORMAT, which is '%d\.%m\.%y' for"
    with pytest.raises(ConfigError, match=cure.removeprefix("born: ")):
        read(source, "dates=[year, month]", "target=label")
    prepared = read(source, "dates=[year, month]", "target=label", "date_format=%d.%m.%y")
    assert prepared.rows.columns["born"].format == "%d.%m.%y"
    assert column(prepared, "born year")[[0, -1]].tolist() == [1970, 1989]
    assert set(column(prepared, "seen month").tolist()) == set(range(1, 10))


# ---- from the file to an answer


def trained(tmp_path: Path, source: str, words: list[str], **model: Any) -> tuple[Any, Any]:
    """Push, train without Ray, and return the signature and the network."""
    store = MemoryStore()
    name = push(store, source, options=parse_options(parse_words(words))).manifest.name  # type: ignore[arg-type]
    experiment = Experiment.model_validate(
        {
            "data": {"name": name},
            "model": {"type": "mlp", "hidden": [8], **model},
            "techniques": "deep",
            "train": {"epochs": 3, "batch_size": 32, "learning_rate": 0.05},
        }
    )
    record = plan_run(experiment, open_dataset(store, name), run="run")  # type: ignore[arg-type]
    trainer = fit(record, store=store, world=World())  # type: ignore[arg-type]
    network = build(experiment.model, record.techniques, record.signature, seed=0)
    network.load_state_dict(trainer.network.state_dict())
    assert np.isfinite(trainer.history[-1]["loss"])
    return record.signature, network.eval()


def titanic(tmp_path: Path) -> tuple[str, list[str]]:
    rows = [
        f'{i},{i % 3 > 0:d},{i % 3 + 1},"Miss {i}, Ann",{"male" if i % 2 else "female"},{"" if i % 6 == 0 else i % 70},'
        f"{i % 4},{i / 3:.4f},{'' if i % 4 else 'C' + str(i % 9)},{'' if i == 61 else 'SCQ'[i % 3]}"
        for i in range(240)
    ]
    header = "PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Fare,Cabin,Embarked"
    words = ["target=Survived", "ignore=[PassengerId, Name]", "missing=median"]
    return written(tmp_path / "titanic.csv", header, rows), words


def penguins(tmp_path: Path) -> tuple[str, list[str]]:
    rows = [
        f"{('Adelie', 'Gentoo')[i // 90]},Dream,{'NA' if i == 3 else 39 + i / 9},"
        f"{'NA' if i % 40 == 3 else 181 + i % 9},{'NA' if i % 20 == 7 else ('male', 'female')[i % 2]},200{i % 3 + 7}"
        for i in range(180)
    ]
    header = "species,island,bill_length_mm,flipper_length_mm,sex,year"
    return written(tmp_path / "penguins.csv", header, rows), ["target=species", "missing=mean"]


def uci(tmp_path: Path) -> tuple[str, list[str]]:
    rows = [
        f"{17 + i % 60}, {'?' if i % 8 == 0 else ('Private', 'State-gov')[i % 2]}, {'?' if i % 11 == 0 else i % 16},"
        f" {'<=50K' if i % 3 else '>50K'}"
        for i in range(240)
    ]
    return written(tmp_path / "adult.csv", "age, workclass, education-num, label", rows), ["missing=category"]


@pytest.mark.parametrize(
    ("make", "row", "gap"),
    [
        (titanic, {"Pclass": "3", "Sex": "male", "SibSp": 1, "Fare": 7.25, "Embarked": "S"}, ("Age", "Cabin")),
        (penguins, {"island": "Dream", "bill_length_mm": 40.5, "year": 2007}, ("flipper_length_mm", "sex")),
        (uci, {"age": 40, "education-num": None}, ("workclass",)),
    ],
)
def test_files_with_gaps_are_pushed_trained_and_asked_with_a_missing_field(tmp_path, make, row, gap):
    source, words = make(tmp_path)
    signature, network = trained(tmp_path, source, words)
    answer = network.predict(parse_samples(row, signature))
    for gone in (None, "", "NA", " ? "):
        batch = parse_samples([{**row, **dict.fromkeys(gap, gone)}], signature)
        assert network.predict(batch).tolist() == answer.tolist()
    assert answer.sum().item() == pytest.approx(1, abs=1e-5)
    answers: list[dict[str, Any]] = [{}, {}]
    name_filled(answers, [row, {**row, **dict.fromkeys(gap, "?")}], signature)
    assert answers[0] == answers[1]
    assert set(gap) <= set(answers[0]["filled"])
    assert set(answers[0]["filled"]) == {name for name in signature.rows.columns if row.get(name) is None}
    pairs = [f"{name}={value if value is not None else ''}" for name, value in row.items()]
    batch = parse_samples(parse_inputs(pairs, signature), signature)
    assert network.predict(batch).tolist() == answer.tolist()


def test_a_request_is_checked_like_a_row_of_the_file(tmp_path):
    rows = [f"{i % 40 + 1},5;{('Köln', 'Ulm')[i % 2]};{i};{'ab'[i % 3 > 0]}" for i in range(90)]
    source = written(tmp_path / "t.csv", "größe;stadt;nr;label", rows)
    signature = signature_of(read(source, "decimal=,", "ignore=nr"))
    batch = parse_samples({"größe": "2,5", "stadt": " Ulm ", "nr": 7, "label": "a"}, signature)
    assert batch["numbers"].tolist() == [[2.5]]
    assert batch["stadt"].tolist() == [2]
    assert parse_samples({"größe": 2.5, "stadt": "Bonn"}, signature)["stadt"].tolist() == [0]
    plain: list[dict[str, Any]] = [{}]
    name_filled(plain, {"numbers": [2.5], "stadt": "Ulm"}, signature)
    name_filled(plain, {"größe": "2,5", "stadt": "Ulm"}, signature)
    assert plain == [{}]
    assert parse_samples({"numbers": [2.5], "stadt": "Ulm"}, signature)["numbers"].tolist() == [[2.5]]
    for row, code, message in (
        (
            {"größe": "2.5", "stadt": "Ulm"},
            "wrong_type",
            "größe must be a number, written like 1234,5, got other text.",
        ),
        ({"größe": True, "stadt": "Ulm"}, "wrong_type", "größe must be a number, got a truth value."),
        ({"größe": 1}, "missing_field", "stadt must be given, got no value."),
        ({"größe": None, "stadt": "Ulm"}, "missing_field", "größe must be given, got no value."),
        ({"size": 1, "stadt": "Ulm"}, "unknown_field", "a field must be one of größe, stadt, got 'size'."),
    ):
        with pytest.raises(InputError) as refused:
            parse_samples([{"größe": 1, "stadt": "Ulm"}, row], signature)
        assert refused.value.code == code
        assert message in str(refused.value)
        assert refused.value.field.startswith("[1].")
    with pytest.raises(ConfigError, match=r"inputs must be given as größe=\.\.\. stadt=\.\.\., got 'size=1'"):
        parse_inputs(["size=1"], signature)


def test_a_first_column_called_time_that_holds_numbers_makes_no_series(tmp_path):
    rows = [f"{i}.0,{i / 7:.4f},{149 + i % 9}.5,{int(i % 20 == 0)}" for i in range(200)]
    prepared = read(written(tmp_path / "creditcard.csv", "Time,V1,Amount,Class", rows))
    assert prepared.features["numbers"].names == ("Time", "V1", "Amount")
    assert prepared.target.classes == ("0", "1")
