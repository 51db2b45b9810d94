"""Positions of text with images, video, audio, and audio in video, as the code of Qwen2.5-Omni and Qwen3-Omni makes them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import cases
import numpy as np
import pytest

from fastpe import positions

torch = pytest.importorskip("torch")
transformers = cases.transformers()

TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3
IDS = {"image": 101, "video": 102, "audio": 103, "vision_start": 104, "audio_start": 105, "end": 106}
SECOND = 25


class Layout:
    """A random sequence, in the model's words and in fastpe's."""

    def __init__(self, seed: int, model: Any, sounding: bool, whole: bool) -> None:
        self.rng, self.model, self.whole = np.random.default_rng(seed), model, whole
        self.ids: list[int] = []
        self.types: list[int] = []
        self.images: list[Any] = []
        self.videos: list[Any] = []
        self.seconds: list[float] = []
        self.audios: list[int] = []
        self.add(7, TEXT, int(self.rng.integers(0, 4)))
        parts = [self.image, self.audio, self.video_with_audio if sounding else self.video]
        for _ in range(6):
            parts[int(self.rng.integers(3))]()
            self.add(7, TEXT, int(self.rng.integers(0, 4)))

    def add(self, identity: int, kind: int, count: int = 1) -> None:
        self.ids += [identity] * count
        self.types += [kind] * count

    def image(self) -> None:
        self.images.append((1, *(2 * self.rng.integers(1, 8, 2)).tolist()))
        self.add(IDS["vision_start"], TEXT)
        self.add(IDS["image"], IMAGE, self.images[-1][1] * self.images[-1][2] // 4)
        self.add(IDS["end"], TEXT)

    def _grid(self) -> Any:
        self.videos.append((int(self.rng.integers(1, 9)), *(2 * self.rng.integers(1, 6, 2)).tolist()))
        self.seconds.append(float(self.rng.integers(1, 5)) / (1 if self.whole else 2))  # exact in float32
        frames, rows, columns = self.videos[-1]
        return frames, rows * columns // 4

    def video(self) -> None:
        frames, size = self._grid()
        self.add(IDS["vision_start"], TEXT)
        self.add(IDS["video"], VIDEO, frames * size)
        self.add(IDS["end"], TEXT)

    def _audio(self) -> int:
        """How many tokens a random sound has."""
        while True:
            length = int(self.rng.integers(8, 400))
            if self.whole:
                module = importlib.import_module(self.model.__module__)
                count = int(module._get_feat_extract_output_lengths(torch.tensor(length), 50))
            else:
                count = ((length - 1) // 2 + 1 - 2) // 2 + 1
            if count > 0:
                self.audios.append(length)
                return count

    def audio(self) -> None:
        self.add(IDS["audio_start"], TEXT)
        self.add(IDS["audio"], AUDIO, self._audio())
        self.add(IDS["end"], TEXT)

    def video_with_audio(self) -> None:
        frames, size = self._grid()
        count = self._audio()
        times = np.floor(np.arange(frames) * self.seconds[-1] * SECOND).astype(int).repeat(size)
        self.add(IDS["vision_start"], TEXT)
        self.add(IDS["audio_start"], TEXT)
        for kind in self._by_time(times, count) if self.whole else self._by_chunk(times, count):
            self.add(IDS["video" if kind == VIDEO else "audio"], kind)
        self.add(IDS["end"], TEXT, 2)

    def _by_chunk(self, times: Any, count: int) -> list[int]:
        """Qwen2.5-Omni: two seconds of patches, two seconds of sound, and so on, as its processor cuts them."""
        cut = self.model.get_chunked_index
        videos, audios = (cut(None, torch.as_tensor(one), 2 * SECOND, 0) for one in (times, np.arange(count)))
        found: list[int] = []
        for j in range(max(len(videos), len(audios))):
            for kind, chunks in ((VIDEO, videos), (AUDIO, audios)):
                if j < len(chunks):
                    found += [kind] * (chunks[j][1] - chunks[j][0])
        return found

    def _by_time(self, times: Any, count: int) -> list[int]:
        """Qwen3-Omni: whatever comes first."""
        tagged = [(time, VIDEO) for time in times.tolist()] + [(time, AUDIO) for time in range(count)]
        return [kind for _, kind in sorted(tagged)]


FAMILIES = {
    "qwen2_5_omni": "Qwen2_5OmniPreTrainedModelForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoePreTrainedModelForConditionalGeneration",
}


@pytest.mark.parametrize("sounding", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_the_models_own(family, sounding):
    kind = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), FAMILIES[family])
    whole = family == "qwen3_omni_moe"  # its times are real numbers
    names = {f"{name}_token_id": value for name, value in IDS.items() if name != "end"}
    config = SimpleNamespace(
        **names, position_id_per_seconds=SECOND, seconds_per_chunk=2, audio_config=SimpleNamespace(n_window=50)
    )
    model = SimpleNamespace(config=config, spatial_merge_size=2)
    model.get_llm_pos_ids_for_vision = kind.get_llm_pos_ids_for_vision.__get__(model)
    model.get_chunked_index = lambda *given: kind.get_chunked_index(None, *given)
    seen = set()
    for seed in range(40):
        batch = [Layout(2 * seed + i, kind, sounding, whole) for i in range(2)]
        length = max(len(one.ids) for one in batch)
        ids = np.array([[0] * (length - len(one.ids)) + one.ids for one in batch])
        types = np.array([[TEXT] * (length - len(one.types)) + one.types for one in batch])
        mask = np.arange(length) >= np.array([[length - len(one.ids)] for one in batch])
        images, videos = ([grid for one in batch for grid in getattr(one, name)] for name in ("images", "videos"))
        seconds = [second for one in batch for second in one.seconds]
        if not images and not videos:
            continue
        expected, deltas = kind.get_rope_index(
            model,
            torch.tensor(ids),
            torch.tensor(images) if images else None,
            torch.tensor(videos) if videos else None,
            torch.tensor(mask).long(),
            sounding,
            torch.tensor([length for one in batch for length in one.audios]),
            torch.tensor(seconds),
        )
        found = positions.mrope(
            types,
            np.array(images) if images else None,
            np.array(videos) if videos else None,
            time_intervals=[SECOND * second for second in seconds],
            mask=mask,
            shared_marks=not whole,
        )
        assert (found.positions[:, mask] == expected.numpy()[:, mask]).all(), seed
        assert found.deltas.tolist() == deltas.ravel().tolist()
        seen |= set(types.ravel().tolist())
    assert seen == {TEXT, IMAGE, VIDEO, AUDIO}
