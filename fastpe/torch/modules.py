"""The encodings as modules. Those without weights have no state: a cast or the meta device cannot change them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from .._core import checks
from .._core.checks import describe, message
from ..encodings import Additive, Learned, Rotational, additive, rotational
from ..verbs import add_encoding, apply_rotary
from . import _factors, functional

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Unpack

    from .._core.where import RowArguments

    Device: TypeAlias = torch.device | str | int | None

    class Where(RowArguments, total=False):
        """Where rows stand, and the length for a rule that depends on it."""

        seq_len: int | None

    class Rotated(Where, total=False):
        """That, and the direction."""

        inverse: bool


__all__ = ["LearnedEncoding", "RotaryEmbedding", "SinusoidalEncoding", "TokenEmbedding"]

Tensor = torch.Tensor


class SinusoidalEncoding(torch.nn.Module):
    """Adds sines and cosines of the position to an embedding.

    ``forward(x, *, offset=0, positions=None, cu_seqlens=None, mask=None, seq_len=None)`` returns ``x*input_scale + PE``, of the shape and
    dtype of x, (..., T, D); its arguments are those of ``fastpe.add_encoding``.

    Parameters
    ----------
    encoding
        A ``Sinusoidal``, another additive encoding, or its name; None for ``Sinusoidal()``.
    input_scale, amplitude
        Factors on x, such as ``math.sqrt(D)``, and on the encoding. Parameters of one element are trained, as
        ``fastpe.torch.functional.add_encoding`` says; without ``inplace``.
    seq_axis
        The axis of T; any but the last.
    inplace
        Write into x itself, where autograd allows it.

    Notes
    -----
    No buffers: the encoding is exact at any position in every dtype, and ``state_dict()`` is empty but for trained factors.

    Examples
    --------
    >>> import torch, fastpe.torch
    >>> fastpe.torch.SinusoidalEncoding(input_scale=8.0)(torch.zeros(1, 3, 64)).shape
    torch.Size([1, 3, 64])
    """

    def __init__(
        self,
        encoding: Additive | str | None = None,
        *,
        input_scale: float | Tensor = 1.0,
        amplitude: Tensor | None = None,
        seq_axis: int = -2,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.encoding: Additive = _additive("SinusoidalEncoding", encoding, "adds")
        self.input_scale: float | Tensor = _factors.check("SinusoidalEncoding", "input_scale", input_scale, inplace)
        self.amplitude: Tensor | None = (
            None if amplitude is None else _factors.check_tensor("SinusoidalEncoding", "amplitude", amplitude, inplace)
        )
        self.seq_axis: int = seq_axis
        self.inplace: bool = inplace

    def forward(self, x: Tensor, **where: Unpack[Where]) -> Tensor:
        """Add the encoding."""
        if self.amplitude is None:
            return _add(self, x, where)
        add = functional.add_encoding
        return add(x, self.encoding, seq_axis=self.seq_axis, input_scale=self.input_scale, amplitude=self.amplitude, **where)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, **where: Unpack[Where]) -> Tensor: ...

    def extra_repr(self) -> str:
        scale = _factors.shown(self.input_scale)
        trained = "" if self.amplitude is None else ", amplitude=trained"
        return f"{self.encoding}, input_scale={scale}{trained}, seq_axis={self.seq_axis}, inplace={self.inplace}"


class RotaryEmbedding(torch.nn.Module):
    """Rotates queries and keys by their positions.

    ``forward(q, k=None, *, offset=0, positions=None, cu_seqlens=None, mask=None, inverse=False, seq_len=None)`` returns q, or (q, k),
    of the shapes and dtypes given, (..., T, D); its arguments are those of ``fastpe.apply_rotary``.

    Parameters
    ----------
    encoding
        A ``Rotary`` or a ``Rotary.tabulated`` table; None for ``Rotary()``.
    head_dim
        Width D of a head where the last axis holds all heads, one behind the other; None where it holds one.
    seq_axis
        The axis of T; -3 for (B, T, H, D).
    inplace
        Write into q and k themselves, where autograd allows it: not into slices that ``split``, ``chunk`` or ``unbind`` made; rotate the
        packed tensor with ``fastpe.torch.functional.apply_rotary_qkv``.

    Notes
    -----
    In training, a rotation in place allocates nothing on the way forward, and a new tensor for each gradient on the way back. If q and k
    are views, such as ``linear(x).view(B, T, H, D)``, PyTorch also copies the gradient several times; then new tensors are the better
    choice.

    No buffers: ``.to(torch.bfloat16)`` and the meta device leave the angles exact, and ``state_dict()`` is empty.

    Examples
    --------
    >>> import torch, fastpe.torch
    >>> rotary = fastpe.torch.RotaryEmbedding(fastpe.Rotary(base=500_000.0))
    >>> q, k = rotary(torch.ones(1, 8, 3, 64), torch.ones(1, 2, 3, 64))
    >>> k.shape
    torch.Size([1, 2, 3, 64])
    """

    def __init__(
        self, encoding: Rotational | None = None, *, head_dim: int | None = None, seq_axis: int = -2, inplace: bool = False
    ) -> None:
        super().__init__()
        self.encoding: Rotational = rotational("RotaryEmbedding", encoding)
        self.head_dim: int | None = None if head_dim is None else checks.width("RotaryEmbedding", "head_dim", head_dim)
        self.seq_axis: int = seq_axis
        self.inplace: bool = inplace

    def forward(self, q: Any, k: Any = None, **options: Unpack[Rotated]) -> Any:
        """Rotate q and k."""
        rotate: Any = apply_rotary if self.inplace else functional.apply_rotary
        return rotate(q, k, self.encoding, head_dim=self.head_dim, seq_axis=self.seq_axis, **options)

    if TYPE_CHECKING:

        @overload
        def __call__(self, q: Tensor, k: None = None, **options: Unpack[Rotated]) -> Tensor: ...
        @overload
        def __call__(self, q: None, k: Tensor, **options: Unpack[Rotated]) -> Tensor: ...
        @overload
        def __call__(self, q: Tensor, k: Tensor, **options: Unpack[Rotated]) -> tuple[Tensor, Tensor]: ...
        def __call__(self, *tensors: Any, **options: Any) -> Any: ...

    def extra_repr(self) -> str:
        head_dim = "" if self.head_dim is None else f", head_dim={self.head_dim}"
        return f"{self.encoding}{head_dim}, seq_axis={self.seq_axis}, inplace={self.inplace}"


class LearnedEncoding(torch.nn.Module):
    """Adds a learned row for each position.

    ``forward(x, *, offset=0, positions=None, cu_seqlens=None, mask=None)`` returns ``x + weight[position]``, of the shape and dtype of x;
    its arguments are those of ``fastpe.add_encoding``.

    Parameters
    ----------
    num_embeddings, embedding_dim
        P positions of width D. ``weight`` is (P, D), drawn from a normal distribution as ``torch.nn.Embedding``'s, whose state dicts fit.
    out_of_range
        ``"error"`` (IndexError) or ``"clip"``: what happens at a position outside the table. ``fastpe.resample`` makes longer tables.
    input_scale, seq_axis, inplace
        As in ``SinusoidalEncoding``.
    device, dtype
        Of the weight.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        out_of_range: Literal["error", "clip"] = "error",
        input_scale: float | Tensor = 1.0,
        seq_axis: int = -2,
        inplace: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.one_of("LearnedEncoding", "out_of_range", out_of_range, ("error", "clip"))
        _check_sizes("LearnedEncoding", "(P, D)", num_embeddings, embedding_dim)
        _factors.check("LearnedEncoding", "input_scale", input_scale, inplace)
        self.weight: torch.nn.Parameter = torch.nn.Parameter(
            torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype)
        )
        self.out_of_range: Literal["error", "clip"] = out_of_range
        self.input_scale: float | Tensor = input_scale
        self.seq_axis: int = seq_axis
        self.inplace: bool = inplace
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        torch.nn.init.normal_(self.weight)

    @property
    def encoding(self) -> Learned:
        """The table as an encoding."""
        return Learned(self.weight, self.out_of_range)

    def forward(self, x: Tensor, **where: Unpack[Where]) -> Tensor:
        """Add the rows."""
        return _add(self, x, where)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, **where: Unpack[Where]) -> Tensor: ...

    def extra_repr(self) -> str:
        rows, width = self.weight.shape
        return f"{rows}, {width}, out_of_range={self.out_of_range!r}, input_scale={_factors.shown(self.input_scale)}"


