"""Gradients: exact, never silently wrong, and refused where PyTorch itself refuses."""

from __future__ import annotations

import contextlib

import cases
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad, gradcheck, gradgradcheck  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal  # noqa: E402
from fastpe.torch import functional, ownership  # noqa: E402

# What PyTorch itself does when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

YARN = fastpe.scaling.YaRN(8.0, 64)
ROTARIES = {
    "half": Rotary(),
    "interleaved": Rotary(interleaved=True),
    "partial": Rotary(rotary_dim=4, rotary_offset=2),
    "attention_factor": Rotary(scaling=YARN),
    "xpos": Rotary(xpos_scale_base=4, interleaved=True),
}
PLACES = {
    "offset": {"offset": 3},
    "offsets": {"offset": [2, 5]},
    "positions": {"positions": torch.tensor([[0, 2, 1], [5, 3, 4]])},
    "real": {"positions": torch.tensor([0.5, 2.25, 1.0])},
    "cu_seqlens": {"cu_seqlens": [0, 1, 3]},
    "mask": {"mask": torch.tensor([[True, False, True], [False, True, True]])},
    "mask_row": {"mask": [True, False, True], "offset": 2},
}


def random(*shape, requires_grad=True, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_(requires_grad)


def check_gradients(function, *inputs):
    """Along random directions: element by element takes minutes."""
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def tabulated(pairs=2, rows=8):
    """Not orthogonal: the adjoint is the transpose, which is not the inverse."""
    return Rotary.tabulated(random(rows, pairs, requires_grad=False), random(rows, pairs, requires_grad=False, seed=1))


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


IDS = torch.tensor([[0, 3, 1], [3, 3, 5]])


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


# ---- what PyTorch forbids ----------------------------------------------------------------------------------------------------


class _Viewing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad


def _no_grad(function, x):
    with torch.no_grad():
        return function(x)


def _inference(function):
    with torch.inference_mode():
        return function()


TENSORS = {
    "plain": lambda: random(2, 3, 8, requires_grad=False),
    "non_leaf": lambda: random(2, 3, 8) * 1,
    "view": lambda: (random(2, 4, 8) * 1)[:, 1:],
    "view_of_view": lambda: (random(2, 4, 8) * 1)[:, 1:].transpose(0, 1),
    "detached": lambda: random(2, 3, 8).detach(),
    "view_of_detached": lambda: random(2, 4, 8).detach()[:, 1:],
    "plain_split": lambda: random(4, 3, 8, requires_grad=False).split(2)[0],
    "leaf": lambda: random(2, 3, 8),
    "parameter": lambda: torch.nn.Parameter(random(2, 3, 8)),
    "view_of_leaf": lambda: random(2, 4, 8)[:, 1:],
    "split": lambda: (random(4, 3, 8) * 1).split(2)[0],
    "chunk": lambda: (random(4, 3, 8) * 1).chunk(2)[1],
    "unbind": lambda: (random(4, 2, 3, 8) * 1).unbind(0)[1],
    "split_of_leaf": lambda: random(4, 3, 8).split(2)[0],
    "no_grad_view": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8) * 1),
    "no_grad_view_of_leaf": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8)),
    "no_grad_view_of_plain": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8, requires_grad=False)),
    "no_grad_leaf": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8, requires_grad=False)).requires_grad_(),
    "custom_view": lambda: _Viewing.apply(random(2, 3, 8) * 1),
    "inference_view": lambda: (lambda x: _inference(lambda: x[:, 1:]))(random(2, 4, 8) * 1),
}
WRITERS = {
    "add_encoding": lambda x: fastpe.add_encoding(x),
    "apply_rotary": lambda x: fastpe.apply_rotary(x),
    "rerotate": lambda x: fastpe.rerotate(x, 3),
    "apply_rotary_qkv": lambda x: functional.apply_rotary_qkv(x, 1, seq_axis=0, inplace=True),
}


