"""Texts: folders, a line each, and columns; the vocabulary of training; encodings."""

from pathlib import Path

import pytest

from cluster.errors import ConfigError
from models.features import TARGET, UNKNOWN, ClassTarget, NumberTarget, Signature
from models.text import tokens
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions
from serving.requests.inputs import parse_samples

SHARED = Path(__file__).parents[2] / "shared" / "data"
NOUNS = ("plot", "cast", "music", "pace", "style", "humour")
PARTS = [(a, b) for a in NOUNS for b in ("cut", "set", "light", "end", "cue")]
GOOD = [f"a good {a} , really : {b} in take{i}" for i, (a, b) in enumerate(PARTS)]
BAD = [f"a bad {a} , sadly : {b} in shot{i}" for i, (a, b) in enumerate(PARTS)]


def written(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def polarity(folder: Path) -> str:
    written(folder / "rt.pos", "\n".join(GOOD) + "\n")
    written(folder / "rt.neg", "\n".join(BAD) + "\n\n")
    return str(folder)


def read(source: str, **options):
    return prepare(source, options=SourceOptions(**options))


def spoken(prepared, split: str) -> list[tuple[str, int]]:
    """The words of each text of a split, and its label."""
    known = ["<pad>", "<?>", *prepared.features["text"].vocabulary]
    columns = prepared.splits[split].columns
    texts = [" ".join(known[token] for token in columns["text"][row]) for row in range(len(columns["text"]))]
    return list(zip(texts, columns[TARGET].tolist(), strict=True))


def test_a_file_per_class_holds_a_text_a_line(tmp_path):
    prepared = read(polarity(tmp_path))
    assert prepared.target == ClassTarget(classes=("neg", "pos"))
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 48, "test": 12}
    for split in ("train", "test"):
        assert all(("good" in text) == label for text, label in spoken(prepared, split))
        labels = prepared.splits[split].columns[TARGET]
        assert labels.mean() == 0.5
    feature = prepared.features["text"]
    assert feature.max_tokens == 9
    assert set(feature.vocabulary) >= {"a", "good", "bad", "plot", "cue", ",", "really", "sadly"}


def test_the_vocabulary_is_of_the_training_split_alone(tmp_path):
    prepared = read(polarity(tmp_path), seed=4)
    train, test = (" ".join(text for text, _ in spoken(prepared, split)).split() for split in ("train", "test"))
    assert set(prepared.features["text"].vocabulary) <= set(train)
    assert "<?>" in train  # words that training has once
    assert UNKNOWN in prepared.splits["test"].columns["text"].values
    assert set(test) - {"<?>"} <= set(train)


def test_no_text_of_a_test_split_of_ours_reads_like_one_of_training(tmp_path):
    # That differ in one rare word each: to a model, all the same.
    written(
        tmp_path / "pos.txt", "\n".join([f"fine {i}" for i in range(20)] + [f"fine film {i} {i}" for i in range(9)])
    )
    written(tmp_path / "neg.txt", "\n".join(f"dull day {i} of {i} {'x ' * i}" for i in range(30)))
    for seed in range(4):
        prepared = read(str(tmp_path), seed=seed)
        train, test = ({text for text, _ in spoken(prepared, split)} for split in ("train", "test"))
        assert not train & test
        assert sum(part.rows for part in prepared.splits.values()) == 59


@pytest.mark.parametrize("layout", ["folders", "splits"])
def test_texts_may_be_a_file_each(tmp_path, layout):
    for split, chosen in (("train", range(20)), ("test", range(20, 30))):
        for name, texts in (("good", GOOD), ("bad", BAD)):
            for i in chosen:
                start = f"{split}/" if layout == "splits" else ""
                written(tmp_path / f"{start}{name}/{i}.txt", texts[i] + "\nsecond line")
    written(tmp_path / "README.txt", "About these files.")
    written(tmp_path / ".DS_Store", b"\0\1\2")
    prepared = read(str(tmp_path))
    assert prepared.target == ClassTarget(classes=("bad", "good"))
    rows = {name: part.rows for name, part in prepared.splits.items()}
    assert rows == ({"train": 40, "test": 20} if layout == "splits" else {"train": 48, "test": 12})
    assert all("second line" in text for text, _ in spoken(prepared, "test"))


def test_classes_of_a_folder_may_be_left_out(tmp_path):
    for split in ("train", "test"):
        for name in ("pos", "neg"):
            written(tmp_path / f"{split}/{name}/1.txt", f"{split} {name} film")
    written(tmp_path / "train/unsup/1.txt", "who knows")
    written(tmp_path / "train/urls_pos.txt", "http://example.org")
    assert read(str(tmp_path), ignore="unsup").target == ClassTarget(classes=("neg", "pos"))
    with pytest.raises(ConfigError, match=r"ignore must name classes of .*, got 'x'; there are neg, pos, unsup"):
        read(str(tmp_path), ignore="x")