class TokenEmbedding(torch.nn.Embedding):
    """Token embeddings with their positions, in one pass: the first layer of a model.

    ``forward(ids, *, token_types=None, offset=0, positions=None, cu_seqlens=None, mask=None, seq_len=None)`` returns (..., T, D) of the
    weight's dtype; its arguments are those of ``fastpe.embed``, but ``token_types`` are the ids alone.

    Parameters
    ----------
    num_embeddings, embedding_dim
        V tokens of width D. ``weight`` is (V, D); it is drawn, and ``from_pretrained`` takes one, as ``torch.nn.Embedding`` does.
    encoding
        A ``Sinusoidal`` or its name, a ``LearnedEncoding`` (a child module, ``positions.weight``), or None for tokens alone.
    scale
        Factor on the token's row, such as ``math.sqrt(D)``. A parameter of one element is trained.
    num_token_types
        How many types of token there are (BERT's segments); 0 for none. Their table is a ``torch.nn.Embedding``, ``types.weight``.
    padding_idx
        As ``torch.nn.Embedding``'s: the row starts as zeros and gets no gradient. Its tokens have a position as others do.
    skip_padding
        Tokens of ``padding_idx`` become zero rows and are not counted, as ``fastpe.embed(padding_idx=...)`` has it.
    sparse, deterministic
        Of the weight's gradient, as ``fastpe.torch.functional.embed``.
    **options
        ``max_norm``, ``norm_type``, ``device`` and ``dtype`` as for ``torch.nn.Embedding``. ``scale_grad_by_freq`` must be False.

    Examples
    --------
    >>> import torch, fastpe.torch
    >>> embedding = fastpe.torch.TokenEmbedding(1000, 64, "sinusoidal", scale=8.0)
    >>> embedding(torch.tensor([[5, 7, 9]])).shape
    torch.Size([1, 3, 64])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        encoding: Additive | LearnedEncoding | str | None = None,
        *,
        scale: float | Tensor = 1.0,
        num_token_types: int = 0,
        padding_idx: int | None = None,
        skip_padding: bool = False,
        sparse: bool = False,
        deterministic: bool = False,
        **options: Any,
    ) -> None:
        function = "TokenEmbedding"
        _check_sizes(function, "(V, D)", num_embeddings, embedding_dim)
        _factors.check(function, "scale", scale)
        if padding_idx is None and skip_padding:
            raise ValueError(message(function, "skip_padding needs padding_idx", "None"))
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            rule = f"padding_idx must lie in [{-num_embeddings}, {num_embeddings})"
            raise ValueError(message(function, rule, str(padding_idx)))
        if options.get("scale_grad_by_freq", False):
            raise ValueError(message(function, "scale_grad_by_freq must be False", "True", "Gradients are sums over all rows."))
        like: dict[str, Any] = {name: options.get(name) for name in ("device", "dtype")}
        types = torch.nn.Embedding(num_token_types, embedding_dim, **like) if num_token_types else None
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse=sparse, **options)
        self.types: torch.nn.Embedding | None = types
        self.positions: LearnedEncoding | None = encoding if isinstance(encoding, LearnedEncoding) else None
        self._encoding: Additive | None = None
        if isinstance(encoding, LearnedEncoding):
            _check_learned(function, encoding, embedding_dim)
        elif encoding is not None:
            self._encoding = _additive(function, encoding, "embeds")
        self.scale: float | Tensor = scale
        self.skip_padding: bool = skip_padding
        self.deterministic: bool = deterministic

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = True, **options: Any) -> TokenEmbedding:  # type: ignore[override]
        """Return a module whose weight is this (V, D) tensor, which is not trained unless ``freeze`` is False.

        ``options`` are the other arguments of the class, such as ``encoding``.
        """
        if embeddings.dim() != 2:
            raise ValueError(message("TokenEmbedding", "embeddings must have shape (V, D)", f"shape {tuple(embeddings.shape)}"))
        given = {"_weight": embeddings, "_freeze": freeze, "device": embeddings.device, "dtype": embeddings.dtype}
        return cls(*embeddings.shape, **{**given, **options})

    @property
    def encoding(self) -> Additive | None:
        """What is added to the tokens' rows."""
        return self._encoding if self.positions is None else self.positions.encoding

    def forward(self, ids: Tensor, *, token_types: Tensor | None = None, **where: Unpack[Where]) -> Tensor:
        """Look the tokens up and add their positions."""
        if (token_types is None) != (self.types is None):
            rule = "token_types must be given where the module has types, and only there"
            raise ValueError(message("TokenEmbedding", rule, describe(token_types)))
        if hasattr(self.weight, "device_mesh"):
            distributed: Tensor = self._distributed(ids, token_types, where)
            return distributed
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.weight, ids.contiguous(), self.max_norm, self.norm_type)
        return functional.embed(
            ids,
            self.weight,
            self.encoding,
            scale=self.scale,
            token_types=None if self.types is None or token_types is None else (token_types, self.types.weight),
            padding_idx=self.padding_idx if self.skip_padding else None,
            sparse=self.sparse,
            deterministic=self.deterministic,
            frozen_idx=self.padding_idx,
            **where,
        )

    def _distributed(self, ids: Any, token_types: Any, where: Any) -> Any:
        """PyTorch looks rows up in a DTensor, as RowwiseParallel makes the weight one; every process adds positions to all of them."""
        options = (self.padding_idx, self.max_norm, self.norm_type, False, self.sparse)
        found: Any = torch.nn.functional.embedding(ids, self.weight, *options)
        rows, tokens = _factors.times(found.full_tensor(), self.scale), ids.full_tensor()
        types = None if self.types is None else (token_types, self.types.weight)
        padding = self.padding_idx if self.skip_padding else None
        added = functional.with_positions(rows, tokens, self.encoding, types, padding, where.pop("seq_len", None), False, where)
        return type(found).from_local(added, found.device_mesh, run_check=False)

    if TYPE_CHECKING:

        def __call__(self, ids: Tensor, *, token_types: Tensor | None = None, **where: Unpack[Where]) -> Tensor: ...

    def extra_repr(self) -> str:
        encoding = "" if self._encoding is None else f", encoding={self._encoding}"
        return f"{super().extra_repr()}, scale={_factors.shown(self.scale)}{encoding}{', skip_padding=True' if self.skip_padding else ''}"