def refusal(function, x):
    """The error that a function raises, or None; nothing is written where there is one."""
    before, version = x.detach().clone(), x._version
    try:
        function(x)
    except RuntimeError as error:
        assert torch.equal(x.detach(), before)
        assert x._version == version
        return str(error)
    assert x._version == version + 1
    return None


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", WRITERS)
def test_refuses_what_pytorch_refuses(name, kind):
    expected = refusal(lambda x: x.mul_(2), TENSORS[kind]())
    got = refusal(WRITERS[name], TENSORS[kind]())
    assert (got is None) == (expected is None), got or expected
    if got is not None:
        start, *_, remedy = got.split(": ", 1)[0], got
        assert start == name
        assert "Call fastpe.torch.functional." in remedy
        rule = got.removeprefix(f"{name}: ").partition(" Call fastpe")[0]
        assert rule.rstrip(".").partition(" and must not")[0] in expected
    with torch.no_grad():  # there all of them may be written
        assert refusal(WRITERS[name], TENSORS[kind]()) is None


@pytest.mark.parametrize("kind", TENSORS)
def test_refuses_where_only_the_table_needs_a_gradient(kind):
    table = random(5, 8)
    expected = refusal(lambda x: x.add_(table[0]), TENSORS[kind]())
    got = refusal(lambda x: fastpe.add_encoding(x, Learned(table)), TENSORS[kind]())
    assert (got is None) == (expected is None), got or expected


def test_second_of_a_pair_is_refused_before_the_first_is_written():
    for kind in ("leaf", "split", "no_grad_view"):
        first = random(2, 3, 8) * 1
        second = TENSORS[kind]()
        assert refusal(lambda x, s=second: fastpe.apply_rotary(x, s), first) is not None
        assert refusal(lambda x, s=second: fastpe.apply_rotary(s, x), first) is not None


def test_inference_tensors():
    """Written nowhere but in inference mode, as PyTorch has it."""
    for table in (None, random(5, 8)):
        x = _inference(lambda: torch.zeros(2, 3, 8, dtype=torch.float64))
        with pytest.raises(RuntimeError, match=r"add_encoding: an inference tensor must not be written outside InferenceMode"):
            fastpe.add_encoding(x, None if table is None else Learned(table))
        assert not x.clone().any()
        with pytest.raises(RuntimeError, match="outside InferenceMode"):
            x.add_(1)  # which writes first
    for write in (lambda: fastpe.apply_rotary(x), lambda: fastpe.rerotate(x), lambda: fastpe.encode([1, 2], 8, out=x[0, :2])):
        with pytest.raises(RuntimeError, match="inference tensor"):
            write()
    with torch.inference_mode():
        assert fastpe.add_encoding(x) is x


OUTS = {
    "add_encoding": lambda x, out: fastpe.add_encoding(x, out=out),
    "apply_rotary": lambda x, out: fastpe.apply_rotary(x, out=out),
    "rerotate": lambda x, out: fastpe.rerotate(x, 3, out=out),
    "embed": lambda x, out: fastpe.embed(torch.tensor([[0, 1, 2], [2, 1, 0]]), x.reshape(-1, 8), out=out),
}


@pytest.mark.parametrize("name", OUTS)
def test_out_has_no_history(name):
    for x, out in (
        (random(2, 3, 8), torch.zeros(2, 3, 8, dtype=torch.float64)),
        (random(2, 3, 8, requires_grad=False), random(2, 3, 8) * 1),
    ):
        before, version = out.detach().clone(), out._version
        with pytest.raises(RuntimeError, match=r"functions with out=... arguments don't support automatic differentiation"):
            torch.mul(x, 2, out=out)
        with pytest.raises(
            RuntimeError, match=f"{name}: functions with out=... arguments don't support automatic differentiation"
        ):
            OUTS[name](x, out)
        assert torch.equal(out, before)
        assert out._version == version
        with torch.no_grad():
            assert OUTS[name](x, out) is out
    target = random(3, 8) * 1
    with pytest.raises(RuntimeError, match="encode: functions with out="):
        fastpe.encode([0, 1, 2], 8, out=target)


