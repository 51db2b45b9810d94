"""Layers for Keras 3 with keras-hub's arguments: exact at any position and in any policy of dtypes, saved and loaded with a model.

On PyTorch and JAX they run fastpe's kernels, on TensorFlow its own operations. Import this module before a saved model is loaded.
"""

from __future__ import annotations

import importlib
from typing import Any

import keras
from keras import backend, ops

from .. import scaling
from .._core import checks, text
from ..encodings import Additive, Learned, Rotary, Rotational, Sinusoidal, additive, rotational
from ..encodings.bias import ALiBi as Bias
from . import _twin

__all__ = ["ALiBi", "RotaryEmbedding", "SinusoidalEncoding", "TokenAndPositionEmbedding"]

_BACKEND: str = backend.backend()
_MODULE = {"torch": "fastpe.torch.functional", "jax": "fastpe.jax"}.get(_BACKEND, "fastpe.keras._twin")
_VERBS: Any = importlib.import_module(_MODULE)  # which return new tensors


class _Layer(keras.layers.Layer):  # type: ignore[misc]
    """What all have in common. A layer casts its inputs itself: Keras would round real positions, and tables as a whole."""

    def __init__(self, given: dict[str, Any]) -> None:
        """``given``: the local variables of a layer's own ``__init__``, which are its arguments."""
        arguments = {name: value for name, value in given.items() if name not in ("self", "options", "__class__")}
        super().__init__(autocast=False, **given["options"])
        self.supports_masking, self._arguments = True, tuple(arguments)
        for name, value in arguments.items():
            setattr(self, name, value)
        if hasattr(given.get("encoding"), "text") and not text.says_all(self.encoding):
            remedy = "TokenAndPositionEmbedding learns rows."
            self._refuse("encoding must consist of numbers", checks.describe(self.encoding), remedy, TypeError)

    def get_config(self) -> dict[str, Any]:
        values = ((name, getattr(self, name)) for name in self._arguments)
        return {**super().get_config(), **{name: getattr(value, "text", value) for name, value in values}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        encoding = config.get("encoding") or ""
        return super().from_config({**config, "encoding": text.read(encoding)} if encoding.startswith("{") else config)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def _refuse(self, rule: str, got: Any, remedy: str = "", kind: type[Exception] = ValueError) -> None:
        raise kind(checks.message(type(self).__name__, rule, str(got), remedy))

    def _cast(self, inputs: Any) -> Any:
        if not backend.is_float_dtype(backend.standardize_dtype(inputs.dtype)):
            self._refuse("inputs must be floating-point", inputs.dtype, "Embed ids first.", TypeError)
        return ops.cast(inputs, self.compute_dtype)

    def _run(self, verb: str, x: Any, *arguments: Any, start_index: Any = None, positions: Any = None, **options: Any) -> Any:
        """A verb. Keras traces layers: on JAX with sizes that are open, for which there is no kernel, on PyTorch without memory."""
        if getattr(x, "is_meta", False):
            return ops.zeros(self.compute_output_shape(x.shape), self.compute_dtype)
        verbs = _twin if _BACKEND == "jax" and any(type(size) is not int for size in x.shape) else _VERBS
        name, given = ("offset", start_index) if positions is None else ("positions", positions)
        return getattr(verbs, verb)(x, *arguments, **options, **({} if given is None else {name: given}))


class SinusoidalEncoding(_Layer):
    """Adds sines and cosines of the position: ``x*input_scale + PE``, where keras-hub has ``x + SinePositionEncoding()(x)``.

    ``layer(inputs, start_index=0, positions=None)`` takes and returns (..., T, D). Row t stands at ``start_index + t``, where that is a
    number or one for each sequence, (B,); or where ``positions`` say, (T,) or (B, T) integers or real numbers.

    Parameters
    ----------
    max_wavelength
        The base; or ``encoding``, another additive one, in its place.
    input_scale
        Factor on the inputs, such as ``math.sqrt(D)``. ``options`` are ``name``, ``dtype`` and others of ``keras.layers.Layer``.
    """

    def __init__(
        self, max_wavelength: float = 10000, *, encoding: Additive | str | None = None, input_scale: float = 1.0, **options: Any
    ) -> None:
        super().__init__(locals())
        checks.number("SinusoidalEncoding", "input_scale", input_scale)
        self._encoding = additive("SinusoidalEncoding", Sinusoidal(max_wavelength) if encoding is None else encoding)

    def call(self, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
        options = {"input_scale": self.input_scale, "start_index": start_index, "positions": positions}
        return self._run("add_encoding", self._cast(inputs), self._encoding, **options)


class RotaryEmbedding(_Layer):
    """Rotates queries or keys by their positions, as keras-hub's layer of this name.

    ``layer(inputs, start_index=0, positions=None)``, as in ``SinusoidalEncoding``, of (B, T, D), (B, T, H, D), or what the axes say.

    Parameters
    ----------
    max_wavelength, scaling_factor, rope_type
        The base, and by what frequencies are divided: the factor (``"linear"``); ``factor^(D / (D - 2))`` (``"dynamic"``, which is not
        dynamic NTK); what ``fastpe.scaling.YaRN`` says (``"yarn"``, with ``beta_fast`` to ``truncate``).
    sequence_axis, feature_axis, encoding
        The axes of T and D; a ``fastpe.Rotary`` or another rotary encoding, in place of all but the axes.
    """

    def __init__(
        self, max_wavelength: float = 10000, scaling_factor: float = 1.0, rope_type: str = "linear", beta_fast: float = 32.0,
        beta_slow: float = 1.0, original_max_position_embeddings: int = 4096, truncate: bool = True, sequence_axis: int = 1,
        feature_axis: int = -1, *, encoding: Rotational | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(locals())
        checks.one_of("RotaryEmbedding", "rope_type", rope_type, ("linear", "dynamic", "yarn"))
        rotational("RotaryEmbedding", self._encoding_of(4))

    def _encoding_of(self, width: int) -> Any:
        """The encoding of heads of this width."""
        if self.encoding is not None:
            return self.encoding
        factor = self.scaling_factor ** (width / max(1, width - 2) if self.rope_type == "dynamic" else 1)
        rest = factor, self.original_max_position_embeddings, self.beta_fast, self.beta_slow, None, None, self.truncate
        return Rotary(self.max_wavelength, scaling=scaling.YaRN(*rest) if self.rope_type == "yarn" else scaling.Linear(factor))

    def _axes(self, shape: Any) -> tuple[int, int]:
        """The axes of T and D, counted from the first."""
        rank, axes = len(shape), (self.sequence_axis, self.feature_axis)
        if not all(-rank <= axis < rank for axis in axes) or (axes[0] - axes[1]) % rank == 0:
            self._refuse("sequence_axis and feature_axis must be two axes of the inputs", f"{axes} for shape {tuple(shape)}")
        return axes[0] % rank, axes[1] % rank

    def build(self, input_shape: Any) -> None:
        width, remedy = input_shape[self._axes(input_shape)[1]], "encoding=Rotary(rotary_dim=...) rotates a part."
        if width is None or (width % 2 and self.encoding is None):
            self._refuse("the size of feature_axis must be known, and even", width, remedy)
        self._encoding_of(width).plan(width)

    def call(self, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
        x, rank = self._cast(inputs), len(inputs.shape)
        own, usual = self._axes(x.shape), (min(1, rank - 2), rank - 1)
        moved = own[1] != usual[1] or own[0] < usual[0]  # sequences are counted along the first axis
        x = ops.moveaxis(x, own, usual) if moved else x
        options = {"seq_axis": (usual if moved else own)[0], "start_index": start_index, "positions": positions}
        x = self._run("apply_rotary", x, None, self._encoding_of(x.shape[-1]), **options)
        return ops.moveaxis(x, usual, own) if moved else x


class TokenAndPositionEmbedding(_Layer):
    """Embeds tokens with their positions, in one pass, as keras-hub's layer of this name and with its weights.

    ``layer(inputs, start_index=0, positions=None)`` takes ids, (B, T), and returns (B, T, D); positions are as in ``SinusoidalEncoding``.

    Parameters
    ----------
    vocabulary_size, sequence_length, embedding_dim
        V tokens, P learned positions, width D: ``token_embeddings`` are (V, D), ``position_embeddings`` (P, D).
    embeddings_initializer, mask_zero, scale
        Of both; whether id 0 is padding, of which the layers behind get a mask; factor on a token's row, such as ``math.sqrt(D)``.
    encoding
        ``"sinusoidal"`` or another additive encoding, in place of learned positions; P may then be None.
    """

    def __init__(
        self, vocabulary_size: int, sequence_length: int | None, embedding_dim: int, *, embeddings_initializer: Any = "uniform",
        mask_zero: bool = False, encoding: Additive | str | None = None, scale: float = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(locals())
        for name in ("vocabulary_size", "sequence_length", "embedding_dim")[:: 1 if encoding is None else 2]:
            checks.width("TokenAndPositionEmbedding", name, getattr(self, name))
        checks.number("TokenAndPositionEmbedding", "scale", scale)
        self._encoding = None if encoding is None else additive("TokenAndPositionEmbedding", encoding, "embeds")
        initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_initializer = keras.initializers.serialize(initializer)  # one object would draw the same numbers twice

    def build(self, input_shape: Any) -> None:
        for key, size in (("token_embeddings", self.vocabulary_size), ("position_embeddings", self.sequence_length)):
            if self._encoding is None or key == "token_embeddings":
                shape = size, self.embedding_dim
                setattr(self, key, self.add_weight(shape, self.embeddings_initializer, name=key, autocast=False))

    def call(self, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
        ids = inputs if backend.is_int_dtype(backend.standardize_dtype(inputs.dtype)) else ops.cast(inputs, "int32")
        table, encoding, count = ops.convert_to_tensor(self.token_embeddings), self._encoding, ids.shape[-1]
        if encoding is None:
            is_known = positions is None and type(start_index) is type(count) is int and not getattr(ids, "is_meta", False)
            if is_known and not 0 <= start_index <= self.sequence_length - count:
                rule = f"positions must lie in [0, {self.sequence_length}), the sequence_length"
                self._refuse(rule, f"{count} from {start_index} on", "encoding='sinusoidal' has no end.")
            learned = ops.convert_to_tensor(self.position_embeddings)
            if _BACKEND != "torch":
                first = ops.cast(start_index, "int32")[..., None]
                at = first + ops.arange(ops.shape(ids)[-1]) if positions is None else positions
                rows = self._run("embed", ids, table, None, scale=self.scale)
                return ops.cast(rows + ops.take(learned, at, axis=0), self.compute_dtype)
            encoding = Learned(learned)
        options = {"scale": self.scale, "dtype": self.compute_dtype, "start_index": start_index, "positions": positions}
        return self._run("embed", ids, table, encoding, **options)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return ops.not_equal(inputs, 0) if self.mask_zero else previous_mask

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape, self.embedding_dim)


class ALiBi(_Layer):
    """Adds ``-m_h (i - j)`` to the scores of query i and key j, (..., H, Tq, Tk), where keras-hub has ``AlibiBias``.

    keras-hub adds ``m_h (j - (Tk - 1))``, the same for all queries: under a causal mask the softmax of both is the same.
    In ``layer(attention_scores, start_index=None)`` query 0 stands at ``start_index``; None: the last query at the last key.

    Parameters
    ----------
    alibi_bias_max, causal, symmetric
        The exponent of the last slope; whether keys behind the query get -inf; whether ``-m_h abs(i - j)`` is added, for encoders.
    """

    def __init__(self, alibi_bias_max: float = 8, *, causal: bool = False, symmetric: bool = False, **options: Any) -> None:
        super().__init__(locals())
        checks.boolean("ALiBi", "causal", causal)
        Bias(1, alibi_bias_max, symmetric)

    def call(self, attention_scores: Any, start_index: Any = None) -> Any:
        heads = checks.width("ALiBi", "the size of axis -3, of heads,", (None, None, *attention_scores.shape)[-3])
        bias = Bias(heads, self.alibi_bias_max, self.symmetric)
        return self._run("add_bias", self._cast(attention_scores), bias, causal=self.causal, q_offset=start_index)


for _layer in (ALiBi, RotaryEmbedding, SinusoidalEncoding, TokenAndPositionEmbedding):
    keras.saving.register_keras_serializable("fastpe")(_layer)
