"""Gradients: exact, never silently wrong, and refused where PyTorch itself refuses."""

from __future__ import annotations

import cases
import pytest

torch = pytest.importorskip("torch")
from gradient_cases import IDS, PLACES, ROTARIES, YARN, check_gradients, random, tabulated  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned, Rotary  # noqa: E402
from fastpe.torch import _gather_sum, functional  # noqa: E402

# What PyTorch itself does when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


# ---- functional forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_add_encoding(place):
    for scale in (1.0, 2.5):
        check_gradients(lambda x: functional.add_encoding(x, input_scale=scale, **PLACES[place]), random(2, 3, 4))  # noqa: B023


@pytest.mark.parametrize("place", [place for place in PLACES if place != "real"])
@pytest.mark.parametrize("rule", ["error", "clip"])
def test_learned(place, rule):
    rows = 8 if rule == "error" else 3

    def add(x, table):
        return functional.add_encoding(x, Learned(table, rule), input_scale=2.0, **PLACES[place])

    check_gradients(add, random(2, 3, 4), random(rows, 4, seed=1))


def test_learned_with_other_axes():
    """The table alone needs a gradient; heads; T in front; T before the heads."""
    for seq_axis in (0, 1, -2):
        x = random(3, 3, 3, 4, requires_grad=False)
        for given in ({"offset": 1}, {"mask": torch.tensor([[True, False, True]] * 3)}):
            check_gradients(
                lambda table, s=seq_axis, g=given, x=x: functional.add_encoding(x, Learned(table), seq_axis=s, **g),
                random(4, 4, seed=1),
            )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ROTARIES)
def test_apply_rotary(place, name):
    def rotate(q, k):
        return functional.apply_rotary(q, k, ROTARIES[name], **PLACES[place])

    check_gradients(rotate, random(2, 2, 3, 8), random(2, 1, 3, 8, seed=1))


@pytest.mark.parametrize("name", ["attention_factor", "xpos"])
def test_apply_rotary_inverse_and_keys_alone(name):
    check_gradients(lambda q: functional.apply_rotary(q, None, ROTARIES[name], offset=5, inverse=True), random(3, 8))
    check_gradients(lambda k: functional.apply_rotary(None, k, ROTARIES[name], offset=5, inverse=True), random(3, 8))
    check_gradients(lambda k: functional.apply_rotary(None, k, ROTARIES[name], offset=5), random(3, 8))


@pytest.mark.parametrize("inverse", [False, True])
def test_tables(inverse):
    for given in ({"offset": 2}, {"positions": [7, 0, 3]}, {"mask": [True, False, True]}):
        encoding = tabulated()
        check_gradients(
            lambda q, k, e=encoding, g=given: functional.apply_rotary(q, k, e, inverse=inverse, **g),
            random(2, 2, 3, 8),
            random(2, 1, 3, 8, seed=1),
        )


def test_axes_of_positions():
    positions = torch.arange(2 * 2 * 3).reshape(2, 2, 3)
    encoding = Rotary(sections=(1, 3))
    check_gradients(lambda q: functional.apply_rotary(q, None, encoding, positions=positions), random(2, 2, 3, 8))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["half", "xpos", "table"])
def test_apply_rotary_qkv(place, name):
    if (place, name) == ("real", "table"):
        pytest.skip("positions of a table are integers")
    encoding = tabulated() if name == "table" else ROTARIES[name]
    for seq_axis, shape in ((-3, (2, 3, 4, 8)), (-2, (2, 4, 3, 8))):
        check_gradients(
            lambda x, s=seq_axis: functional.apply_rotary_qkv(x, (2, 1), encoding, seq_axis=s, **PLACES[place]), random(*shape)
        )


@pytest.mark.parametrize("name", ["half", "partial", "xpos"])
def test_rerotate(name):
    encoding = ROTARIES[name]
    for given in ({"delta": 3}, {"delta": torch.tensor([2.5, -1.0])}, {"delta": 2, "mask": [True, False, True]}):
        check_gradients(lambda k, g=given: functional.rerotate(k, encoding=encoding, **g), random(2, 3, 8))


def test_rerotate_to_another_rule():
    given = {"source": Rotary(), "target": Rotary(scaling=YARN)}
    for more in ({"offset": 7}, {"positions": [3, 1, 2], "delta": 4}, {"delta": torch.tensor([1, 2]), "offset": 5}):
        check_gradients(lambda k, m=more: functional.rerotate(k, **given, **m), random(2, 3, 8))


@pytest.mark.parametrize("place", [place for place in PLACES if place != "real"])
@pytest.mark.parametrize("form", ["plain", "padding", "deterministic"])
def test_embed(place, form):
    more = {
        "plain": {},
        "padding": {"padding_idx": 3} if place != "positions" else {},
        "deterministic": {"deterministic": True},
    }[form]

    def look_up(table, types, learned):
        token_types = (IDS % 2, types)
        return functional.embed(IDS, table, Learned(learned), scale=2.0, token_types=token_types, **PLACES[place], **more)

    check_gradients(look_up, random(6, 4), random(2, 4, seed=1), random(8, 4, seed=2))
    check_gradients(lambda table: functional.embed(IDS, table, "sinusoidal", **PLACES[place], **more), random(6, 4))


