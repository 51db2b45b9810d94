"""The modules: what the verbs say, through everything that happens to a module of PyTorch."""

from __future__ import annotations

from typing import Any

import cases
import pytest

torch = pytest.importorskip("torch")
from module_cases import CONCATENATED, COSINES, IDS, MODULES, SINES, YARN, X, call, make  # noqa: E402

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.torch import LearnedEncoding, RotaryEmbedding, SinusoidalEncoding, TokenEmbedding, functional  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # Of PyTorch's compiler, as it traces and lowers
    "ignore::DeprecationWarning:torch.*",
    "ignore::FutureWarning:torch.*",
)
PLACES: dict[str, dict[str, Any]] = {
    "none": {},
    "offset": {"offset": 5},
    "offsets": {"offset": torch.tensor([2, 9])},
    "positions": {"positions": torch.arange(6).flip(0) * 3},
    "cu_seqlens": {"cu_seqlens": [0, 2, 6]},
    "mask": {"mask": torch.arange(6) % 3 != 1},
}


# ---- values ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_values_are_the_verbs(places):
    module = {name: make(name) for name in MODULES}
    weight = module["learned"].weight.detach()
    expected = {
        "sinusoidal": fastpe.add_encoding(X.clone(), CONCATENATED, input_scale=2.0, **places),
        "rotary": fastpe.apply_rotary(X.clone(), encoding=YARN, **places),
        "rotary_table": fastpe.apply_rotary(X.clone(), encoding=Rotary.tabulated(COSINES, SINES), **places),
        "learned": fastpe.add_encoding(X.clone(), Learned(weight), **places),
        "tokens": fastpe.embed(IDS, module["tokens"].weight.detach(), "sinusoidal", scale=2.0, **places),
    }
    words, positions, kinds = (
        module["tokens_learned"].state_dict()[name] for name in ("weight", "positions.weight", "types.weight")
    )
    expected["tokens_learned"] = fastpe.embed(IDS, words, Learned(positions), token_types=(IDS % 2, kinds), **places)
    for name, one in module.items():
        found = call(one, **places)
        assert torch.equal(found, expected[name]), name
        assert found.requires_grad == bool(list(one.parameters()))


def test_other_arguments():
    q, k = X.reshape(2, 6, 2, 4), X.flip(0).reshape(2, 6, 2, 4)
    rotary = RotaryEmbedding(Rotary(interleaved=True), seq_axis=1)
    for found, expected in zip(
        rotary(q, k, offset=3), functional.apply_rotary(q, k, rotary.encoding, offset=3, seq_axis=1), strict=True
    ):
        assert torch.equal(found, expected)
    assert torch.allclose(rotary(rotary(q, offset=9), offset=9, inverse=True), q, atol=1e-6)
    assert torch.equal(rotary(None, k), rotary(k))
    length = RotaryEmbedding(Rotary(scaling=scaling.DynamicNTK(2.0, 4)))
    assert torch.equal(length(X, seq_len=50), functional.apply_rotary(X, None, length.encoding, seq_len=50))
    first = SinusoidalEncoding(seq_axis=0)
    assert torch.equal(first(X), functional.add_encoding(X, seq_axis=0))
    assert SinusoidalEncoding().encoding == Sinusoidal()
    assert RotaryEmbedding().encoding == Rotary()
    clipped = LearnedEncoding(4, 8, out_of_range="clip", input_scale=3.0)
    assert torch.equal(clipped(X), X * 3 + clipped.weight[[0, 1, 2, 3, 3, 3]])
    tokens = TokenEmbedding(11, 8)
    assert torch.equal(tokens(IDS), tokens.weight[IDS])


def test_the_first_values_are_those_of_an_embedding():
    """Drawn alike, from the same seed; the row of padding is zero."""
    for padding in (None, 3, -1):
        torch.manual_seed(3)
        own = TokenEmbedding(11, 8, padding_idx=padding)
        torch.manual_seed(3)
        assert torch.equal(own.weight, torch.nn.Embedding(11, 8, padding_idx=padding).weight)
    torch.manual_seed(3)
    learned = LearnedEncoding(11, 8)
    torch.manual_seed(3)
    assert torch.equal(learned.weight, torch.nn.Embedding(11, 8).weight)


