"""What modules keep: their state, copies, training tools, other processes."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from module_cases import CONCATENATED, FAR, IDS, MODULES, YARN, X, call, make  # noqa: E402
from ranks import leave  # noqa: E402

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe.torch import LearnedEncoding, RotaryEmbedding, SinusoidalEncoding, TokenEmbedding  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # Of PyTorch's compiler, as it traces and lowers
    "ignore::DeprecationWarning:torch.*",
    "ignore::FutureWarning:torch.*",
)


# ---- state -------------------------------------------------------------------------------------------------------------------

STATE = {
    "sinusoidal": [],
    "rotary": [],
    "rotary_table": [],
    "learned": ["weight"],
    "tokens": ["weight"],
    "tokens_learned": ["weight", "types.weight", "positions.weight"],
}


@pytest.mark.parametrize("name", MODULES)
def test_state_dicts(name):
    """What has no weights has no state at all."""
    module = make(name)
    assert sorted(module.state_dict()) == sorted(STATE[name])
    assert not list(module.buffers())
    assert module.load_state_dict(module.state_dict()) is not None


def test_weights_of_embeddings_and_back():
    plain, tokens, learned = torch.nn.Embedding(11, 8), TokenEmbedding(11, 8), LearnedEncoding(11, 8)
    for module in (tokens, learned):
        module.load_state_dict(plain.state_dict())
        assert torch.equal(module.weight, plain.weight)
        again = torch.nn.Embedding(11, 8)
        again.load_state_dict(module.state_dict())
        assert torch.equal(again.weight, plain.weight)
        with pytest.raises(RuntimeError, match="size mismatch"):
            module.load_state_dict(torch.nn.Embedding(12, 8).state_dict())


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double().float()])
@pytest.mark.parametrize("name", ["sinusoidal", "rotary"])
def test_a_cast_leaves_the_angles_exact(name, cast):
    module = make(name)
    expected = call(module, offset=FAR)
    assert torch.equal(call(cast(module), offset=FAR), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_weights(dtype):
    """The table is rounded, the positions are not: the sum is made in float32 and rounded once."""
    module = make("tokens").to(dtype)
    found = call(module, offset=FAR)
    assert found.dtype is dtype
    exact = fastpe.embed(IDS, module.weight.detach().float(), "sinusoidal", scale=2.0, offset=FAR)
    assert torch.equal(found, exact.to(dtype))


@pytest.mark.parametrize("name", MODULES)
def test_from_the_meta_device(name):
    """Made without memory, then given some: nothing is left that an initialisation should have written."""
    expected = make(name)
    with torch.device("meta"):
        module = make(name) if name != "rotary_table" else None
    if module is None:  # its table is the caller's, and was on the CPU
        module = make(name).to("meta")
    module = module.to_empty(device="cpu")
    module.load_state_dict(expected.state_dict())
    assert torch.equal(call(module, offset=3), call(expected, offset=3))
    with torch.device("meta"):
        module = make(name, device="meta") if STATE[name] else make(name)
    module.load_state_dict(expected.state_dict(), assign=True)
    assert torch.equal(call(module, offset=3), call(expected, offset=3))


def test_the_meta_device_itself():
    """What a tensor without memory gives is refused with a way out."""
    with pytest.raises(TypeError, match=r"the meta device, which has no memory\. Materialise it first"):
        SinusoidalEncoding()(X.to("meta"))


def saved(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def weights_saved(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    again = copy.deepcopy(module)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    return again


COPIES = [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved, weights_saved]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "save", "save_weights"])
@pytest.mark.parametrize("name", MODULES)
def test_copies(name, copied):
    module = make(name)
    expected = call(module, offset=3)
    again = copied(module)
    assert torch.equal(call(again, offset=3), expected)
    assert repr(again) == repr(module) or name == "rotary_table"
    for weight, other in zip(again.parameters(), module.parameters(), strict=True):
        assert weight is not other


def test_repr():
    assert repr(make("sinusoidal")).startswith("SinusoidalEncoding(Sinusoidal(base=10000.0, layout='concatenated'")
    assert repr(make("sinusoidal")).endswith("input_scale=2.0, seq_axis=-2, inplace=False)")
    assert repr(RotaryEmbedding(seq_axis=1)).startswith("RotaryEmbedding(Rotary(base=10000.0")
    assert "seq_axis=1, inplace=False" in repr(RotaryEmbedding(seq_axis=1))
    assert repr(make("learned")) == "LearnedEncoding(40, 8, out_of_range='error', input_scale=1.0)"
    told = repr(TokenEmbedding(11, 8, "sinusoidal", scale=2.0, padding_idx=3, skip_padding=True))
    assert told.startswith("TokenEmbedding(11, 8, padding_idx=3, scale=2.0, encoding=Sinusoidal(")
    assert told.endswith("), skip_padding=True)")
    told = repr(make("tokens_learned"))
    assert "(types): Embedding(2, 8)" in told
    assert "(positions): LearnedEncoding(40, 8" in told


# ---- training tools ----------------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """All the modules in one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = make("tokens_learned")
        self.sinusoidal, self.learned = make("sinusoidal"), make("learned")
        self.linear = torch.nn.Linear(8, 16)
        self.rotary = make("rotary", inplace=True)

    def forward(self, ids: Any) -> Any:
        x = self.learned(self.sinusoidal(self.tokens(ids, token_types=ids % 2)))
        return self.rotary(self.linear(x).unflatten(-1, (2, 8)).transpose(1, 2)).sum(1)