@pytest.mark.parametrize("ids", [3, [3, 1], [[[1, 2, 0]], [[2, 2, 5]]]])
def test_embed_of_other_ranks(ids):
    """A single id, a sequence, heads; with and without a mask."""
    ids = torch.tensor(ids)
    length = ids.shape[-1] if ids.dim() else 1
    for given in ({"offset": 1}, {"mask": torch.arange(length) != 1}):
        check_gradients(
            lambda table, learned, g=given: functional.embed(ids, table, Learned(learned), **g),
            random(6, 4),
            random(5, 4, seed=1),
        )


def test_public_verb_embeds_with_gradients():
    table = random(6, 4)
    fastpe.embed(IDS, table, "sinusoidal", scale=3.0).sum().backward()
    assert torch.equal(table.grad[3], torch.full((4,), 9.0, dtype=torch.float64))


# ---- in place ----------------------------------------------------------------------------------------------------------------

IN_PLACE = {
    "add_encoding": (lambda x: fastpe.add_encoding(x, input_scale=2.0), lambda x: functional.add_encoding(x, input_scale=2.0)),
    "masked": (
        lambda x: fastpe.add_encoding(x, input_scale=2.0, mask=[True, False, True]),
        lambda x: functional.add_encoding(x, input_scale=2.0, mask=[True, False, True]),
    ),
    "q": (lambda x: fastpe.apply_rotary(x, offset=2), lambda x: functional.apply_rotary(x, offset=2)),
    "k": (
        lambda x: fastpe.apply_rotary(None, x, ROTARIES["xpos"], offset=2),
        lambda x: functional.apply_rotary(None, x, ROTARIES["xpos"], offset=2),
    ),
    "rerotate": (lambda x: fastpe.rerotate(x, 3), lambda x: functional.rerotate(x, 3)),
    "qkv": (
        lambda x: functional.apply_rotary_qkv(x[:, :, None], (1, 0), inplace=True)[:, :, 0],
        lambda x: functional.apply_rotary(x),
    ),
}