def _add(module: Any, x: Tensor, where: Any) -> Tensor:
    """What both modules that add do."""
    add = add_encoding if module.inplace else functional.add_encoding
    return add(x, module.encoding, seq_axis=module.seq_axis, input_scale=module.input_scale, **where)


def _check_sizes(module: str, letters: str, rows: int, width: int) -> None:
    if min(rows, width) < 1:
        raise ValueError(message(module, f"weight must have shape {letters}, at least 1 of each", str((rows, width))))


def _check_learned(function: str, encoding: LearnedEncoding, width: int) -> None:
    """Refuse learned positions that cannot be added to rows of this width, or that would scale what they are added to."""
    if encoding.weight.shape[1] != width:
        rule = f"learned positions must have the width of the tokens, {width}"
        raise ValueError(message(function, rule, f"shape {tuple(encoding.weight.shape)}"))
    if isinstance(encoding.input_scale, Tensor) or encoding.input_scale != 1:
        rule = "learned positions must have an input_scale of 1"
        raise ValueError(message(function, rule, str(_factors.shown(encoding.input_scale)), "Give scale to TokenEmbedding."))


def _additive(module: str, encoding: Any, ability: str) -> Any:
    """An additive encoding without arrays, which would be no weights of the module."""
    chosen = additive(module, encoding, ability)
    if chosen.holds_arrays:
        raise TypeError(message(module, "encoding must hold no arrays", describe(encoding), "Use a LearnedEncoding."))
    return chosen