def test_texts_in_a_column_may_have_classes_or_numbers(tmp_path):
    lines = [f'"{text}",{i % 2}\n' for i, text in enumerate(GOOD + BAD)]
    written(tmp_path / "a.csv", "review,label\n" + "".join(lines))
    prepared = read(str(tmp_path / "a.csv"))
    assert prepared.target == ClassTarget(classes=("0", "1"))
    assert len(spoken(prepared, "train")) == 48
    assert isinstance(read(str(tmp_path / "a.csv"), task="number").target, NumberTarget)


def test_columns_beside_the_texts_are_left_out_and_told(tmp_path):
    rows = [f'{i},"{text}",2020,{i % 5 + 1}.5,' for i, text in enumerate([*GOOD, *BAD])]
    written(tmp_path / "t.csv", "\n".join([",review,year,stars", *rows]))
    prepared = read(str(tmp_path / "t.csv"), target="stars")
    assert prepared.notes == ("left out 3 columns: 1, year, 5",)
    assert prepared.rows.ignored == (" column 1", "year", "stars", " column 5")
    alone = "\n".join(["review,stars", *(f'"{text}",{i % 9}.5%' for i, text in enumerate([*GOOD, *BAD]))])
    written(tmp_path / "alone.csv", alone)
    told = ("read the numbers of stars, written like 1234.5%",)
    assert read(str(tmp_path / "alone.csv"), target="stars").notes == told


def test_copies_of_a_text_stay_on_one_side(tmp_path):
    lines = [f"{text.upper() if i % 2 else text}\t{i % 2}\n" for i, text in enumerate((GOOD + BAD) * 2)]
    written(tmp_path / "a.tsv", "text\tlabel\n" + "".join(lines))
    prepared = read(str(tmp_path / "a.tsv"), vocabulary=1000)
    train, test = ({text for text, _ in spoken(prepared, split)} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(("encoding", "word"), [("latin-1", "Maß"), ("cp1252", "“Maß”")])
def test_texts_that_are_not_utf_8_are_read_as_what_they_are_and_say_so(tmp_path, encoding, word):
    lines = [f"»{word}« für große Häuser, so schön wie üblich"] * 4
    written(tmp_path / "a.pos", "\n".join(GOOD + lines).encode(encoding))
    written(tmp_path / "a.neg", "\n".join(BAD + lines))
    with pytest.raises(
        ConfigError, match=r"a\.pos must be a text file in UTF-8, got .* in row \d+, beside others in UTF"
    ):
        read(str(tmp_path))
    written(tmp_path / "a.neg", "\n".join(BAD + lines).encode(encoding))
    prepared = read(str(tmp_path))
    assert prepared.source.format == f"text ({encoding})"
    assert {"maß", "für", "schön"} <= set(prepared.features["text"].vocabulary)


def test_all_files_are_utf_8_or_all_are_latin_1(tmp_path):
    written(tmp_path / "a.pos", ("\n".join(GOOD) + "\ncafé olé café").encode("latin-1"))
    written(tmp_path / "a.neg", "\n".join(BAD))
    prepared = read(str(tmp_path))
    assert prepared.source.format == "text (latin-1)"
    assert any("café" in text or "olé" in text or "<?>" in text for text, _ in spoken(prepared, "train"))
    written(tmp_path / "a.neg", "\n".join(BAD) + "\ncafé olé")
    with pytest.raises(
        ConfigError, match=r"a\.pos must be a text file in UTF-8, got .*, beside others in UTF-8\. Convert"
    ):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.pos": "", "a.neg": "bad"}, r"a\.pos must hold a text, got no word in it"),
        ({"a.pos": " \n\n", "a.neg": "bad"}, r"a\.pos must hold a text, got no word in it"),
        ({"x/1.txt": "good", "y/1.txt": " "}, r"y/1\.txt must hold a text, got no word in it"),
        ({"x/1.txt": b"go\nod\0", "y/1.txt": "bad"}, r"x/1\.txt must be a text file in UTF-8, got a NUL byte in row 2"),
        ({"a.pos": "\n".join(GOOD)}, "must hold two classes or more, got pos only"),
        ({"a.pos": "good", "a.neg": "bad"}, "must hold enough different rows for a test split"),
        ({"train/x/1.txt": "a b", "train/z/1.txt": "c", "test/y/1.txt": "b"}, "every class, got no row of 'y'"),
        ({"x\n/1.txt": "good", "y/1.txt": "bad"}, r"must hold files with plain names, got 'x\\n/1.txt'"),
        (
            {"a.pos": "\n".join(f"p{i}" for i in range(20)), "a.neg": "n"},
            "must hold texts that differ in words that training",
        ),
        ({"a.json": "{}"}, r"must hold CLASS/\*\.txt, a CLASS\.txt of lines each, or \*\.pos and \*\.neg, got none"),
        ({"a.csv": "comment,label\nx,1\n"}, "must have a column of texts, called text or sentence or review, got"),
        ({"a.csv": "text,stars\nx,1\n"}, "must have one column to predict, called label or target or class, got stars"),
        ({"a.csv": "text,label\nx,1\n,2\n"}, "text in .*a.csv must be given, got nothing in row 3"),
        ({"a.csv": "text,label\nx,1\n,\n"}, "label in .*a.csv must be given, got nothing in row 3"),
        (
            {"a.csv": 'text,label\n"x,1\n'},
            "that begins with a quote must end with one, got .* in row 2",
        ),
        ({"a.csv": "text,my mood\nx,good\n"}, r"Name it with --option 'target=\"my mood\"'\."),
        ({"a.csv": "text,label\nx\n"}, r"a\.csv must have 2 fields, separated by commas, got 1 in row 2"),
    ],
)
def test_malformed_texts_are_named_with_file_and_row(tmp_path, files, message):
    for name, content in files.items():
        written(tmp_path / name, content)
    with pytest.raises(ConfigError, match=message):
        prepare(str(tmp_path), format="text")