def test_padding():
    """As an embedding's ``padding_idx``, or with its rows skipped."""
    own, plain = TokenEmbedding(11, 8, padding_idx=-8), torch.nn.Embedding(11, 8, padding_idx=3)
    assert own.padding_idx == 3
    own.load_state_dict(plain.state_dict())
    own.weight.data[3] = plain.weight.data[3] = 5.0
    for module in (own, plain):
        (module(IDS) * X).sum().backward()
    assert torch.allclose(own.weight.grad, plain.weight.grad, atol=1e-6)
    assert not own.weight.grad[3].any()
    assert own.weight.grad[4].any()
    skipping = TokenEmbedding(11, 8, "sinusoidal", padding_idx=3, skip_padding=True)
    assert torch.equal(skipping(IDS), fastpe.embed(IDS, skipping.weight.detach(), "sinusoidal", padding_idx=3))
    assert not skipping(IDS)[IDS == 3].any()


def test_tokens_are_an_embedding():
    """What looks for ``torch.nn.Embedding``, to initialise, resize or adapt it, finds one."""
    weight = torch.arange(88.0).reshape(11, 8)
    plain, own = (kind.from_pretrained(weight, padding_idx=3) for kind in (torch.nn.Embedding, TokenEmbedding))
    assert isinstance(own, torch.nn.Embedding)
    assert own.weight is not weight
    assert own.weight.data_ptr() == weight.data_ptr()
    assert not own.weight.requires_grad
    assert torch.equal(own(IDS), plain(IDS))
    assert {name: vars(own)[name] for name in plain.__constants__} == {name: vars(plain)[name] for name in plain.__constants__}
    trained = TokenEmbedding.from_pretrained(weight, False, encoding="sinusoidal", scale=2.0, num_token_types=2)
    assert trained.weight.requires_grad
    assert trained.types.weight.shape == (2, 8)
    assert torch.equal(
        trained(IDS, token_types=IDS * 0),
        trained.types.weight[0] + functional.embed(IDS, weight, scale=2.0) + fastpe.encode(torch.arange(IDS.shape[-1]), 8),
    )


def test_rows_of_a_largest_norm():
    plain, own = torch.nn.Embedding(11, 8, max_norm=1.5, norm_type=1.0), TokenEmbedding(11, 8, max_norm=1.5, norm_type=1.0)
    own.load_state_dict(plain.state_dict())
    assert torch.equal(own(IDS), plain(IDS))
    assert torch.equal(own.weight, plain.weight)
    assert own.weight[IDS].abs().sum(-1).max() < 1.51


def test_transformers_resizes_and_initialises_tokens():
    transformers = cases.transformers()
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, initializer_range=0.001, tie_word_embeddings=True))
    own = TokenEmbedding(11, 8, scale=2.0)
    model.set_input_embeddings(own)
    model._init_weights(own)
    assert 0 < own.weight.abs().max() < 0.01
    before = own.weight.detach().clone()
    model.resize_token_embeddings(13)
    assert model.get_input_embeddings() is own
    assert (own.num_embeddings, own.weight.shape) == (13, (13, 8))
    ids = torch.tensor([[4, 10]])
    assert torch.equal(own(ids), before[ids] * 2)


@pytest.mark.filterwarnings("ignore:Sparse invariant:UserWarning")  # PyTorch's of its own sparse gradients
def test_sparse_and_deterministic_gradients():
    found = []
    for options in ({}, {"sparse": True}, {"deterministic": True}):
        module = make("tokens", **options)
        (module(IDS) * X).sum().backward()
        assert module.weight.grad.is_sparse == ("sparse" in options)
        found.append(module.weight.grad.to_dense())
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[0], found[2], atol=1e-6)


# ---- in place ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sinusoidal", "rotary", "rotary_table", "learned"])
def test_in_place(name):
    apart, inplace = make(name), make(name, inplace=True)
    results, gradients = [], []
    for module in (apart, inplace):
        x = X.clone().requires_grad_()
        y = x * 2
        z = module(y)
        assert (z is y) == module.inplace
        z.square().sum().backward()
        results.append(z.detach())
        gradients.append([x.grad, *(weight.grad for weight in module.parameters())])
    assert torch.equal(*results)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    with torch.no_grad():
        x = X.clone()
        assert inplace(x) is x
        assert torch.equal(x, apart(X))
    leaf = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        inplace(leaf)
    assert torch.equal(leaf, X)
    if name.startswith("rotary"):
        q, k = X.clone(), X.clone() + 1
        found = inplace(q, k)
        assert found[0] is q
        assert found[1] is k
        parts = (X.clone().requires_grad_() * 1).chunk(2, -1)
        with pytest.raises(RuntimeError, match="returns multiple views"):
            inplace(*parts)