def gradients_of(model: Any, ids: Any = IDS) -> list[Any]:
    model.zero_grad()
    model(ids).square().mean().backward()
    return [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.slow
def test_compiled():
    model = Model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(IDS), model(IDS))
    assert all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(gradients_of(compiled), gradients_of(model), strict=True)
    )
    torch._dynamo.reset()


def test_exported():
    model = Model().eval()
    program = torch.export.export(model, (IDS,), dynamic_shapes=({1: torch.export.Dim("length", min=2, max=30)},))
    more = torch.cat((IDS, IDS, IDS), 1)
    assert torch.equal(program.module()(more), model(more))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    model = Model()
    expected = gradients_of(model)
    body = copy.deepcopy(model)
    x = body.tokens(IDS, token_types=IDS % 2)

    def rest(x: Any) -> Any:
        y = body.learned(body.sinusoidal(x))
        return body.rotary(body.linear(y).unflatten(-1, (2, 8)).transpose(1, 2)).sum(1)

    checkpoint(rest, x, use_reentrant=reentrant).square().mean().backward()
    assert all(torch.equal(weight.grad, other) for weight, other in zip(body.parameters(), expected, strict=True))


def test_autocast_leaves_positions_exact():
    """What is added or turned is of 16 bits; the angle at a far position is not."""
    model, dtype = Model(), torch.bfloat16
    q, far = torch.linspace(-1, 1, 16, dtype=dtype).reshape(1, 2, 8), torch.tensor([FAR, FAR + 1])
    with torch.autocast("cpu", dtype):
        assert model.linear(X).dtype is dtype
        turned = model.rotary(q.clone(), positions=far)
        added = model.sinusoidal(q, positions=far)
    assert torch.equal(turned, fastpe.apply_rotary(q.float(), encoding=YARN, positions=far).to(dtype))
    assert torch.equal(added, fastpe.add_encoding(q.float(), CONCATENATED, input_scale=2.0, positions=far).to(dtype))
    with torch.autocast("cpu", dtype):
        loss = model(IDS).float().square().mean()
    expected = Model()
    loss.backward()
    for found, other in zip(model.parameters(), gradients_of(expected), strict=True):
        assert torch.nn.functional.cosine_similarity(found.grad.flatten(), other.flatten(), 0) > 0.99


# ---- other processes ---------------------------------------------------------------------------------------------------------


class Texts(torch.utils.data.Dataset):
    """Embeds in the workers that load it."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        with torch.no_grad():
            return self.module((torch.arange(6) + index) % 11, offset=index)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(start):
    """The module was used before, with threads: a worker starts its own."""
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {start}")
    torch.manual_seed(0)
    texts = Texts(TokenEmbedding(11, 8, "sinusoidal"))
    with torch.no_grad():
        texts.module(torch.zeros(64, 4096, dtype=torch.long))  # large enough for helpers
    expected = torch.stack([texts[index] for index in range(len(texts))])
    loader = torch.utils.data.DataLoader(texts, batch_size=2, num_workers=2, multiprocessing_context=start, timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)


def _train(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        model = torch.nn.parallel.DistributedDataParallel(Model())
        found = [gradients_of(model, IDS[rank : rank + 1]) for _ in range(2)][-1]
        torch.save(found, f"{results}-{rank}")
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    leave()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_data_parallel(tmp_path):
    """Two processes with half of the batch each: the gradients of one with all of it."""
    store, results = tmp_path / "store", tmp_path / "gradients"
    context = torch.multiprocessing.spawn(_train, (str(store), str(results)), nprocs=2, join=False)
    while not context.join(timeout=100):
        pass
    expected = gradients_of(Model())
    for rank in range(2):
        found = torch.load(f"{results}-{rank}")
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))
