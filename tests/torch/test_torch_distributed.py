"""Modules whose weights PyTorch spreads over processes: two of them, on the CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]

IDS = torch.arange(24).reshape(2, 12) % 11


def tokens_and_positions() -> Any:
    tokens = fastpe.torch.TokenEmbedding(32, 16, fastpe.torch.LearnedEncoding(12, 16), scale=4.0)
    return torch.nn.Sequential(tokens, fastpe.torch.LearnedEncoding(12, 16), torch.nn.Linear(16, 16))


def tokens() -> Any:
    return torch.nn.Sequential(fastpe.torch.TokenEmbedding(32, 16, "sinusoidal", scale=2.0, padding_idx=0, skip_padding=True))


class Typed(torch.nn.Module):
    """Tokens with types, whose own table alone is spread."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = fastpe.torch.TokenEmbedding(32, 16, "sinusoidal", num_token_types=2)

    def forward(self, ids: Any) -> Any:
        weight = self.tokens.weight
        if hasattr(weight, "device_mesh"):
            ids = torch.distributed.tensor.DTensor.from_local(ids, weight.device_mesh)
        return self.tokens(ids, token_types=IDS % 2)


def table_alone(model: Any, mesh: Any) -> Any:
    from torch.distributed.tensor import Shard, distribute_tensor

    model.tokens.weight = torch.nn.Parameter(distribute_tensor(model.tokens.weight, mesh, [Shard(0)]))
    return model


def fully_sharded(model: Any, mesh: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    return model


def row_wise(model: Any, mesh: Any) -> Any:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"0": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())})


def column_wise(model: Any, mesh: Any) -> Any:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"0": ColwiseParallel(output_layouts=Replicate())})


def whole(x: Any) -> Any:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def train(model: Any) -> list[Any]:
    """The result and the gradients of the second step, as one that resizes storages again shows more."""
    for _ in range(2):
        model.zero_grad()
        result = model(IDS)
        result.square().sum().backward()
    return [whole(result).detach(), *(whole(one.grad) for one in model.parameters())]


CASES = {
    "tokens_and_positions-fully_sharded": (tokens_and_positions, fully_sharded),
    "tokens-fully_sharded": (tokens, fully_sharded),
    "tokens-row_wise": (tokens, row_wise),
    "tokens-column_wise": (tokens, column_wise),
    "types-table_alone": (Typed, table_alone),
}


def steps(name: str, mesh: Any, folder: str, rank: int) -> None:
    make, spread = CASES[name]
    torch.manual_seed(0)
    torch.save(train(spread(make(), mesh)), Path(folder, f"{name}-{rank}"))


def cases(folder: str, mesh: Any) -> Any:
    return ((name, partial(steps, name, mesh, folder, torch.distributed.get_rank())) for name in CASES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """The folder with the results of two processes, which train each model in turn, and what went wrong there."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, ranks.reports(2, partial(cases, str(folder)))


@pytest.mark.parametrize("name", CASES)
def test_spread_over_two_processes(name: str, trained: tuple[Path, list[dict[str, str]]]) -> None:
    """The result and the gradients of one process."""
    folder, reports = trained
    ranks.ensure(reports, name)
    torch.manual_seed(0)
    expected = train(CASES[name][0]())
    for rank in range(2):
        for got, wanted in zip(torch.load(folder / f"{name}-{rank}"), expected, strict=True):
            torch.testing.assert_close(got, wanted)