def test_no_gradient_for_positions_scales_and_rotary_tables():
    x, real = random(2, 3, 8), random(3)
    table = random(8, 2)
    turned = Rotary.tabulated(table, table.detach())
    for function, name, call in (
        ("add_encoding", "positions", lambda: functional.add_encoding(x, positions=real)),
        ("add_encoding", "positions", lambda: fastpe.add_encoding(x.detach(), positions=real)),
        ("apply_rotary", "positions", lambda: functional.apply_rotary(x, positions=real)),
        ("apply_rotary", "positions", lambda: fastpe.apply_rotary(x.detach(), positions=real)),
        ("apply_rotary", "cos", lambda: functional.apply_rotary(x, None, turned)),
        ("apply_rotary", "cos", lambda: fastpe.apply_rotary(x.detach(), None, turned)),
        ("apply_rotary_qkv", "positions", lambda: functional.apply_rotary_qkv(x[None], 1, positions=real)),
        ("rerotate", "delta", lambda: functional.rerotate(x, delta=random(2))),
        ("rerotate", "delta", lambda: fastpe.rerotate(x.detach(), random(2))),
        ("rerotate", "positions", lambda: functional.rerotate(x, positions=real)),
        ("embed", "positions", lambda: functional.embed(IDS, random(6, 4), Sinusoidal(), positions=real)),
        (
            "embed",
            "row_scale",
            lambda: functional.embed(IDS, torch.zeros(6, 4, dtype=torch.int8), row_scale=random(6)),
        ),
        ("encode", "positions", lambda: fastpe.encode(real, 8)),
    ):
        before = x.detach().clone()
        with pytest.raises(RuntimeError, match=rf"{function}: there is no gradient for {name}, .* Pass {name}\.detach\(\)"):
            call()
        assert torch.equal(x, before)
    with torch.no_grad():
        assert not fastpe.encode(real, 8).requires_grad


# ---- gradients that are turned where they lie --------------------------------------------------------------------------------

REUSING = {
    "apply_rotary": (
        lambda x: functional.apply_rotary(x, offset=3),
        lambda g: fastpe.apply_rotary(g.clone(), offset=3, inverse=True),
    ),
    "add_encoding": (lambda x: functional.add_encoding(x, input_scale=2.0), lambda g: g * 2.0),
}


class _Noting(torch.autograd.Function):
    """Hands its gradient on as a new tensor, and notes where that lies."""

    addresses: list[int] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad * 1
        _Noting.addresses.append(grad.data_ptr())
        return grad


@pytest.mark.parametrize("name", REUSING)
def test_reused_where_nobody_else_sees_it(name):
    """Else a memory's worth more is taken: this is what the counts of references are for."""
    assert ownership._OWNED is not None
    form, adjoint = REUSING[name]
    x = random(2, 3, 8)
    (_Noting.apply(form(x)) * 2).sum().backward()
    assert x.grad.data_ptr() == _Noting.addresses[-1]
    assert torch.equal(x.grad, adjoint(torch.full_like(x, 2.0)))


def _hook_that_keeps(y, kept):
    y.register_hook(kept.append)


def _hook_that_keeps_a_view(y, kept):
    y.register_hook(lambda g: kept.append(g[:]))


def _hook_that_keeps_memory(y, kept):
    y.register_hook(lambda g: kept.append(g.numpy()))


def _hook_that_keeps_storage(y, kept):
    y.register_hook(lambda g: kept.append(g.untyped_storage()))


def _hook_that_detaches(y, kept):
    y.register_hook(lambda g: kept.append(g.detach()))


def _hook_that_exports(y, kept):
    y.register_hook(lambda g: kept.append(torch.utils.dlpack.to_dlpack(g.detach())))


def _node_prehook(y, kept):
    y.grad_fn.register_prehook(lambda grads: kept.extend(grads))


def _node_hook(y, kept):
    y.grad_fn.register_hook(lambda inputs, outputs: kept.extend(outputs))


def _retained(y, kept):
    y.retain_grad()
    kept.append(y)


