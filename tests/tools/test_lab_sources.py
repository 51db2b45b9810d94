"""What the extrapolation lab fetches, and sentiment analysis, which reads it: without a network, a package client stands in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
ROOT = Path(__file__).resolve().parents[2]
from bench.extrapolation import sources  # noqa: E402
from bench.extrapolation.sources import LabError, cache, fetch  # noqa: E402
from bench.extrapolation.tasks import IGNORED, sentiment  # noqa: E402
from bench.extrapolation.tasks.sentiment import END, HIDDEN, SIGNS, Sentiment, make, read  # noqa: E402

CONTENT = b"an archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ASKED = ("thing==1.0", "thing-1.0.zip", SHA256)
# Not find_spec: asked for pip, setuptools lets the deprecated distutils of the library through from then on.
HAS_PIP = any(found.name == "pip" for found in importlib.metadata.distributions())


# ---- archives ----------------------------------------------------------------------------------------------------------------


class Client:
    """Stands in for pip: writes a file where it is told to, or fails."""

    def __init__(self, content: bytes = CONTENT, complaint: str = "", file: str = "thing-1.0.zip") -> None:
        self.content, self.complaint, self.file = content, complaint, file
        self.commands: list[list[str]] = []
        self.requirements: list[str] = []

    def __call__(self, command: list[str], **options: Any) -> Any:
        self.commands.append(command)
        self.requirements.append(Path(command[command.index("--requirement") + 1]).read_text())
        if not self.complaint:
            folder = Path(command[command.index("--dest") + 1])
            folder.mkdir()
            (folder / self.file).write_bytes(self.content)
        return subprocess.CompletedProcess(command, int(bool(self.complaint)), stderr=self.complaint)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the archive belongs, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastpe" / "lab" / "archives" / "thing-1.0.zip"


def use(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(sources.subprocess, "run", client)
    return client


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache() == tmp_path / "fastpe" / "lab"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert cache() == tmp_path / "me" / ".cache" / "fastpe" / "lab"


def test_an_archive_is_fetched_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = use(Client(), monkeypatch)
    assert fetch(*ASKED) == fetch(*ASKED) == place
    assert place.read_bytes() == CONTENT
    assert client.requirements == [f"thing==1.0 --hash=sha256:{SHA256}\n"]
    assert client.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert list(place.parent.iterdir()) == [place]  # nothing else is left


def test_another_file_in_its_place_is_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = use(Client(), monkeypatch)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half an arch")
    assert fetch(*ASKED).read_bytes() == CONTENT
    assert len(client.commands) == 1


def test_no_registry_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = use(Client(), monkeypatch)
    fetch(*ASKED)
    assert not [word for word in client.commands[0] if "://" in word or "index" in word]


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (
            Client(complaint="WARNING: Retrying\nERROR: No versions\nERROR: No matching distribution.\nhint\n"),
            "No matching distribution",
        ),
        (Client(complaint="/bin/python: No module named pip\n"), "/bin/python: No module named pip"),
        (Client(content=b"another"), "thing-1.0.zip, not thing-1.0.zip with this checksum"),
        (Client(file="thing-1.0.tar.gz"), "thing-1.0.tar.gz, not thing-1.0.zip with this checksum"),
    ],
)
def test_an_error_says_what_to_do(client: Client, reason: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(client, monkeypatch)
    with pytest.raises(LabError) as caught:
        fetch(*ASKED)
    said = str(caught.value)
    assert said.startswith("fetch: thing==1.0 must be fetched by pip, got ")
    assert f"{reason}. Connect once, or put thing-1.0.zip (SHA-256 {SHA256}) at {place}." in said
    assert len(client.commands) == 1
    assert list(place.parent.iterdir()) == []


def test_a_wrong_file_stays_where_nothing_better_is_had(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Client(complaint="ERROR: offline"), monkeypatch)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    with pytest.raises(LabError, match=r"thing-1\.0\.zip, where another file is\.$"):
        fetch(*ASKED)
    assert place.read_bytes() == b"mine"


@pytest.mark.skipif(not HAS_PIP, reason="there is no pip")
@pytest.mark.parametrize("right", [True, False])
def test_pip_runs_nothing_of_an_archive(right: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself, and a folder instead of the network: a setup.py would say so."""
    folder = tmp_path / "links"
    folder.mkdir()
    with zipfile.ZipFile(folder / "thing-1.0.zip", "w") as archive:
        archive.writestr("thing-1.0/PKG-INFO", "Metadata-Version: 1.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0/setup.py", f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    content = (folder / "thing-1.0.zip").read_bytes()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    if right:
        assert fetch("thing==1.0", "thing-1.0.zip", hashlib.sha256(content).hexdigest()).read_bytes() == content
    else:
        with pytest.raises(LabError, match="DO NOT MATCH THE HASHES"):
            fetch("thing==1.0", "thing-1.0.zip", "0" * 64)
        assert not place.exists()
    assert not (tmp_path / "was-run").exists()


# ---- sentiment ---------------------------------------------------------------------------------------------------------------

WORDS = {-1: ["awful", "dull", "hate", "worst"], 1: ["great", "lovely", "fine", "best"]}
COUNTS = {-1: 40, 1: 100}  # of each source: the signs are not balanced


def rated(source: str) -> list[tuple[float, str]]:
    """Snippets of a source: some of each sign, neutral ones, one that is too long and one with marks of HTML and accents."""
    rng = np.random.default_rng(len(source))
    found = [
        (sign * 1.5, f"{source} {n} " + " ".join(rng.choice(WORDS[sign], rng.integers(1, 9))))
        for sign, count in COUNTS.items()
        for n in range(count)
    ]
    neutral = [(0.3 * way, f"so so {way} {n}") for way in (-1, 1) for n in range(5)]
    return [*found, *neutral, (2.0, "great " * 90), (0.5, "caf\u00e9 &amp; bar &lt;3")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive like the published one, with few snippets."""
    path, inner = tmp_path_factory.mktemp("archive") / "snippets.zip", io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for source in [*sentiment.SOURCES, "nytEditorialSnippets"]:
            text = "".join(f"{n}\t{rating}\t{text}\r\n" for n, (rating, text) in enumerate(rated(source)))
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr(sentiment.MEMBER, inner.getvalue())
    return path


@pytest.fixture
def task(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sentiment:
    monkeypatch.setattr(sentiment, "fetch", lambda *asked: archive)
    Sentiment.prepare(tmp_path)
    monkeypatch.setattr(sentiment, "fetch", None)  # what is prepared is not fetched again
    Sentiment.prepare(tmp_path)
    return Sentiment(tmp_path, 64)


def test_snippets_are_read_with_their_ratings(archive: Path) -> None:
    found = read(archive)
    assert len(found) == len(sentiment.SOURCES)
    for source, texts in zip(sentiment.SOURCES, found, strict=True):
        assert texts["so so 1 4"] == 0.3
        assert texts["caf\u00e9 & bar <3"] == 0.5
        assert len(texts) == len(rated(source))


def rows(arrays: dict[str, Any], name: str) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for row in np.split(arrays[name], arrays[f"{name}_starts"][1:-1])]


def test_snippets_are_split_balanced_and_the_same_each_time(archive: Path) -> None:
    arrays, again = make(read(archive)), make(read(archive))
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    parts = {(part, sign): rows(arrays, f"{part}_{sign}") for part in ("training", "held_out") for sign in SIGNS}
    for sign in SIGNS:
        assert not set(parts["training", sign]) & set(parts["held_out", sign])
        for part in ("training", "held_out"):
            assert all(1 < len(row) <= sentiment.SHORT and row[-1] == END and END not in row[:-1] for row in parts[part, sign])
    held_out = len(sentiment.SOURCES) * int(sentiment.HELD_OUT * COUNTS[-1])
    assert [len(parts["held_out", sign]) for sign in SIGNS] == [held_out, held_out]
    assert len(set(parts["training", "negative"])) == len(sentiment.SOURCES) * COUNTS[-1] - held_out
    positive = COUNTS[1] + 2  # of a source
    training = len(sentiment.SOURCES) * (positive - int(sentiment.HELD_OUT * positive))
    assert len(parts["training", "negative"]) == training
    assert (
        training - len(sentiment.SOURCES) <= len(parts["training", "positive"]) <= training
    )  # without those that are too long


def snippets_of(ids: Any) -> list[tuple[int, ...]]:
    """The snippets of a text, without the padding."""
    found, now = [], []
    for token in ids.tolist():
        now.append(token)
        if token == END:
            if len(now) > 1:
                found.append(tuple(now))
            now = []
    return found


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_batches_are_of_training_snippets_of_one_sign(factor: int, task: Sentiment, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sentiment, "HIDE", 0.0)
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        known = [set(rows(dict(found), f"training_{sign}")) for sign in SIGNS]
    ids, targets = task.batch(np.random.default_rng(3), 16, factor)
    assert ids.shape == targets.shape == (16, 64 * factor)
    assert ids.dtype == targets.dtype == torch.int64
    assert ids.max() < task.tokens
    signs = []
    for text, asked in zip(ids, targets, strict=True):
        snippets = snippets_of(text)
        ends = np.cumsum([len(snippet) for snippet in snippets])
        assert 64 * (factor - 1) < ends[-1] <= 64 * factor
        assert np.flatnonzero(asked != IGNORED).tolist() == (ends - 1).tolist()
        [sign] = {int(target) for target in asked[ends - 1]}
        assert set(snippets) <= known[sign]
        signs.append(sign)
    assert sum(signs) == 8


def test_batches_depend_on_their_generator_alone(task: Sentiment) -> None:
    first, second, third = (task.batch(np.random.default_rng(seed), 8) for seed in (3, 4, 3))
    assert torch.equal(first.ids, third.ids)
    assert torch.equal(first.targets, third.targets)
    assert not torch.equal(first.ids, second.ids)


def test_training_hides_tokens(task: Sentiment) -> None:
    ids, targets = task.batch(np.random.default_rng(3), 200)
    share = float((ids == HIDDEN).sum() / (ids != END).sum())
    assert abs(share - sentiment.HIDE) < 0.02  # 9 000 tokens: 4 standard deviations
    assert (ids[targets != IGNORED] == END).all()


class Reader:
    """Tells the sign of a text's last snippet, at its end, and the other one everywhere else; remembers what it read."""

    def __init__(self, known: list[set[tuple[int, ...]]]) -> None:
        self.known, self.read = known, list[Any]()

    def __call__(self, ids: Any) -> Any:
        self.read.append(ids)
        scores = torch.zeros(*ids.shape, 2)
        for n, text in enumerate(ids):
            snippets = snippets_of(text)
            sign = int(snippets[-1] in self.known[1])
            scores[n, :, 1 - sign] = 4.0
            scores[n, sum(map(len, snippets)) - 1] = torch.tensor([4.0, 0.0] if sign == 0 else [0.0, 4.0])
        return scores


@pytest.mark.parametrize("factor", [1, 4, 16])
def test_signs_are_judged_at_the_end_of_held_out_texts(factor: int, task: Sentiment, tmp_path: Path) -> None:
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        known = [set(rows(dict(found), f"held_out_{sign}")) for sign in SIGNS]
    first, second = Reader(known), Reader(known[::-1])
    right, wrong = task.evaluate(first, factor, 20), task.evaluate(second, factor, 20)  # type: ignore[arg-type]
    assert list(right) == list(Sentiment.metrics)
    assert (right["accuracy"], wrong["accuracy"]) == (1.0, 0.0)
    assert right["nats"] == pytest.approx(np.log1p(np.exp(-4.0)), rel=1e-5)  # float32
    assert wrong["nats"] == pytest.approx(4.0 + right["nats"], rel=1e-5)
    texts = torch.cat(first.read)
    assert torch.equal(texts, torch.cat(second.read))
    assert len(texts) == (20 if factor == 16 else 80)
    assert max(ids.numel() for ids in first.read) <= sentiment.CHUNK
    for text in texts:
        snippets = snippets_of(text)
        assert set(snippets) <= known[0] or set(snippets) <= known[1]
        assert 64 * (factor - 1) < sum(map(len, snippets)) <= 64 * factor


def test_a_length_below_the_longest_snippets_is_refused(task: Sentiment, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Sentiment: length must be at least 64, that of the longest snippet, got 32"):
        Sentiment(tmp_path, 32)