def gradient(function, x, watched):
    """The gradient of a sum of cubes of what a function makes of x."""
    leaf = x.detach().clone().requires_grad_(watched)
    (result := function(leaf) ** 3).sum().backward()
    return leaf.grad, result.detach()


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("view", ["whole", "rows", "slice", "transposed", "two_views"])
def test_in_place_like_functional(name, view):
    """In place on a tensor with history, or on a view of one, whose base sees it: the gradients of the functional form."""
    in_place, form = IN_PLACE[name]

    def part(y):
        return {
            "whole": lambda: y,
            "rows": lambda: y[:, 1:],
            "slice": lambda: y[..., :4],
            "transposed": lambda: y.transpose(0, 1),
            "two_views": lambda: y[:, 1:][..., 2:6],
        }[view]()

    def written(x):
        y = x * 1.5
        target = part(y)
        version = y._version
        got = in_place(target)
        assert name == "qkv" or got is target
        assert y._version == version + 1
        return y

    def expected(x):
        y = x * 1.5
        result = y.clone()
        part(result).copy_(form(part(y)))
        return result

    x = random(3, 4, 8) if view == "rows" or view == "two_views" else random(3, 3, 8)
    for got, wanted in zip(gradient(written, x, True), gradient(expected, x, True), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    check_gradients(lambda x: written(x), x)


def test_slices_of_a_packed_tensor_in_place():
    """q and k, slices of one tensor, in one call; the packed form likewise."""

    def slices(x):
        qkv = x * 1.0
        q, k = qkv[:, :, :2], qkv[:, :, 2:3]
        turned = fastpe.apply_rotary(q, k, seq_axis=-3, offset=1)
        assert turned[0] is q
        return qkv, q * 2, k * 3

    def packed(x):
        qkv = x * 1.0
        assert functional.apply_rotary_qkv(qkv, (2, 1), offset=1, inplace=True) is qkv
        return qkv, qkv[:, :, :2] * 2, qkv[:, :, 2:3] * 3

    def expected(x):
        qkv = functional.apply_rotary_qkv(x * 1.0, (2, 1), offset=1)
        return qkv, qkv[:, :, :2] * 2, qkv[:, :, 2:3] * 3

    x = random(2, 3, 4, 8)
    for function in (slices, packed):
        check_gradients(function, x)
        for got, wanted in zip(function(x), expected(x), strict=True):
            assert torch.equal(got, wanted)


def test_in_place_learned():
    """x needs no gradient, the table does; then both."""

    def add(table):
        return fastpe.add_encoding(torch.zeros(2, 3, 4, dtype=torch.float64), Learned(table), offset=1)

    check_gradients(add, random(5, 4))
    check_gradients(
        lambda x, table: fastpe.add_encoding(x * 1, Learned(table), input_scale=3.0), random(2, 3, 4), random(5, 4, seed=1)
    )


def test_one_of_a_pair_needs_a_gradient():
    q, k = random(2, 3, 8), random(2, 3, 8, requires_grad=False)
    moving, versions = q * 1, k._version
    fastpe.apply_rotary(moving, k)
    assert not k.requires_grad
    assert k._version == versions + 1
    assert moving._version == 1
    moving.sum().backward()
    assert q.grad is not None


def test_saved_before_in_place():
    """What an earlier function saved must not be overwritten; nor what a rotation saved."""
    for write in (fastpe.add_encoding, fastpe.apply_rotary, lambda x: fastpe.rerotate(x, 2)):
        y = random(2, 3, 8) * 1
        z = y**2
        write(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()
    positions, mask = torch.arange(3), torch.tensor([True, False, True])
    cos, sin = random(8, 2, requires_grad=False), random(8, 2, requires_grad=False, seed=1)
    for saved, given in (
        (positions, {"positions": positions}),
        (mask, {"mask": mask}),
        (cos, {"encoding": Rotary.tabulated(cos, sin)}),
        (sin, {"encoding": Rotary.tabulated(cos, sin)}),
    ):
        result = functional.apply_rotary(random(2, 3, 8), **given)
        saved.copy_(saved.clone())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()
    ids = IDS.clone()
    result = functional.embed(ids, random(6, 4))
    ids.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


# ---- embeddings beside PyTorch's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore:Sparse invariant:UserWarning")  # PyTorch's of its own sparse gradients
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("frozen", [None, 3])
@pytest.mark.parametrize("deterministic", [False, True])
def test_embed_like_pytorch(dtype, sparse, frozen, deterministic):
    ids = torch.randint(0, 50, (4, 100), generator=torch.Generator().manual_seed(0))
    ours, theirs = (random(50, 16, dtype=getattr(torch, dtype)) for _ in range(2))
    weight = random(4, 100, 16, dtype=ours.dtype, requires_grad=False, seed=3)
    got = functional.embed(ids, ours, sparse=sparse, frozen_idx=frozen, deterministic=deterministic)
    wanted = torch.nn.functional.embedding(ids, theirs, padding_idx=frozen, sparse=sparse)
    assert torch.equal(got, wanted)
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert ours.grad.layout == theirs.grad.layout
    torch.testing.assert_close(ours.grad.to_dense(), theirs.grad.to_dense())
    if frozen is not None:
        assert not ours.grad.to_dense()[frozen].any()
    if sparse:
        torch.optim.SparseAdam([ours]).step()


@pytest.mark.parametrize("row", [-1, 50])
def test_a_frozen_row_is_one_of_the_table(row):
    """An id that no token can have would freeze nothing."""
    with pytest.raises(ValueError, match=rf"frozen_idx must lie in \[0, 50\), got {row}"):
        functional.embed(IDS, random(50, 16), frozen_idx=row)


def test_embed_deterministic_algorithms():
    table = random(50, 16)
    torch.use_deterministic_algorithms(True)
    try:
        functional.embed(IDS, table).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(table.grad[3], torch.full((16,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("rounds_once", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1.1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bits(dtype, scale, rounds_once, monkeypatch):
    """Thousands of rows of one token, scaled by what 16 bits do not hold exactly: rounded once, at the end, whatever PyTorch does."""
    if not rounds_once:
        monkeypatch.setattr(_gather_sum, "_rounds_once", lambda *_: False)
    kind, count = getattr(torch, dtype), 3_001
    ids = torch.zeros(1, count, dtype=torch.int64)
    weight = random(1, count, 16, dtype=torch.float32, requires_grad=False).abs().to(kind)
    table, types, learned = (torch.ones(2, 16, dtype=kind, requires_grad=True) for _ in range(3))
    result = functional.embed(ids, table, Learned(learned, "clip"), scale=scale, token_types=(ids, types))
    (result * weight).sum().backward()
    exact = weight.double().sum((0, 1))
    torch.testing.assert_close(table.grad[0], (exact * scale).to(kind), rtol=cases.UNIT[dtype] * 2.1, atol=0)
    torch.testing.assert_close(types.grad[0], exact.to(kind), rtol=cases.UNIT[dtype] * 2.1, atol=0)
    torch.testing.assert_close(learned.grad.sum(0), exact.to(kind), rtol=cases.UNIT[dtype] * 2.1, atol=0)


def test_learned_table_of_another_type():
    """A float32 table under a bfloat16 array gets sums that were not rounded to bfloat16."""
    x = torch.zeros(1, 1_001, 4, dtype=torch.bfloat16, requires_grad=True)
    table = torch.ones(2, 4, requires_grad=True)
    weight = random(1, 1_001, 4, dtype=torch.float32, requires_grad=False).to(torch.bfloat16)
    for add in (functional.add_encoding, lambda x, e: fastpe.add_encoding(x * 1, e)):
        table.grad = None
        (add(x, Learned(table, "clip")) * weight).sum().backward()
        assert table.grad.dtype == torch.float32
        torch.testing.assert_close(table.grad[1].double(), weight[0, 1:].double().sum(0), rtol=1e-5, atol=1e-5)