# ---- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (
            lambda: SinusoidalEncoding(Rotary()),
            TypeError,
            r"SinusoidalEncoding: encoding must be an encoding such as Sinusoidal\(\)",
        ),
        (
            lambda: RotaryEmbedding("rotary"),
            TypeError,
            "RotaryEmbedding: encoding must be a Rotary or None, got str 'rotary'",
        ),
        (
            lambda: TokenEmbedding(11, 8, "learned"),
            TypeError,
            "TokenEmbedding: encoding must be an encoding such as Sinusoidal",
        ),
        (lambda: TokenEmbedding(11, 8, Rotary()), TypeError, "TokenEmbedding: encoding must be an encoding such as Sinusoidal"),
        (lambda: TokenEmbedding(11, 8, LearnedEncoding(4, 6)), ValueError, r"the width of the tokens, 8, got shape \(4, 6\)"),
        (lambda: TokenEmbedding(11, 8, LearnedEncoding(4, 8, input_scale=2.0)), ValueError, "Give scale to TokenEmbedding"),
        (lambda: TokenEmbedding(11, 8, padding_idx=11), ValueError, r"padding_idx must lie in \[-11, 11\), got 11"),
        (lambda: TokenEmbedding(11, 8, padding_idx=-12), ValueError, r"padding_idx must lie in \[-11, 11\), got -12"),
        (lambda: TokenEmbedding(11, 8, skip_padding=True), ValueError, "skip_padding needs padding_idx"),
        (
            lambda: TokenEmbedding.from_pretrained(torch.zeros(8)),
            ValueError,
            r"embeddings must have shape \(V, D\), got shape \(8,\)",
        ),
        (lambda: TokenEmbedding(11, 8, scale_grad_by_freq=True), ValueError, "scale_grad_by_freq must be False"),
        (lambda: LearnedEncoding(4, 8, out_of_range="wrap"), ValueError, "out_of_range must be one of 'error', 'clip'"),
        (lambda: LearnedEncoding(0, 8), ValueError, r"weight must have shape \(P, D\), at least 1 of each, got \(0, 8\)"),
        (lambda: TokenEmbedding(0, 8), ValueError, r"weight must have shape \(V, D\), at least 1 of each, got \(0, 8\)"),
    ],
)
def test_wrong_modules(function, error, text):
    with pytest.raises(error, match=text):
        function()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda x, **o: SinusoidalEncoding(**o)(x[0, 0]), ValueError, "x must have at least 2"),
        (lambda x, **o: SinusoidalEncoding(**o)(x, positions=torch.arange(5)), ValueError, "positions must have shape"),
        (lambda x, **o: SinusoidalEncoding(**o)(x.long()), TypeError, "floating-point"),
        (lambda x, **o: RotaryEmbedding(**o)(x[..., :7]), ValueError, "must be even, got 7"),
        (lambda x, **o: RotaryEmbedding(**o)(x, x[:, :5]), ValueError, "k"),
        (lambda x, **o: RotaryEmbedding(**o)(None), TypeError, "q or k"),
        (lambda x, **o: LearnedEncoding(4, 8, **o)(x), IndexError, r"\[0, 4\), got 4 at row 4"),
        (lambda x, **o: LearnedEncoding(40, 6, **o)(x), ValueError, "width of the array, 8"),
        (lambda x, **o: LearnedEncoding(40, 8, **o)(x, positions=torch.arange(6.0)), TypeError, "must be integers"),
    ],
)
def test_wrong_calls(function, error, text, inplace):
    x = X.clone()
    with torch.no_grad(), pytest.raises(error, match=text):
        function(x, inplace=inplace)
    assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda: make("tokens")(IDS, token_types=IDS % 2), ValueError, "token_types must be given where the module has types"),
        (
            lambda: make("tokens_learned")(IDS),
            ValueError,
            "token_types must be given where the module has types, and only there",
        ),
        (lambda: make("tokens")(IDS + 1), IndexError, "ids"),
        (lambda: make("tokens")(IDS.float()), TypeError, "ids"),
        (lambda: make("tokens_learned")(IDS, token_types=IDS), IndexError, "token_types"),
        (lambda: make("tokens_learned")(IDS, token_types=IDS % 2, offset=36), IndexError, r"\[0, 40\), got 40"),
    ],
)
def test_wrong_tokens(function, error, text):
    with pytest.raises(error, match=text):
        function()