CHINESE = [f"{start}{middle}{end}" for start in "这那此" for middle in "电影剧书画" for end in "很好看听"]
THAI = [f"{start}{middle}ที่นี่" for start in ("ดี", "มาก", "น้อย") for middle in ("กิน", "นอน", "เดิน", "วิ่ง", "นั่ง")]


@pytest.mark.parametrize("texts", [CHINESE, THAI])
def test_texts_without_blanks_are_split_into_characters_and_that_is_said(tmp_path, texts):
    rows = [f"{text},{'good' if i % 2 else 'bad'}" for i, text in enumerate(texts)]
    written(tmp_path / "reviews.csv", "\n".join(["text,label", *rows]))
    prepared = read(str(tmp_path / "reviews.csv"))
    feature = prepared.features["text"]
    assert feature.tokens == "characters" and set("".join(texts)) >= set("".join(feature.vocabulary))
    (change,) = prepared.source.changes
    assert change.option == "tokens=characters"
    assert (
        change.text
        == "Texts are split into characters; 100% of the letters are of scripts without blanks between words."
    )
    of_text = {tuple(tokens(text, feature)) for text in texts}
    stored = [part.columns["text"] for part in prepared.splits.values()]
    assert {tuple(column[row].tolist()) for column in stored for row in range(len(column))} == of_text
    assert {part.rows > 0 for part in prepared.splits.values()} == {True}
    assert parse_samples({"text": texts[3]}, Signature(features={"text": feature}, target=prepared.target))[
        "text"
    ].tolist() == [tokens(texts[3], feature)]


def test_sentences_taken_for_words_are_refused_with_the_cure(tmp_path):
    rows = [f"{text},{'good' if i % 2 else 'bad'}" for i, text in enumerate(CHINESE)]
    written(tmp_path / "reviews.csv", "\n".join(["text,label", *rows]))
    with pytest.raises(ConfigError, match=r"differ in words that .* Add texts\. Or split them into .*tokens=char"):
        read(str(tmp_path / "reviews.csv"), tokens="words")


def test_a_person_may_say_what_a_text_is_split_into(tmp_path):
    source = polarity(tmp_path)
    assert read(source).features["text"].tokens == "words" and read(source).source.changes == ()
    prepared = read(source, tokens="characters")
    assert {len(word) for word in prepared.features["text"].vocabulary} == {1}
    assert prepared.source.changes[0].text.startswith("Texts are split into characters; 0% of the letters")


def test_a_single_file_of_lines_is_refused_with_the_cure(tmp_path):
    with pytest.raises(ConfigError, match=r"must be a folder, got the file .*rt.pos. Give the folder that holds it"):
        read(polarity(tmp_path) + "/rt.pos")


@pytest.mark.skipif(not (SHARED / "rt-polarity").exists(), reason="shared/data/rt-polarity is not here")
def test_sentence_polarity_is_read_whole():
    prepared = read(str(SHARED / "rt-polarity"))
    assert sum(part.rows for part in prepared.splits.values()) == 10_662
    assert prepared.target == ClassTarget(classes=("neg", "pos"))
    assert 8_000 < len(prepared.features["text"].vocabulary) < 10_000
    train, test = ({tuple(part.columns["text"][i]) for i in range(part.rows)} for part in prepared.splits.values())
    assert not train & test