WATCHERS = {
    function.__name__.strip("_"): function
    for function in (
        _hook_that_keeps,
        _hook_that_keeps_a_view,
        _hook_that_keeps_memory,
        _hook_that_keeps_storage,
        _hook_that_detaches,
        _hook_that_exports,
        _node_prehook,
        _node_hook,
        _retained,
    )
}


def values(kept):
    """What was kept, as a flat tensor."""
    if isinstance(kept, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.float64).set_(kept)
    if type(kept).__name__ == "PyCapsule":
        return torch.utils.dlpack.from_dlpack(kept).reshape(-1)
    if isinstance(kept, torch.Tensor):
        return (kept if kept.grad_fn is None else kept.grad).reshape(-1)
    return torch.from_numpy(kept).reshape(-1)


@pytest.mark.parametrize("name", REUSING)
@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("retain", [False, True])
def test_a_gradient_that_is_kept_stays(name, watcher, retain):
    form, adjoint = REUSING[name]
    x, kept = random(2, 3, 8), []
    y = form(x)
    WATCHERS[watcher](y, kept)
    loss = (y**2).sum()
    loss.backward(retain_graph=retain)
    wanted = 2 * y.detach()
    torch.testing.assert_close(x.grad, adjoint(wanted), rtol=1e-13, atol=1e-13)
    (one,) = kept
    assert torch.equal(values(one), wanted.reshape(-1))
    if retain:
        x.grad = None
        loss.backward()
        torch.testing.assert_close(x.grad, adjoint(wanted), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", REUSING)
@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_view_of_a_gradient_that_is_kept_stays(name, watcher, where):
    """What comes back through a transposition is a view: whoever keeps it, or the gradient that it is a view of, keeps it as it was."""
    form, adjoint = REUSING[name]
    x, kept = random(2, 3, 8), []
    y = form(x)
    z = y.transpose(0, 1)
    WATCHERS[watcher](y if where == "before" else z, kept)
    (z * z * 1.5).sum().backward()
    wanted = 3 * y.detach()
    torch.testing.assert_close(x.grad, adjoint(wanted), rtol=1e-13, atol=1e-13)
    (one,) = kept
    got = values(one).sort().values  # in whatever order they lie
    torch.testing.assert_close(got, wanted.reshape(-1).sort().values, rtol=1e-13, atol=1e-13)


class _Windows(torch.autograd.Function):
    """A gradient whose elements overlap."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return windows()


def windows():
    return torch.arange(200.0, dtype=torch.float64).as_strided((2, 3, 8), (16, 4, 1))


@pytest.mark.parametrize("name", REUSING)
def test_gradients_that_overlap_themselves(name):
    form, adjoint = REUSING[name]
    x = random(2, 3, 8)
    _Windows.apply(form(x)).sum().backward()
    torch.testing.assert_close(x.grad, adjoint(windows().clone()), rtol=1e-13, atol=1e-13)


class _Buffered(torch.autograd.Function):
    """Hands on a gradient that it keeps."""

    @staticmethod
    def forward(ctx, x, buffer):
        ctx.buffer = buffer
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return (torch.from_numpy(ctx.buffer) if not isinstance(ctx.buffer, torch.Tensor) else ctx.buffer), None


@pytest.mark.parametrize("name", REUSING)
def test_gradients_of_other_functions_stay(name):
    """Those that they keep, as a tensor or as memory of NumPy's; those that the caller gave; expanded ones; those used twice."""
    form, adjoint = REUSING[name]
    ones = torch.ones(2, 3, 8, dtype=torch.float64)
    for buffer in (ones.clone(), ones.numpy().copy()):
        x = random(2, 3, 8)
        _Buffered.apply(form(x), buffer).sum().backward()
        assert torch.equal(torch.as_tensor(buffer), ones)
        assert torch.equal(x.grad, adjoint(ones))
    x, given = random(2, 3, 8), ones.clone()
    form(x).backward(given)
    assert torch.equal(given, ones)
    (got,) = torch.autograd.grad(form(x), x, given)
    assert torch.equal(given, ones)
    assert torch.equal(got, adjoint(ones))
    form(y := random(2, 3, 8)).sum().backward()  # expanded from one number
    assert torch.equal(y.grad, adjoint(ones))
    form(y := random(2, 3, 8))[:, :1].expand(2, 3, 8).sum().backward()
    assert torch.equal(y.grad[:, 0], adjoint(ones * 3)[:, 0])


@pytest.mark.parametrize("name", REUSING)
def test_gradients_used_twice(name):
    form, adjoint = REUSING[name]
    ones = torch.ones(2, 3, 8, dtype=torch.float64)
    a, b, c = random(2, 3, 8), random(2, 3, 8, seed=1), random(2, 3, 8, seed=2)
    ((form(a) + form(b) + c) * 2).sum().backward()  # one gradient for three
    for x, wanted in ((a, adjoint(2 * ones)), (b, adjoint(2 * ones)), (c, 2 * ones)):
        assert torch.equal(x.grad, wanted)
    x = random(2, 3, 8)
    y = form(x)
    (y * 2 + y.relu() * 0 + y).sum().backward()  # three gradients for one
    assert torch.equal(x.grad, adjoint(3 * ones))
    for _ in range(2):  # added to what is there
        (form(x) * 2).sum().backward()
    torch.testing.assert_close(x.grad, adjoint(7 * ones), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", REUSING)
def test_two_gradients_of_one_graph(name):
    """Captured gradients of the result and of x; then of second order."""
    form, adjoint = REUSING[name]
    x = random(2, 3, 8)
    y = form(x)
    of_x, of_y = torch.autograd.grad((y**3).sum(), (x, y))
    assert torch.equal(of_y, 3 * y.detach() ** 2)
    torch.testing.assert_close(of_x, adjoint(of_y), rtol=1e-13, atol=1e-13)
    y = form(x)
    first, of_y = torch.autograd.grad((y**3).sum(), (x, y), create_graph=True)
    kept = of_y.detach().clone()
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(of_y, kept)
    ones = torch.ones_like(x)
    through = ones * 2.0 if name == "add_encoding" else fastpe.apply_rotary(ones.clone(), offset=3)
    torch.testing.assert_close(second, adjoint(6 * y.detach() * through), rtol=1e-12, atol=1e-12)


def test_gradients_that_negate_their_memory():
    """The imaginary part's gradient of a conjugate has no memory of its own values."""
    x = random(2, 3, 8)
    y = functional.apply_rotary(x)
    z = torch.complex(torch.zeros_like(y), y).conj()
    z.imag.sum().backward()
    assert torch.equal(x.grad, -fastpe.apply_rotary(torch.ones_like(x), inverse=True))


def test_counts_that_cannot_be_told_apart(monkeypatch):
    """Where nothing can be told of references, nothing is reused."""
    monkeypatch.setattr(ownership, "_OWNED", None)
    x = random(2, 3, 8)
    (_Noting.apply(functional.apply_rotary(x)) * 2).sum().backward()
    assert x.grad.data_ptr() != _Noting.addresses[-1]


# ---- embeddings beside PyTorch's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
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


def test_embed_deterministic_algorithms():
    table = random(50, 16)
    torch.use_deterministic_algorithms(True)
    try:
        functional.embed(IDS, table).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(table.grad[3], torch.full((16,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bits(dtype):
    """Thousands of rows of one token, scaled by what 16 bits do not hold exactly: rounded once, at the end."""
    kind, count, scale = getattr(torch, dtype), 3_001, 1.1
    ids = torch.zeros(1, count, dtype=torch.int64)
    weight = random(1, count, 4, dtype=torch.float32, requires_grad=False).abs().to(kind)
    table, types, learned = (torch.ones(2, 4, dtype=kind, requires_grad=True) for _ in range(3))
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


# ---- transforms and forward mode ---------------------------------------------------------------------------------------------

TABULATED = tabulated()
LINEAR = {
    "add_encoding": lambda x: functional.add_encoding(x, input_scale=2.0, offset=3),
    "masked": lambda x: functional.add_encoding(x, input_scale=2.0, mask=[True, False, True]),
    "positions": lambda x: functional.apply_rotary(x, positions=torch.tensor([5, 0, 2])),
    "keys": lambda x: functional.apply_rotary(None, x, ROTARIES["xpos"], offset=3),
    "table": lambda x: functional.apply_rotary(x, None, TABULATED),
    "qkv": lambda x: functional.apply_rotary_qkv(x, (1, 1), seq_axis=-3),
    "rerotate": lambda x: functional.rerotate(x, 3, ROTARIES["half"]),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vmap(name, axis):
    """As a loop over the mapped axis; twice mapped; gradients of each sample."""
    form = LINEAR[name]
    x = random(*((3, 3, 8) if name == "qkv" else (2, 3, 8)), 5, requires_grad=False).movedim(-1, axis)
    wanted = torch.stack([form(one) for one in x.unbind(axis)])
    assert torch.equal(torch.func.vmap(form, in_dims=axis)(x), wanted)
    assert torch.equal(torch.func.vmap(form, in_dims=axis, out_dims=1)(x), wanted.movedim(0, 1))
    gradients = torch.func.vmap(torch.func.grad(lambda one: (form(one) ** 2).sum()), in_dims=axis)(x)
    alone = [torch.func.grad(lambda one: (form(one) ** 2).sum())(one) for one in x.unbind(axis)]
    torch.testing.assert_close(gradients, torch.stack(alone), rtol=1e-13, atol=1e-13)
    twice = torch.func.vmap(torch.func.vmap(form, in_dims=axis), in_dims=0)(torch.stack([x, 2 * x]))
    assert torch.equal(twice[0], wanted)


@pytest.mark.parametrize("name", LINEAR)
def test_transforms(name):
    """grad, jvp, jacobians and Hessians agree with autograd; a linear function's derivative is its linear part."""
    form = LINEAR[name]
    x, tangent = random(3, 3, 8, requires_grad=False), random(3, 3, 8, requires_grad=False, seed=1)
    linear = form(tangent) - form(torch.zeros_like(tangent))
    value, derivative = torch.func.jvp(form, (x,), (tangent,))
    assert torch.equal(value, form(x))
    torch.testing.assert_close(derivative, linear, rtol=1e-12, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (form(leaf) ** 2).sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda x: (form(x) ** 2).sum())(x), leaf.grad, rtol=1e-13, atol=1e-13)
    _, back = torch.func.vjp(form, x)
    reverse, forward = torch.func.jacrev(form)(x), torch.func.jacfwd(form)(x)
    torch.testing.assert_close(reverse, forward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back(tangent)[0], torch.einsum("ijk,ijkabc->abc", tangent, reverse), rtol=1e-12, atol=1e-12)
    hessian = torch.func.hessian(lambda x: (form(x) ** 3).sum())(x[:3])
    assert hessian.shape == (*x.shape, *x.shape)
    with forward_ad.dual_level():
        dual = form(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, linear, rtol=1e-12, atol=1e-12)


def test_transforms_of_tables():
    """Gradients by tables, also of each sample; forward mode is refused by name."""
    table, learned = random(6, 4, requires_grad=False), random(8, 4, requires_grad=False, seed=1)

    def loss(table, learned, ids):
        return (functional.embed(ids, table, Learned(learned), scale=2.0, token_types=(ids % 2, table[:2])) ** 2).sum()

    wanted = [torch.func.grad(loss, (0, 1))(table, learned, ids) for ids in IDS]
    got = torch.func.vmap(torch.func.grad(loss, (0, 1)), in_dims=(None, None, 0))(table, learned, IDS)
    for one, other in zip(got, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(other), rtol=1e-13, atol=1e-13)

    def add(learned, x):
        return (functional.add_encoding(x, Learned(learned)) ** 2).sum()

    x = random(5, 3, 4, requires_grad=False)
    wanted = [torch.func.grad(add)(learned, one) for one in x]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(add), (None, 0))(learned, x), torch.stack(wanted))
    for form in (lambda t: functional.embed(IDS, t), lambda t: functional.add_encoding(torch.zeros(1, 3, 4), Learned(t))):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative by a"):
            torch.func.jvp(form, (table.float(),), (table.float(),))


def test_what_vmap_cannot_map_is_said():
    x = torch.zeros(5, 2, 3, 8)
    for call in (
        lambda: torch.func.vmap(lambda p: functional.add_encoding(x[0], positions=p))(torch.zeros(5, 3)),
        lambda: torch.func.vmap(lambda x, p: functional.apply_rotary(x, positions=p))(x, torch.zeros(5, 3)),
        lambda: torch.func.vmap(lambda x, p: functional.rerotate(x, 1, mask=p))(x, torch.ones(5, 3) > 0),
        lambda: torch.func.vmap(lambda t: functional.embed(IDS, t))(torch.zeros(5, 6, 4)),
    ):
        with pytest.raises(RuntimeError, match="vmap needs"):
            call()


def test_in_place_inside_transforms_is_refused():
    x = torch.zeros(5, 2, 3, 8)
    for write in WRITERS.values():
        with pytest.raises(
            RuntimeError, match=r"torch\.func need functions that do not write in place, .* Call fastpe\.torch\.functional"
        ):
            torch.func.vmap(write)(x)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode differentiation"):
            write(forward_ad.make_dual(x[0].clone(), x[0]))
    assert not x.any()


def test_gradients_batched_by_autograd_are_refused():
    """``is_grads_batched`` has no way for functions of one's own; what there is instead is said."""
    x, grads = random(2, 3, 8), random(4, 2, 3, 8, requires_grad=False)
    for form in (LINEAR["positions"], LINEAR["rerotate"]):
        with pytest.raises(TypeError, match=r"batched gradients .* Use torch\.func\.jacrev, or vmap of vjp"):
            torch.autograd.grad(form(x), x, grads, is_grads_batched=True)
        _, back = torch.func.vjp(form, x.detach())
        wanted = torch.stack([torch.autograd.grad(form(x), x, one)[0] for one in grads])
        torch.testing.assert_close(torch.func.vmap(back)(grads)[0], wanted, rtol=1e-13, atol=1e-13)
    (got,) = torch.autograd.grad(LINEAR["add_encoding"](x), x, grads, is_grads_batched=True)
    assert torch.equal(got, 2 * grads)


# ---- training as it is done --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_saved_tensor_hooks(reentrant):
    """Recomputed activations, saved tensors moved away: the gradients of the plain run."""
    from torch.utils.checkpoint import checkpoint

    def block(x):
        y = x * 2
        fastpe.add_encoding(y, input_scale=3.0)
        q, k = y[..., :8], y[..., 8:]
        fastpe.apply_rotary(q, k, positions=torch.tensor([4, 0, 1]))
        return (y**2).sum()

    x = random(2, 3, 16)
    (wanted,) = torch.autograd.grad(block(x), x)
    for context in (contextlib.nullcontext(), torch.autograd.graph.save_on_cpu()):
        with context:
            leaf = x.detach().clone().requires_grad_()
            checkpoint(block, leaf, use_reentrant=reentrant).backward()
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_detection():
    x = random(2, 3, 8)
    with torch.autograd.set_detect_anomaly(True):
        (_Noting.apply(functional.apply_rotary(x, offset=3)) * 2).sum().backward()
    assert torch.equal(x.grad, fastpe.apply_rotary(torch.full_like(x, 2.0).detach(), offset=3, inverse=True))


def test_module_hooks_and_autocast():
    """Hooks on modules keep gradients; under autocast a result has x's own type."""
    linear, kept = torch.nn.Linear(8, 8), []
    linear.register_full_backward_hook(lambda module, inputs, outputs: kept.extend(outputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(torch.ones(2, 3, 8, requires_grad=True))
        z = functional.apply_rotary(y)
        assert z.dtype == torch.bfloat16
        z.float().sum().backward()
    expected = fastpe.apply_rotary(torch.ones(2, 3, 8, dtype=torch.bfloat16), inverse=True)
    assert torch.equal(kept[0], expected)
