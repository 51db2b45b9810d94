"""Positions of the rows that ranks of context parallelism hold, against the definitions of those who split them."""

from __future__ import annotations

import numpy as np
import pytest

import fastpe
from fastpe.positions import context_parallel

RANKS = (1, 2, 3, 4, 8)


def chunks(length: int, ranks: int) -> list[np.ndarray]:
    return np.split(np.arange(length), ranks)


def each_rank(length: int, ranks: int, order: str, cu_seqlens: object = None) -> list[np.ndarray]:
    return [context_parallel(length, rank, ranks, order, cu_seqlens) for rank in range(ranks)]


@pytest.mark.parametrize("order", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize("ranks", RANKS)
def test_every_row_is_held_once(order: str, ranks: int):
    held = each_rank(48, ranks, order)
    assert {(one.dtype, len(one)) for one in held} == {(np.dtype(np.int64), 48 // ranks)}
    assert sorted(np.concatenate(held)) == list(range(48))


@pytest.mark.parametrize("ranks", RANKS)
def test_zigzag_is_the_first_and_the_last_chunk(ranks: int):
    """Megatron's and TransformerEngine's definition: of 2n chunks those numbered r and 2n - 1 - r."""
    parts = chunks(96, 2 * ranks)
    for rank, found in enumerate(each_rank(96, ranks, "zigzag")):
        assert found.tolist() == [*parts[rank], *parts[2 * ranks - 1 - rank]]


@pytest.mark.parametrize("ranks", RANKS)
def test_striped_is_every_nth_row(ranks: int):
    """Striped attention deals rows out like cards; a length need not be a multiple."""
    for length in (48, 50, 1, 0):
        for rank, found in enumerate(each_rank(length, ranks, "striped")):
            assert found.tolist() == [row for row in range(length) if row % ranks == rank]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("length", [48, 50, 5, 1, 0])
def test_contiguous_is_how_torch_chunks(ranks: int, length: int):
    torch = pytest.importorskip("torch")
    parts = [part.tolist() for part in torch.arange(length).chunk(ranks)] if length else []
    parts += [[]] * (ranks - len(parts))
    assert [found.tolist() for found in each_rank(length, ranks, "contiguous")] == parts


@pytest.mark.parametrize("ranks", RANKS)
def test_zigzag_is_the_order_of_pytorch(ranks: int):
    balancers = pytest.importorskip("torch.distributed.tensor.experimental._context_parallel._load_balancer")
    indices = balancers._HeadTailLoadBalancer(96, ranks, "cpu")._generate_indices()[0]
    assert np.concatenate(each_rank(96, ranks, "zigzag")).tolist() == indices.tolist()


@pytest.mark.parametrize("ranks", RANKS)
def test_zigzag_splits_each_packed_sequence(ranks: int):
    """As TransformerEngine splits packed rows: each sequence by itself, empty ones too."""
    lengths = [2 * ranks * n for n in (3, 0, 1, 5, 0)]
    boundaries = np.cumsum([0, *lengths])
    for rank, found in enumerate(each_rank(boundaries[-1], ranks, "zigzag", boundaries)):
        expected = [context_parallel(length, rank, ranks, "zigzag") for length in lengths]
        assert found.tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize("order", ["contiguous", "striped"])
@pytest.mark.parametrize("ranks", RANKS)
def test_other_orders_split_the_packed_rows_as_a_whole(order: str, ranks: int):
    boundaries = [0, 5, 5, 6, 31]
    packed = fastpe.positions.packed(boundaries)
    for rank, found in enumerate(each_rank(31, ranks, order, boundaries)):
        assert found.tolist() == packed[context_parallel(31, rank, ranks, order)].tolist()


@pytest.mark.parametrize("order", ["contiguous", "zigzag", "striped"])
def test_rows_of_a_rank_have_the_bits_of_the_whole(order: str):
    q = np.random.default_rng(0).standard_normal((2, 3, 32, 8), np.float32)
    whole = fastpe.apply_rotary(q.copy())
    for rank in range(4):
        positions = context_parallel(32, rank, 4, order)
        own = np.ascontiguousarray(q[:, :, positions])
        np.testing.assert_array_equal(fastpe.apply_rotary(own, positions=positions), whole[:, :, positions])


@pytest.mark.parametrize("order", ["contiguous", "zigzag", "striped"])
def test_of_tensors_and_like_tensors(order: str):
    torch = pytest.importorskip("torch")
    expected = context_parallel(24, 1, 2, order, [0, 8, 24])
    for options in (
        {"cu_seqlens": torch.tensor([0, 8, 24], dtype=torch.int32)},
        {"cu_seqlens": [0, 8, 24], "like": torch.zeros(1)},
    ):
        found = context_parallel(24, 1, 2, order, **options)
        assert isinstance(found, torch.Tensor)
        assert found.dtype is torch.int64
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ((7, 0, 2, "zigzag"), ValueError, r"length must be a multiple of 2 \* ranks = 4, got 7. Pad the sequence."),
        ((8, 2, 2), ValueError, r"rank must lie in \[0, 2\), got 2"),
        ((8, -1, 2), ValueError, r"rank must lie in \[0, 2\), got -1"),
        ((8, 0, 0), ValueError, "ranks must be at least 1, got 0"),
        ((-8, 0, 1), ValueError, "length must be 0 or more, got -8"),
        ((8.0, 0, 1), TypeError, "length must be an integer, got float 8.0"),
        ((8, 0, 1, "ring"), ValueError, "order must be one of 'contiguous', 'zigzag', 'striped', got str 'ring'"),
        (
            (8, 0, 1, "striped", [0, 7]),
            ValueError,
            r"cu_seqlens must start at 0, never decrease and end at length = 8, got \[0, 7\]",
        ),
        ((8, 0, 1, "striped", [1, 8]), ValueError, "cu_seqlens must start at 0"),
        ((8, 0, 1, "striped", [0, 5, 3, 8]), ValueError, "never decrease"),
        ((8, 0, 1, "striped", []), TypeError, "cu_seqlens must be integers"),
        (
            (12, 0, 2, "zigzag", [0, 4, 6, 12]),
            ValueError,
            "every sequence must be as long as a multiple .* got 2 rows in sequence 1",
        ),
    ],
)
def test_errors_say_what_came(arguments: tuple, kind: type, words: str):
    with pytest.raises(kind, match=words):
        context_parallel(*arguments)
