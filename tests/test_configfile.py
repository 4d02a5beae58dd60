"""Experiments are read from YAML and words; whatever is wrong is said with file, line, key, rule, value and cure."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from orchestrator.config import Experiment
from orchestrator.configfile import load_experiment, setting_names, settings_table, validate
from orchestrator.document import parse_document, with_overrides
from orchestrator.recipe import recipe_names, recipe_title

GOOD = """\
data: {name: digits}
model: {type: mlp}
train:
  epochs: 2
  learning_rate: 1e-2
"""


def read(text: str, *words: str) -> Experiment:
    return validate(with_overrides(parse_document(text, source="my.yaml"), words))


def test_a_short_file_is_filled_with_defaults() -> None:
    experiment = read(GOOD)
    assert experiment.train.learning_rate == 0.01
    assert experiment.techniques.preset == "deep"
    assert experiment.scaling.num_logical_workers == 2


def test_words_win_over_the_file() -> None:
    experiment = read(
        GOOD, "train.epochs=7", "techniques=traditional", "techniques.activation=relu", "model.hidden=[8]"
    )
    assert experiment.train.epochs == 7
    assert experiment.techniques.preset == "traditional"
    assert experiment.techniques.activation == "relu"
    assert experiment.model.model_dump()["hidden"] == (8,)


def test_a_resolved_experiment_reads_back_as_itself() -> None:
    experiment = read(GOOD, "techniques=deep", "sweep.vary={model.dropout: [0, 0.1]}")
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_has_a_title(name: str) -> None:
    assert load_experiment(name).data.name
    assert recipe_title(name).endswith(".")


WRONG = [
    ("train.epoch=3", "command line: train.epoch must be a known setting, got 3. Did you mean epochs?"),
    ("train.epochs=0", "command line: train.epochs must be greater than 0, got 0."),
    ("train.epochs=two", "command line: train.epochs must be a valid integer"),
    ("train.epochs=1.5", "command line: train.epochs must be a valid integer"),
    ("train.epochs=true", "command line: train.epochs must "),
    ("train.epochs=", "command line: train.epochs must be a valid integer, got None"),
    ("train.learning_rate=-1", "command line: train.learning_rate must be greater than 0, got -1."),
    ("train.learning_rate=.nan", "command line: train.learning_rate must be a finite number, got nan."),
    ("train.learning_rate=.inf", "command line: train.learning_rate must be a finite number, got inf."),
    ("train.learning_rate=1e400", "command line: train.learning_rate must be a finite number, got inf."),
    ("train.momentum=1", "command line: train.momentum must be less than 1, got 1."),
    ("train.optimizer=sdg", "train.optimizer must be one of sgd, adam, got 'sdg'. Did you mean sgd?"),
    ("train=5", "command line: train must be a group of settings, got 5."),
    ("train.batch_size=3", "train.batch_size must be a multiple of the logical workers (2), got 3."),
    ("train.batch_size=2", "at least 2 samples for batch normalization"),
    ("model.type=cn", "model.type must be a known model, got 'cn'. Did you mean cnn?"),
    ("model={}", "model.type must be given, got nothing. One of mlp, cnn, rnn, fm."),
    ("model.hidden=[]", "model.hidden must "),
    ("model.channels=[8]", "command line: model.channels must be a known setting, got [8]."),
    ("techniques=dep", "techniques.preset must be one of traditional, deep, got 'dep'. Did you mean deep?"),
    ("techniques.activaton=tanh", "techniques.activaton must be a known setting, got 'tanh'. Did you mean activation?"),
    ("data.name=../x", "data.name must be 1 to 63 of a-z, 0-9"),
    ("data.name=UPPER", "data.name must be 1 to 63 of a-z, 0-9"),
    ("data.lookback=3", "data.lookback and data.horizon must be given together, got 3 and None."),
    (
        "scaling={workers: 4, logical_workers: 3}",
        "scaling.logical_workers must be at least scaling.workers (4), got 3",
    ),
    ("scaling.workers=0", "scaling.workers must be from 1 to 4096, the fewest first, got 0."),
    ("scaling.workers=[3, 1]", "scaling.workers must be from 1 to 4096, the fewest first, got [3, 1]."),
    ("scaling.workers=true", "scaling.workers must be a whole number, or [fewest, most] of them, got True."),
    ("scaling={workers: [1, 4], logical_workers: 2}", "scaling.logical_workers must be at least scaling.workers (4)"),
    ("train.checkpoint_steps=0", "train.checkpoint_steps must be greater than 0, got 0."),
    ("sweep={}", "sweep.vary must be given, got nothing."),
    ("sweep={vary: {}}", "sweep.vary must "),
    ("sweep={vary: {model.dropout: []}}", "sweep.vary.model.dropout must "),
    ("nonsense", "'nonsense' must have the form key=value, such as train.epochs=5."),
    ("=3", "'=3' must have the form key=value"),
    ("train.epochs.x=3", "train.epochs must be a group of settings to hold train.epochs.x, got 2."),
    ("trian.epochs=3", "trian must be a known setting, got {'epochs': 3}. Did you mean train?"),
]


@pytest.mark.parametrize(("word", "message"), WRONG)
def test_a_wrong_word_is_named_with_rule_value_and_cure(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(GOOD, word)


@pytest.mark.parametrize(
    ("model", "word"),
    [("{type: fm}", "techniques.activation=tanh"), ("{type: rnn, cell: gru}", "techniques.activation=relu")],
)
def test_a_technique_that_the_model_lacks_is_refused_by_name(model: str, word: str) -> None:
    series = ["data.lookback=8", "data.horizon=2"] if "rnn" in model else []
    with pytest.raises(ConfigError, match=r"techniques\.activation must be left out for model\.type"):
        read(GOOD, f"model={model}", *series, word)


BAD_FILES = [
    ("", "must hold the settings of an experiment (data, model, train, …), got nothing."),
    ("- 1", "must hold the settings of an experiment (data, model, train, …), got sequence."),
    ("just text", "must hold the settings of an experiment (data, model, train, …), got scalar."),
    ("a: 1\na: 2", "my.yaml:2: a must be given once, got it on line 1 too."),
    ("a: &x 1\nb: *x", "my.yaml:2: must be valid YAML: aliases (*name) are not allowed"),
    ("a: &x [*x]", "aliases (*name) are not allowed"),
    ("a: !!python/object/apply:os.system [ls]", "a must be plain data, got the tag"),
    ("a: !!python/name:os.system", "a must be plain data, got the tag"),
    ("a: !custom 1", "a must be plain data, got the tag '!custom'."),
    ("a: [1", "must be valid YAML"),
    ("a:\n\t- 1", "must be valid YAML"),
    ("? [a, b]\n: 1", "my.yaml:1: a key must be a word, got a sequence."),
    ("a: " + "[" * 60 + "]" * 60, "settings must be nested at most 20 deep, got more."),
    ("a: 1\n---\nb: 2", "must be valid YAML"),
    ("a: \x00", "must be valid YAML"),
    (GOOD + "extra: 1", "my.yaml:6: extra must be a known setting, got 1."),
    (GOOD.replace("epochs: 2", "epochs: no"), "my.yaml:4: train.epochs must be a valid integer"),
    (GOOD.replace("epochs: 2", "epochs: 0x10"), "my.yaml:4: train.epochs must be a valid integer"),
    (GOOD.replace("epochs: 2", "epochs: 2\n  epoch: 3"), "my.yaml:5: train.epoch must be a known setting, got 3."),
    (GOOD.replace("data: {name: digits}", "data: {}"), "my.yaml:1: data.name must be given, got nothing."),
    (GOOD.replace("data: {name: digits}\n", ""), "my.yaml: data must be given, got nothing."),
    (GOOD.replace("{type: mlp}", "{type: mlp, hidden: [8, x]}"), "my.yaml:2: model.hidden.1 must be a valid integer"),
    (GOOD.replace("digits", '"naïve"'), "my.yaml:1: data.name must be 1 to 63"),
    (GOOD.replace("digits", '"a\\u202eb"'), "my.yaml:1: data.name must be 1 to 63"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(text)


def test_every_mistake_in_a_file_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        read(GOOD, "train.epochs=0", "train.momentun=1", "data.name=..")
    assert len(str(error.value).splitlines()) == 3


def test_files_that_are_no_experiments_are_refused(tmp_path: Path) -> None:
    binary, large, folder = tmp_path / "b.yaml", tmp_path / "l.yaml", tmp_path / "d.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    large.write_bytes(b"a: 1\n" * 300_000)
    folder.mkdir()
    for file, message in [
        (binary, "must be UTF-8 text, got byte 0xff at 0."),
        (large, "must have at most 1,000,000 bytes, got 1,500,000."),
        (folder, "must be a regular file, got a folder."),
        (tmp_path / "digits-cn", "must be a YAML file or a recipe, got neither."),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_experiment(file)
    with pytest.raises(ConfigError, match="Did you mean digits-cnn"):
        load_experiment("digits-cn")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_experiment(file) == read(GOOD)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_an_experiment_or_a_configuration_error(text: str) -> None:
    try:
        read(GOOD + text)
    except ConfigError as error:
        assert "my.yaml" in str(error)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([name for name, _ in setting_names()]), st.text(max_size=20))
def test_any_value_of_any_setting_is_accepted_or_a_configuration_error(name: str, value: str) -> None:
    try:
        read(GOOD, f"{name}={value}")
    except ConfigError as error:
        assert len(str(error).splitlines()[0]) < 400


def test_the_documentation_lists_every_setting() -> None:
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    assert text.endswith(settings_table()), "write settings_table() into docs/configuration.md again"
